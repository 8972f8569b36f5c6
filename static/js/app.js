// What every page needs: theme, the one dialog, resources, bell, times in the reader's zone, the websocket.

import * as drafts from "./drafts.js";
import * as forms from "./forms.js";
import * as once from "./once.js";
import * as reader from "./reader.js";
import { connect, onChange } from "./live.js";
import * as list from "./list.js";
import * as oci from "./oci.js";
import * as palette from "./palette.js";
import { colourTags } from "./parts.js";
import * as tasks from "./tasks.js";
import * as tree from "./tree.js";
import * as widgets from "./widgets.js";
import { t } from "./words.js";

const THEMES = { system: "light", light: "dark", dark: "system" };

function theme() {
  document.getElementById("theme")?.addEventListener("click", () => {
    const next = THEMES[localStorage.getItem("theme") ?? "system"] ?? "system";
    if (next === "system") {
      localStorage.removeItem("theme");
      delete document.documentElement.dataset.theme;
    } else {
      localStorage.setItem("theme", next);
      document.documentElement.dataset.theme = next;
    }
    document.getElementById("theme").title = `Colour theme: ${next}`;
  });
}

function dialogs() {
  const dialog = document.getElementById("dialog");
  document.body.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target !== dialog) return;
    for (const form of dialog.querySelectorAll("form")) forms.prepare(form);
    for (const menu of document.querySelectorAll("details.menu[open]")) menu.removeAttribute("open");
    if (!dialog.open) dialog.showModal();
    const first = dialog.querySelector("[autofocus]") ?? dialog.querySelector(".dialog-body :is(input:not([type=hidden]), select, textarea):enabled");
    first?.focus();
    first?.removeAttribute("autofocus"); // htmx would focus it again a little later, away from where somebody types by then
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-close]")) dialog.close();
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      if (!menu.contains(event.target)) menu.removeAttribute("open");
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") for (const menu of document.querySelectorAll("details.menu[open]")) menu.removeAttribute("open");
  });
  dialog.addEventListener("close", () => dialog.replaceChildren());
  document.body.addEventListener("htmx:afterSwap", times);
}

function times() {
  const today = new Date().toDateString();
  for (const element of document.querySelectorAll("time[datetime]")) {
    const when = new Date(element.dateTime);
    const text =
      when.toDateString() === today
        ? when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" })
        : when.toLocaleString([], { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
    if (element.textContent !== text) element.textContent = text;
    element.title = when.toString();
  }
}

/** The resources beside the page, or over it where there is no room; whether they show is remembered. */
function sidebar() {
  const root = document.documentElement;
  const narrow = () => matchMedia("(max-width: 1023px)").matches;
  const shows = () => (narrow() ? root.dataset.treeOver === "true" : root.dataset.tree !== "closed");
  const tell = () => {
    document.getElementById("tree-toggle").ariaExpanded = String(shows());
  };
  const set = (open) => {
    if (narrow()) root.dataset.treeOver = String(open);
    else if (open) delete root.dataset.tree;
    else root.dataset.tree = "closed";
    if (!narrow()) localStorage.setItem("tree", open ? "open" : "closed");
    tell();
    if (open && narrow()) document.getElementById("tree-filter").focus();
  };
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-tree-toggle]")) set(!shows());
    else if (root.dataset.treeOver === "true" && !event.target.closest("#sidebar")) set(false);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && root.dataset.treeOver === "true") {
      set(false);
      document.getElementById("tree-toggle").focus();
    }
  });
  tell();
}

/** The bell's number: what is wrong now, and failures since it was opened last. */
function bell() {
  const KEY = "notices-seen";
  const show = () => {
    const seen = Number(localStorage.getItem(KEY) ?? 0);
    const fresh = [...document.querySelectorAll("#notices li")].filter((line) => {
      const time = line.querySelector("[data-time]")?.dataset.time;
      return time === undefined || Number(time) > seen;
    }).length;
    const count = document.getElementById("bell-count");
    count.hidden = fresh === 0;
    count.textContent = fresh > 99 ? "99+" : String(fresh);
    document.querySelector("#bell summary").ariaLabel = fresh > 0 ? t("Notifications, {count} new", { count: fresh }) : t("Notifications");
  };
  document.getElementById("bell").addEventListener("toggle", (event) => {
    if (event.target.open) localStorage.setItem(KEY, String(Math.floor(Date.now() / 1000)));
    else show();
  });
  onChange(show);
  show();
}

function fullscreen() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-fullscreen]");
    if (!button) return;
    if (document.fullscreenElement) document.exitFullscreen();
    else document.querySelector(button.dataset.fullscreen).requestFullscreen();
  });
}

function gone() {
  const target = document.querySelector("[data-gone]")?.dataset.gone;
  if (target) location.assign(target);
}

theme();
dialogs();
sidebar();
forms.setUp();
drafts.setUp();
once.setUp();
reader.setUp();
tasks.setUp();
tree.setUp();
palette.setUp();
oci.setUp();
widgets.setUp();
list.setUp();
bell();
fullscreen();
times();
colourTags();
onChange(() => {
  times();
  colourTags();
  gone();
});
document.querySelector('.tabs [aria-current="page"]')?.scrollIntoView({ inline: "center", block: "nearest" });
connect();
