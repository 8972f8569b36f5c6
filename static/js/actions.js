// What can be done with a node, storage or guest, for the palette, the tree's menu and the list of guests.
// The API decides who may; what it refuses is shown.

import { call } from "./api.js";
import { at } from "./place.js";
import * as tasks from "./tasks.js";
import { toast } from "./toast.js";
import { t } from "./words.js";

const WORDS = {
  running: t("running"), stopped: t("stopped"), paused: t("paused"), starting: t("starting"), stopping: t("stopping"),
  online: t("online"), offline: t("offline"), unknown: t("unknown"),
};

export const stateWord = (row) => (row.template ? t("template") : (WORDS[row.state] ?? row.state));

export const guestPath = (row) => `/nodes/${row.node}/${row.type}/${row.vmid}`;

/** Open a dialog of the server's. */
export function openDialog(path) {
  window.htmx.ajax("GET", at(path), { target: "#dialog", swap: "innerHTML" });
}

async function power(row, verb, word) {
  try {
    tasks.report(await call("POST", `${guestPath(row)}/status/${verb}`));
    toast(`${row.name}: ${word}`);
  } catch (error) {
    toast(`${row.name}: ${error.message}`, "bad");
  }
}

const go = (path) => () => location.assign(at(path));

/** Actions of one row, those that make sense in its state. */
export function actionsFor(row) {
  if (!row.isGuest) return [];
  const page = `/guests/${row.vmid}`;
  const found = [];
  const add = (id, word, symbol, run, extra = {}) => found.push({ id, word, symbol, run, row, ...extra });
  const up = row.state === "running" || row.state === "paused";
  if (!row.template) {
    if (row.state === "stopped") add("start", t("Start"), "play", () => power(row, "start", t("Start")));
    if (row.state === "paused") add("resume", t("Resume"), "play", () => power(row, "resume", t("Resume")));
    if (row.state === "running") {
      add("shutdown", t("Shut down"), "power", () => power(row, "shutdown", t("Shut down")));
      add("reboot", t("Reboot"), "rotate-cw", () => power(row, "reboot", t("Reboot")));
      add("suspend", t("Suspend"), "pause", () => power(row, "suspend", t("Suspend")));
    }
    if (up) add("stop", t("Stop…"), "square", () => openDialog(`/dialogs/guest/${row.vmid}/confirm/stop`), { danger: true });
    add("console", t("Console"), "terminal", go(`${page}/console`));
  }
  add("backup", t("Back up…"), "archive", () => openDialog(`/dialogs/backup?vmid=${row.vmid}`));
  add("backups", t("Backups"), "archive", go(`${page}/backups`));
  add("open", t("Open"), "external-link", go(page));
  if (row.state === "stopped") {
    add("delete", t("Delete…"), "trash-2", () => openDialog(`/dialogs/guest/${row.vmid}/delete`), { danger: true });
  }
  return found;
}
