// What was typed into a dialog outlives the session: it is kept over the login page and put back. Secrets are not kept.

import { here } from "./place.js";

const KEY = "draft";
const LIMIT = 64 * 1024;

let opened = "";

/** Remember which dialog is open, and where it came from. */
export function setUp() {
  document.body.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target.id === "dialog") opened = event.detail.requestConfig?.path ?? "";
  });
  const draft = kept();
  if (draft?.page !== here()) return; // for the page it was typed on
  sessionStorage.removeItem(KEY);
  restore(draft);
}

export function save() {
  const form = document.querySelector("#dialog[open] form");
  if (!form || !opened) return;
  const values = [...form.elements]
    .filter((input) => input.name && !["password", "file", "hidden"].includes(input.type))
    .map((input) => [input.name, input.type === "checkbox" || input.type === "radio" ? input.checked : input.value, input.value]);
  const text = JSON.stringify({ page: here(), dialog: opened, values });
  if (text.length < LIMIT) sessionStorage.setItem(KEY, text);
}

function kept() {
  const text = sessionStorage.getItem(KEY);
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    return null;
  }
}

function restore(draft) {
  document.body.addEventListener(
    "htmx:afterSwap",
    () => {
      const form = document.querySelector("#dialog form");
      for (const [name, value, choice] of form ? draft.values : []) {
        for (const input of form.querySelectorAll(`[name="${CSS.escape(name)}"]`)) {
          if (input.type === "radio") input.checked = input.value === choice ? value : input.checked;
          else if (input.type === "checkbox") input.checked = value;
          else input.value = value;
          input.dispatchEvent(new Event("input", { bubbles: true }));
        }
      }
    },
    { once: true },
  );
  window.htmx?.ajax("GET", draft.dialog, { target: "#dialog" });
}
