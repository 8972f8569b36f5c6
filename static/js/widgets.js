// Parts of a form that make one key of the configuration of several inputs: [data-widget], filled in by
// appliance/web/pages/app_forms.py. What they were at first is remembered: only what differs is sent.

import { t } from "./words.js";

const first = new WeakMap(); // widget → its text when the form came

export function setUp() {
  sorting();
  document.addEventListener("click", (event) => {
    const add = event.target.closest("[data-add-row]");
    if (add) addRow(add.closest(".widget"));
    const remove = event.target.closest("[data-remove-row]");
    if (remove) removeRow(remove);
    const step = event.target.closest("[data-move]");
    if (step) move(step.closest("[data-row]"), Number(step.dataset.move), step);
  });
  document.addEventListener("input", (event) => {
    if (event.target.dataset.health === "is-set") health(event.target.closest("[data-widget]"));
  });
}

/** Lists whose rows are put in order: by dragging, or by the arrow keys. */
function sorting() {
  let dragged = null;
  document.addEventListener("dragstart", (event) => {
    dragged = event.target.closest?.("[data-sortable] > [data-row]") ?? null;
    dragged?.classList.add("dragged");
  });
  document.addEventListener("dragover", (event) => {
    const over = event.target.closest?.("[data-sortable] > [data-row]");
    if (!dragged || !over || over.parentElement !== dragged.parentElement) return;
    event.preventDefault();
    const { top, height } = over.getBoundingClientRect();
    if (over !== dragged) over[event.clientY < top + height / 2 ? "before" : "after"](dragged);
  });
  document.addEventListener("drop", (event) => dragged && event.preventDefault());
  document.addEventListener("dragend", () => {
    dragged?.classList.remove("dragged");
    dragged?.dispatchEvent(new Event("input", { bubbles: true }));
    dragged = null;
  });
  document.addEventListener("keydown", (event) => {
    const row = event.target.closest?.("[data-sortable] > [data-row]");
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!row || !by) return;
    event.preventDefault();
    move(row, by, event.target);
  });
}

function move(row, by, focused) {
  const next = (each) => (by < 0 ? each.previousElementSibling : each.nextElementSibling);
  let other = next(row);
  while (other?.hidden) other = next(other); // what is not there now is no place to move to
  if (!other) return;
  other[by < 0 ? "before" : "after"](row);
  focused.focus(); // moving an element takes its focus
  row.dispatchEvent(new Event("input", { bubbles: true }));
}

/** The devices that are chosen; which slot a new VM's disk is in is another field's to say. */
function boot(list) {
  const chosen = [...list.querySelectorAll("[data-boot]:checked:enabled")];
  return `order=${chosen.map((box) => (box.dataset.of ? box.form.elements[box.dataset.of].value : box.value)).join(";")}`;
}

/** Remember what the widgets of a form are now. */
export function prepare(form) {
  for (const widget of form.querySelectorAll("[data-widget]")) first.set(widget, valueOf(widget));
}

export const wasOf = (widget) => first.get(widget) ?? "";

/** The key's text. */
export function valueOf(widget) {
  return { boot, env: environment, labels, health, ports }[widget.dataset.widget](widget);
}

function addRow(widget) {
  const row = widget.querySelector("template").content.firstElementChild.cloneNode(true);
  widget.querySelector("[data-rows]").append(row);
  row.querySelector("input:not([readonly]), select").focus();
  row.dispatchEvent(new Event("input", { bubbles: true }));
}

function removeRow(button) {
  const widget = button.closest(".widget");
  button.closest("[data-row]").remove();
  widget.querySelector("[data-add-row]").focus();
  widget.dispatchEvent(new Event("input", { bubbles: true }));
}

/** Lines of texts, as `app_forms.lines_of` makes them: a backslash at the end of a line joins the next one by a newline. */
function texts(area) {
  const found = [];
  let goesOn = false;
  for (const line of area.value.split("\n")) {
    const tail = line.match(/\\*$/)[0].length;
    const text = line.slice(0, line.length - tail) + "\\".repeat(tail >> 1);
    if (goesOn) found[found.length - 1] += `\n${text}`;
    else found.push(text);
    goesOn = tail % 2 === 1;
  }
  return found.filter((text) => text.trim() !== "");
}

const environment = (area) => texts(area).join("\0");

function labels(area) {
  const pairs = texts(area).map((text) => [text.split("=", 1)[0].trim(), text.includes("=") ? text.slice(text.indexOf("=") + 1) : ""]);
  return pairs.length ? JSON.stringify(Object.fromEntries(pairs)) : "";
}

function health(group) {
  const part = (name) => group.querySelector(`[data-health="${name}"]`);
  const on = part("is-set").checked;
  for (const input of group.querySelectorAll("[data-health]")) if (input.type !== "checkbox") input.disabled = !on;
  if (!on) return "none";
  const typed = part("command").value.trim();
  const check = { command: listOf(typed) ?? typed };
  for (const name of ["interval", "timeout", "start-period", "retries"]) {
    if (part(name).value !== "") check[name] = Number(part(name).value);
  }
  return JSON.stringify(check);
}

/** A command typed as a JSON list; null for one that is a shell's. */
function listOf(text) {
  if (!text.startsWith("[")) return null;
  try {
    const list = JSON.parse(text);
    return Array.isArray(list) ? list : null;
  } catch {
    return null;
  }
}

function ports(group) {
  const found = [];
  for (const row of group.querySelectorAll("[data-row]")) {
    const [address, host, inside, protocol] = ["address", "host", "inside", "protocol"].map((name) => row.querySelector(`[data-port="${name}"]`).value.trim());
    if (host === "") continue;
    found.push(`${address ? `${address}:` : ""}${host}:${inside}/${protocol}`);
  }
  return found.join(",");
}

/** The mount points of a new container that differ from what its image makes by itself: mp0=STORAGE:SIZE,mp=PATH … */
export function mounts(form) {
  const found = {};
  for (const row of form.querySelectorAll("[data-mount-row]")) {
    const [path, where, amount] = ["path", "where", "amount"].map((name) => row.querySelector(`[data-mount="${name}"]`).value.trim());
    if (path === "" || where === "") continue;
    const volume = where === "host" ? amount : `${where}:${amount || "0"}`;
    found[`mp${Object.keys(found).length}`] = `${volume},mp=${path}`;
  }
  return found;
}

/** A mount point's last input is a size, or a directory of the host. */
export function showMounts(form) {
  for (const row of form.querySelectorAll("[data-mount-row]")) {
    const where = row.querySelector('[data-mount="where"]').value;
    const amount = row.querySelector('[data-mount="amount"]');
    amount.hidden = where === "";
    amount.placeholder = where === "host" ? "/srv/data" : "GiB";
    amount.ariaLabel = where === "host" ? t("Directory of the host") : t("Size in GiB");
  }
}
