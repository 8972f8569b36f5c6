// Secrets that are told once: they stand in the dialog until it is closed, with a button to copy them.

import { copy } from "./equivalent.js";
import { t } from "./words.js";

const TEXTS = {
  token: (data) => `${data["full-tokenid"]}=${data.value}`,
  recovery: (data) => (data.recovery ?? []).map((key, index) => `${String(index + 1).padStart(2)}  ${key}`).join("\n"),
};

export function setUp() {
  document.addEventListener("form:done", (event) => {
    const form = event.target;
    const text = TEXTS[form.dataset.once]?.(event.detail.data ?? {});
    if (text) show(form, text);
  });
}

function show(form, text) {
  const body = form.querySelector(".dialog-body");
  const note = Object.assign(document.createElement("p"), { className: "notice warn" });
  note.textContent = t("This is shown only now. Keep it in a safe place.");
  const secret = Object.assign(document.createElement("pre"), { className: "once mono", textContent: text, tabIndex: 0 });
  secret.id = "once";
  const button = Object.assign(document.createElement("button"), { type: "button", className: "button" });
  button.textContent = t("Copy");
  button.addEventListener("click", () => copy(text));
  body.replaceChildren(note, secret, button);
  form.querySelector(".dialog-foot .primary")?.remove();
  form.querySelector(".dialog-foot [data-close]").textContent = t("Close");
  button.focus();
}
