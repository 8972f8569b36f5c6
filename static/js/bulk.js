// One action on many guests, a few at a time, with a result for each. Closing the dialog does not stop it.

import { openDialog } from "./actions.js";
import { call } from "./api.js";
import * as tasks from "./tasks.js";
import { icon } from "./parts.js";
import { toast } from "./toast.js";
import { t } from "./words.js";

const AT_ONCE = 4;
const path = (guest) => `/nodes/${guest.node}/${guest.kind}/${guest.id}`;

const powered = (verb) => async (guest) => tasks.ended(await call("POST", `${path(guest)}/status/${verb}`));
const ACTIONS = {
  start: { word: t("Start"), skip: (g) => g.state !== "stopped" && t("runs already"), work: powered("start") },
  shutdown: { word: t("Shut down"), skip: (g) => g.state === "stopped" && t("is stopped already"), work: powered("shutdown") },
  stop: {
    word: t("Stop"),
    danger: t("They are switched off at once, as if their power failed. What they have not written to disk is lost."),
    skip: (g) => g.state === "stopped" && t("is stopped already"),
    work: powered("stop"),
  },
  suspend: { word: t("Suspend"), skip: (g) => g.state !== "running" && t("does not run"), work: powered("suspend") },
  resume: { word: t("Resume"), skip: (g) => g.state !== "paused" && t("is not suspended"), work: powered("resume") },
  snapshot: {
    word: t("Take snapshot"),
    field: { label: t("Name of the snapshot"), pattern: "[A-Za-z][A-Za-z0-9_\\-]{1,39}", hint: t("Letters, digits, - and _; it begins with a letter.") },
    work: async (guest, name) => tasks.ended(await call("POST", `${path(guest)}/snapshot`, { snapname: name })),
  },
  tag: {
    word: t("Add tag"),
    field: { label: t("Tag"), pattern: "[A-Za-z0-9_][A-Za-z0-9_.+\\-]*", hint: t("Letters, digits and _ . + -") },
    work: (guest, tag) => retag(guest, (tags) => (tags.includes(tag) ? tags : [...tags, tag])),
  },
  untag: {
    word: t("Remove tag"),
    field: { label: t("Tag"), pattern: ".+", hint: "" },
    work: (guest, tag) => retag(guest, (tags) => tags.filter((each) => each !== tag)),
  },
};

async function retag(guest, change) {
  const { tags = "", digest } = await call("GET", `${path(guest)}/config`);
  const before = tags.split(/[;,\s]+/).filter(Boolean);
  const after = change(before);
  if (after.length === before.length) return t("unchanged");
  const params = after.length > 0 ? { tags: after.join(";"), digest } : { delete: "tags", digest };
  await call("PUT", `${path(guest)}/config`, params);
  return "OK";
}

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

/** Ask what is needed, then do it. */
export function run(name, guests) {
  if (name === "backup" && guests.length > 0) return openDialog(`/dialogs/backup?chosen=${guests.map((guest) => guest.id).join(",")}`);
  const action = ACTIONS[name];
  if (!action || guests.length === 0) return;
  const dialog = document.getElementById("dialog");
  const skipped = (guest) => action.skip?.(guest) || (guest.template && action.work === ACTIONS.start.work && t("is a template")) || "";
  const form = element("form", { className: "bulk" });
  const close = element("button", { type: "button", className: "button quiet icon-only small", ariaLabel: t("Close") }, icon("x"));
  close.dataset.close = "";
  form.append(element("header", { className: "dialog-head" }, element("h2", { id: "dialog-title", textContent: t("{action}: {count} guests", { action: action.word, count: guests.length }) }), close));
  const body = element("div", { className: "dialog-body" });
  if (action.danger) body.append(element("p", { className: "notice warn", textContent: action.danger }));
  let input = null;
  if (action.field) {
    input = element("input", { className: "input", id: "bulk-input", required: true, pattern: action.field.pattern, autocomplete: "off", spellcheck: false });
    const label = element("label", { htmlFor: "bulk-input", textContent: action.field.label });
    body.append(element("div", { className: "field" }, label, input, element("p", { className: "hint", textContent: action.field.hint })));
  }
  const list = element("ul", { className: "bulk-list" });
  for (const guest of guests) {
    const state = element("span", { className: "bulk-state", textContent: skipped(guest) || t("waiting") });
    const item = element("li", { id: `bulk-${guest.id}` }, element("span", { className: "grow", textContent: guest.name, dir: "auto" }), element("span", { className: "muted num", textContent: String(guest.id) }), state);
    item.dataset.outcome = skipped(guest) ? "skipped" : "waiting";
    list.append(item);
  }
  body.append(list);
  const go = element("button", { className: action.danger ? "button danger primary" : "button primary", textContent: action.word, id: "bulk-go" });
  const cancel = element("button", { type: "button", className: "button", textContent: t("Cancel") });
  cancel.dataset.close = "";
  form.append(body, element("footer", { className: "dialog-foot" }, cancel, go));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    go.disabled = true;
    if (input) input.readOnly = true;
    cancel.textContent = t("Close");
    await all(action, guests.filter((guest) => !skipped(guest)), input?.value ?? "");
    go.remove();
  });
  dialog.replaceChildren(form);
  dialog.showModal();
  (input ?? go).focus();
}

async function all(action, guests, value) {
  const queue = [...guests];
  let failed = 0;
  const worker = async () => {
    for (let guest = queue.shift(); guest; guest = queue.shift()) {
      show(guest, "running", "…");
      try {
        const status = await action.work(guest, value);
        show(guest, status?.startsWith?.("WARNINGS") ? "warn" : "ok", status ?? "OK");
      } catch (error) {
        failed += 1;
        show(guest, "bad", error.message);
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  const done = guests.length - failed;
  toast(failed > 0 ? t("{action}: {done} done, {failed} failed", { action: action.word, done, failed }) : t("{action}: {done} done", { action: action.word, done }), failed > 0 ? "bad" : "ok");
}

function show(guest, outcome, text) {
  const item = document.getElementById(`bulk-${guest.id}`);
  if (!item) return; // the dialog was closed
  item.dataset.outcome = outcome;
  item.querySelector(".bulk-state").textContent = text;
}
