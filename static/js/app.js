// What every page needs: theme, the one dialog, times in the reader's zone, filters, the websocket.

import * as forms from "./forms.js";
import { connect, onChange } from "./live.js";
import * as tasks from "./tasks.js";

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
    for (const form of dialog.querySelectorAll("form[data-compose]")) forms.showParts(form);
    for (const menu of document.querySelectorAll("details.menu[open]")) menu.removeAttribute("open");
    if (!dialog.open) dialog.showModal();
    dialog.querySelector("[autofocus]")?.focus();
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

function filter() {
  const input = document.querySelector("[data-filter]");
  if (!input) return;
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = document.querySelector("[data-filter-state]:checked")?.value ?? "";
  const rows = [...document.querySelectorAll(`${input.dataset.filter} > tr`)];
  let shown = 0;
  for (const row of rows) {
    const text = row.dataset.find.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word)) || (state !== "" && row.dataset.state !== state);
    if (!row.hidden) shown += 1;
  }
  document.querySelector("[data-empty-for]").hidden = rows.length > 0;
  document.querySelector("[data-none-for]").hidden = rows.length === 0 || shown > 0;
  document.getElementById("guest-table").hidden = shown === 0;
}

function filters() {
  document.addEventListener("input", (event) => {
    if (event.target.matches?.("[data-filter], [data-filter-state]")) filter();
  });
  document.addEventListener("keydown", (event) => {
    const input = document.querySelector("[data-filter]");
    if (event.key !== "/" || !input || event.target.closest("input, textarea, select, dialog, .console")) return;
    event.preventDefault();
    input.focus();
  });
  filter();
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
forms.setUp();
tasks.setUp();
filters();
fullscreen();
times();
onChange(() => {
  times();
  filter();
  gone();
});
document.querySelector('.tabs [aria-current="page"]')?.scrollIntoView({ inline: "center", block: "nearest" });
connect();
