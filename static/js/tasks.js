// The tasks drawer: opening it, reading a log that is pushed line by line, and waiting for a task's end.

import { call } from "./api.js";
import { follow, onChange, onData } from "./live.js";
import { toast } from "./toast.js";

const OPEN_KEY = "drawer-open";
const waiting = new Map(); // UPID → functions to call with its end
const shown = new Map(); // UPID → a progress bar elsewhere that shows how far it is
let current = "";

const drawer = () => document.getElementById("drawer");
const row = (upid) => document.getElementById(`task-${upid}`);

export function setUp() {
  setOpen(localStorage.getItem(OPEN_KEY) === "true");
  document.addEventListener("click", (event) => {
    if (event.target.closest("#drawer-bar")) setOpen(drawer().dataset.open !== "true");
    const chosen = event.target.closest("[data-open-task], .task-row");
    if (chosen) open(chosen.dataset.openTask ?? chosen.dataset.upid);
  });
  onChange(refresh);
  onData("task", ({ upid, status }) => finished(upid, status));
  // ends that happened while there was no connection are asked for once
  document.addEventListener("live:again", () => [...waiting.keys()].forEach(ask));
  refresh();
}

function finished(upid, status) {
  const tell = waiting.get(upid);
  waiting.delete(upid);
  tell?.(status);
}

async function ask(upid) {
  try {
    const task = await call("GET", `/nodes/${upid.split(":")[1]}/tasks/${encodeURIComponent(upid)}/status`);
    if (task.status === "stopped") finished(upid, task.exitstatus);
  } catch {
    // gone, or no connection again: what is pushed will tell
  }
}

/** Show a task's log in the drawer. With `forPage` other pages do not have it open for that. */
export function open(upid, { forPage = false } = {}) {
  setOpen(true, !forPage);
  current = upid;
  const head = Object.assign(document.createElement("div"), { id: "task-head", className: "task-head" });
  const log = Object.assign(document.createElement("div"), { id: "task-log", className: "log", tabIndex: 0 });
  document.getElementById("task-view").replaceChildren(head, log);
  follow(`log:${upid}`);
  refresh();
}

/** Resolves when the task has ended well; rejects with its status otherwise. What is pushed tells. */
export function ended(upid) {
  return new Promise((resolve, reject) => {
    waiting.set(upid, (status) => {
      if (status === "OK" || status.startsWith("WARNINGS")) resolve(status);
      else reject(new Error(status));
    });
    refresh();
    if (waiting.has(upid)) ask(upid); // it may have ended before anybody waited
  });
}

/** Say so when the task fails; success shows itself. */
export function report(upid) {
  ended(upid).catch((error) => toast(error.message, "bad"));
}

/** Show in `bar` how far a task is, until it has ended. */
export function show(upid, bar) {
  shown.set(upid, bar);
  bar.hidden = false;
  refresh();
}

function setOpen(open, remember = true) {
  drawer().dataset.open = String(open);
  if (remember) localStorage.setItem(OPEN_KEY, String(open));
  document.getElementById("drawer-bar").ariaExpanded = String(open);
}

function refresh() {
  document.getElementById("drawer-bar").ariaExpanded = drawer().dataset.open;
  for (const each of document.querySelectorAll(".task-row")) {
    each.setAttribute("aria-current", String(each.dataset.upid === current));
  }
  for (const [upid, bar] of shown) {
    const now = row(upid)?.querySelector("progress");
    if (now) bar.value = now.value;
    if (row(upid)?.dataset.status === undefined) continue;
    bar.hidden = true;
    bar.removeAttribute("value");
    shown.delete(upid);
  }
  for (const upid of [...waiting.keys()]) {
    const status = row(upid)?.dataset.status;
    if (status !== undefined) finished(upid, status);
  }
}
