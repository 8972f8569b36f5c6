// What a form does, said as an API call and as a command line, with buttons to copy them.

import { compose, target } from "./compose.js";
import { toast } from "./toast.js";
import { t } from "./words.js";

const VERBS = { GET: "get", POST: "create", PUT: "set", DELETE: "delete" };
const SECRET = /password|secret|totp|^value$/i;
const HIDDEN = new Set(["digest"]);

export const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

function shownParams(params) {
  return Object.entries(params)
    .filter(([name]) => !HIDDEN.has(name))
    .map(([name, value]) => [name, SECRET.test(name) ? "********" : String(value)]);
}

export function commandLine(method, path, params) {
  const words = ["appliance", VERBS[method], path];
  for (const [name, value] of shownParams(params)) words.push(`--${name}`, quoted(value));
  return words.join(" ");
}

export function apiCall(method, path, params) {
  const lines = shownParams(params).map(([name, value]) => `  ${name}=${value}`);
  return [`${method} /api2/json${path}`, ...lines].join("\n");
}

/** Add the disclosure to a form of the API; a form that takes a file or a password has none. */
export function add(form) {
  const body = form.querySelector(".dialog-body, .form-body");
  if (!body || !form.dataset.api || body.querySelector(".equivalent")) return;
  attach(form, body, () => said(form));
}

/** The same for a form whose call is not made of its fields alone: `lines()` gives { cli, call }. */
export function attach(form, body, lines) {
  const details = document.createElement("details");
  details.className = "disclosure equivalent";
  details.dataset.keep = "";
  const summary = document.createElement("summary");
  summary.textContent = t("API call and command line");
  details.append(summary, line("cli", t("Copy the command line")), line("call", t("Copy the API call")));
  const error = body.querySelector("[data-form-error]");
  if (error) error.before(details);
  else body.append(details);
  const update = () => details.open && write(details, lines());
  details.addEventListener("toggle", update);
  form.addEventListener("input", update);
  form.addEventListener("change", update);
}

function line(kind, label) {
  const box = Object.assign(document.createElement("div"), { className: "line" });
  const text = Object.assign(document.createElement("pre"), { tabIndex: 0 });
  text.dataset.equivalent = kind;
  text.setAttribute("role", "region");
  text.setAttribute("aria-label", kind === "cli" ? t("Command line") : t("API call"));
  const button = Object.assign(document.createElement("button"), { type: "button", className: "button small" });
  button.textContent = t("Copy");
  button.ariaLabel = label;
  button.addEventListener("click", () => copy(text.textContent));
  box.append(text, button);
  return box;
}

function said(form) {
  const [method, path] = target(form);
  const { requests, before = [] } = compose(form);
  const calls = [...before, ...requests.map((params) => [method, path, params])];
  const each = (words) => calls.map((one) => words(...one)).join("\n");
  return { cli: each(commandLine), call: each(apiCall) };
}

function write(details, { cli, call }) {
  details.querySelector("[data-equivalent=cli]").textContent = cli;
  details.querySelector("[data-equivalent=call]").textContent = call;
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(t("Copied."));
  } catch {
    toast(t("The browser does not allow copying here."), "bad");
  }
}
