// Forms and buttons that call the API: <form data-api="POST /path">, <button data-api="POST /path">.
// Errors of single parameters stand at their fields; what belongs to none stands at the form's end.

import { ApiError, call, csrf, read } from "./api.js";
import * as check from "./check.js";
import { compose, target } from "./compose.js";
import { showSlots } from "./config_form.js";
import * as equivalent from "./equivalent.js";
import * as oci from "./oci.js";
import { at } from "./place.js";
import * as tasks from "./tasks.js";
import { toast } from "./toast.js";
import * as widgets from "./widgets.js";
import { t } from "./words.js";

const UPLOAD_PATH = at("/api2/json");

export function setUp() {
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (!("api" in form.dataset) && !("upload" in form.dataset)) return;
    event.preventDefault();
    if (form.dataset.busy) return;
    submit(form);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-api]");
    if (button && !button.form?.dataset.api) press(button);
  });
  document.addEventListener("input", (event) => {
    const input = event.target;
    if (input.dataset.mustEqual !== undefined) {
      input.form.querySelector("#confirm").disabled = input.value !== input.dataset.mustEqual;
    }
    const field = input.closest?.("[data-field]");
    if (field) showError(field, "");
    if (input.form?.dataset.compose) showParts(input.form);
    if (input.form) check.later(input.form, input, showJudged);
    if (input.form?.dataset.compose === "download" && input.name === "url") suggestName(input.form);
  });
}

/** Make a form that has just come ready: the parts that apply, its equivalent as a call. */
export function prepare(form) {
  if (form.dataset.compose) showParts(form);
  showDays(form);
  widgets.prepare(form);
  equivalent.add(form);
}

/** Fields that are a day here and seconds since 1970 in the API: the day in the reader's own zone. */
function showDays(form) {
  for (const input of form.querySelectorAll("[data-seconds]")) {
    const was = new Date(Number(input.dataset.was) * 1000);
    const parts = [was.getFullYear(), was.getMonth() + 1, was.getDate()];
    if (Number(input.dataset.was)) input.defaultValue = parts.map((part) => String(part).padStart(2, "0")).join("-");
  }
}

/** Parts of a form that apply only for some choices: data-when="name=value|value", or "name" for any that is not empty. */
export function showParts(form) {
  for (const part of form.querySelectorAll("[data-when]")) {
    const [name, value] = part.dataset.when.split("=");
    const given = form.elements[name];
    const now = new FormData(form).get(name) ?? "";
    const shown = !given || (value === undefined ? now !== "" : value.split("|").includes(now));
    part.hidden = !shown;
    for (const input of part.querySelectorAll("input, select, textarea")) input.disabled = !shown;
  }
  showSlots(form);
  widgets.showMounts(form);
}

async function press(button) {
  const [method, path] = button.dataset.api.split(" ");
  button.ariaBusy = "true";
  button.closest("details.menu")?.removeAttribute("open");
  try {
    const data = await call(method, path, JSON.parse(button.dataset.params ?? "{}"));
    if (isTask(data)) tasks.report(data);
    if (button.dataset.done) toast(button.dataset.done);
  } catch (error) {
    toast(error.message, "bad");
  } finally {
    button.ariaBusy = "false";
  }
}

async function submit(form) {
  form.dataset.busy = "true";
  const button = form.querySelector(".dialog-foot button:not([type])");
  if (button) button.ariaBusy = "true";
  clearErrors(form);
  try {
    if (form.dataset.upload) await upload(form);
    else await send(form);
  } catch (error) {
    showErrors(form, error);
  } finally {
    delete form.dataset.busy;
    if (button) button.ariaBusy = "false";
  }
}

async function send(form) {
  const [method, path] = target(form);
  const { requests, before = [], after } = compose(form);
  for (const [verb, where, params] of before) await call(verb, where, params);
  let sent = null;
  let last;
  for (const params of requests) {
    sent = requests.length > 1 && ("vmid" in params || "newid" in params) ? await withFreeId(params, sent) : params;
    last = await call(method, path, sent);
    const mine = sent;
    if (after && requests.length > 1) tasks.ended(last).then(() => after(mine), () => {});
    else if (!after && isTask(last)) tasks.report(last);
    if ("watch" in form.dataset && isTask(last)) tasks.open(last, { forPage: true });
  }
  if (after && requests.length === 1) {
    const bar = form.querySelector("[data-task-progress]");
    if (bar) tasks.show(last, bar);
    await tasks.ended(last);
    await after(sent);
  }
  finish(form, requests.length === 1 ? sent : {}, last);
}

/** The next of several: its id is the first free one after the last. */
async function withFreeId(params, before) {
  const name = "newid" in params ? "newid" : "vmid";
  let candidate = before ? Number(before[name]) + 1 : Number(params[name]);
  for (let tries = 0; before && tries < 1000; tries += 1, candidate += 1) {
    try {
      await call("GET", "/cluster/nextid", { vmid: candidate });
      break;
    } catch (error) {
      if (error.status === 0) throw error; // taken is 400 or 409
    }
  }
  return { ...params, [name]: String(candidate) };
}

function finish(form, params, data) {
  const stillOpen = form.isConnected; // the reader may have closed the dialog meanwhile, and gone elsewhere
  form.dispatchEvent(new CustomEvent("form:done", { bubbles: true, detail: { data } }));
  if (form.dataset.done) toast(t(form.dataset.done));
  if (!("stay" in form.dataset)) form.closest("dialog")?.close();
  if (!stillOpen) return;
  if ("reload" in form.dataset) return location.reload();
  const next = form.dataset.next?.replace(/\{(\w+)\}/g, (_, name) => params[name] ?? "");
  if (!next || /\/guests\/$/.test(next)) return;
  // a guest's page exists from the moment its creation has been accepted; leave other pages as they are
  if (!isTask(data) || next === at("/")) location.assign(next);
  else tasks.ended(data).then(() => location.assign(next), () => tasks.open(data));
}

function upload(form) {
  const fields = new FormData(form);
  const isBuild = form.dataset.compose === "build";
  const [part, file] = isBuild ? ["context", oci.context(fields)] : ["filename", fields.get("filename")];
  const body = new FormData(); // the file comes last: the server streams it
  for (const [name, value] of fields) {
    if (typeof value === "string" && value !== "" && !name.startsWith("_")) body.append(name, value);
  }
  if (body.has("checksum")) body.append("checksum-algorithm", "sha256");
  body.append(part, file, file.name);
  const request = new XMLHttpRequest();
  const bar = document.getElementById("upload-bar");
  document.getElementById("upload-progress").hidden = false;
  request.upload.addEventListener("progress", (event) => {
    if (!event.lengthComputable) return;
    bar.value = event.loaded / event.total;
    document.getElementById("upload-amount").textContent = `${Math.round((event.loaded / event.total) * 100)} %`;
    if (event.loaded === event.total) document.getElementById("upload-text").textContent = isBuild ? t("Building…") : t("Checking…");
  });
  form.closest("dialog").addEventListener("close", () => request.abort(), { once: true });
  return new Promise((resolve, reject) => {
    request.addEventListener("load", () => {
      try {
        const data = read(request.status, request.responseText);
        if (isTask(data)) tasks.report(data);
        if ("watch" in form.dataset) tasks.open(data);
        form.closest("dialog").close();
        resolve();
      } catch (error) {
        reject(error);
      }
    });
    request.addEventListener("error", () => reject(new ApiError(0, t("The upload was cut off."))));
    request.addEventListener("abort", () => resolve());
    request.open("POST", UPLOAD_PATH + form.dataset.upload);
    request.setRequestHeader("CSRFPreventionToken", csrf());
    request.send(body);
  });
}

const isTask = (data) => typeof data === "string" && data.startsWith("UPID:");

function showErrors(form, error) {
  if (error.status === 409 && form.elements.digest) return showConflict(form, error);
  const left = [];
  for (const [name, text] of Object.entries(error.errors ?? {})) {
    const [field, words] = placeOf(form, name, text);
    if (field) showError(field, words);
    else left.push(`${name}: ${text}`);
  }
  for (const folded of form.querySelectorAll("details:not([open])")) {
    if (folded.querySelector('[aria-invalid="true"]')) folded.open = true;
  }
  form.querySelector('[aria-invalid="true"]')?.focus();
  if (left.length === 0 && Object.keys(error.errors ?? {}).length > 0) return;
  showProblem(form, left.length > 0 ? left.join("\n") : error.message);
}

/** The field an error belongs to: that of the parameter, or of the part of a property string it names. */
function placeOf(form, name, text) {
  const part = text.match(/^invalid format - ([\w-]+): (.*)$/s);
  const names = part ? [`${name}.${part[1]}`, `slot.${part[1]}`, name] : [name];
  for (const each of names) {
    const field = form.querySelector(`[data-field="${CSS.escape(each)}"]`);
    if (field && !field.closest("[hidden]")) return [field, part && each !== name ? part[2] : text];
  }
  return [null, text];
}

function showProblem(form, text, ...more) {
  const box = form.querySelector("[data-form-error]");
  if (!box) return toast(text, "bad");
  const words = Object.assign(document.createElement("span"), { textContent: text, className: "grow" });
  box.replaceChildren(words, ...more);
  box.hidden = false;
  box.scrollIntoView({ block: "nearest" });
}

/** Somebody else has saved meanwhile: nothing was overwritten, and what was typed is still here. */
function showConflict(form, error) {
  if (!/modified configuration|changed by somebody else|has changed meanwhile/.test(error.message)) return showProblem(form, error.message);
  const again = Object.assign(document.createElement("button"), { type: "button", className: "button small" });
  again.textContent = t("Save mine over it");
  again.addEventListener("click", () => {
    form.elements.digest.value = "";
    form.requestSubmit();
  });
  showProblem(
    form,
    t("Somebody else has changed this meanwhile. Nothing was saved; what you typed is still here. Close this to see their change."),
    again,
  );
}

/** What the server says while the form is being filled in: only at fields somebody has touched. */
function showJudged(form, errors) {
  const wrong = new Map();
  for (const [name, text] of Object.entries(errors)) {
    const [field, words] = placeOf(form, name, text);
    if (field && check.isTouched(form, field.dataset.field)) wrong.set(field, words);
  }
  for (const field of form.querySelectorAll("[data-field]")) showError(field, wrong.get(field) ?? "");
}

function showError(field, text) {
  const place = field.querySelector(".error");
  const input = field.querySelector(".input");
  if (!place) return;
  place.textContent = text;
  place.hidden = !text;
  if (!input) return;
  if (text) {
    input.setAttribute("aria-invalid", "true");
    input.dataset.hinted ??= input.getAttribute("aria-describedby") ?? "";
    input.setAttribute("aria-describedby", `${place.id} ${input.dataset.hinted}`.trim());
  } else {
    input.removeAttribute("aria-invalid");
  }
}

function clearErrors(form) {
  for (const field of form.querySelectorAll("[data-field]")) showError(field, "");
  const box = form.querySelector("[data-form-error]");
  if (box) box.hidden = true;
}

function suggestName(form) {
  const name = form.elements.filename;
  if (name.dataset.typed) return;
  name.addEventListener("input", () => (name.dataset.typed = "1"), { once: true });
  try {
    name.value = decodeURIComponent(new URL(form.elements.url.value).pathname.split("/").pop());
  } catch {
    // not an address yet
  }
}
