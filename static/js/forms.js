// Forms and buttons that call the API: <form data-api="POST /path">, <button data-api="POST /path">.
// Errors of single parameters stand at their fields; what belongs to none stands at the form's end.

import { ApiError, call, csrf, read } from "./api.js";
import { compose } from "./compose.js";
import { at } from "./place.js";
import * as tasks from "./tasks.js";
import { toast } from "./toast.js";

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
    if (input.form?.dataset.compose === "download" && input.name === "url") suggestName(input.form);
  });
}

/** Parts of a form that apply only for some choices: data-when="name=value". */
export function showParts(form) {
  for (const part of form.querySelectorAll("[data-when]")) {
    const [name, value] = part.dataset.when.split("=");
    const shown = new FormData(form).get(name) === value;
    part.hidden = !shown;
    for (const input of part.querySelectorAll("input, select, textarea")) input.disabled = !shown;
  }
}

async function press(button) {
  const [method, path] = button.dataset.api.split(" ");
  button.ariaBusy = "true";
  button.closest("details.menu")?.removeAttribute("open");
  try {
    const data = await call(method, path);
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
  const [method, path] = form.dataset.api.split(" ");
  const { params, after } = compose(form);
  const data = await call(method, path, params);
  if (after) {
    await tasks.ended(data);
    await after();
  } else if (isTask(data)) {
    tasks.report(data);
  }
  finish(form, params, data);
}

function finish(form, params, data) {
  const stillOpen = form.isConnected; // the reader may have closed the dialog meanwhile, and gone elsewhere
  form.closest("dialog")?.close();
  if (!stillOpen) return;
  const next = form.dataset.next?.replace("{vmid}", params.vmid ?? "");
  if (!next) return;
  // a guest's page exists from the moment its creation has been accepted; leave other pages as they are
  if (next === "/" || !isTask(data)) location.assign(next);
  else tasks.ended(data).then(() => location.assign(next), () => tasks.open(data));
}

function upload(form) {
  const fields = new FormData(form);
  const file = fields.get("filename");
  const body = new FormData(); // the file comes last: the server streams it
  body.append("content", fields.get("content"));
  if (fields.get("checksum")) {
    body.append("checksum", fields.get("checksum"));
    body.append("checksum-algorithm", "sha256");
  }
  body.append("filename", file, file.name);
  const request = new XMLHttpRequest();
  const bar = document.getElementById("upload-bar");
  document.getElementById("upload-progress").hidden = false;
  request.upload.addEventListener("progress", (event) => {
    if (!event.lengthComputable) return;
    bar.value = event.loaded / event.total;
    document.getElementById("upload-amount").textContent = `${Math.round((event.loaded / event.total) * 100)} %`;
    if (event.loaded === event.total) document.getElementById("upload-text").textContent = "Checking…";
  });
  form.closest("dialog").addEventListener("close", () => request.abort(), { once: true });
  return new Promise((resolve, reject) => {
    request.addEventListener("load", () => {
      try {
        const data = read(request.status, request.responseText);
        if (isTask(data)) tasks.report(data);
        form.closest("dialog").close();
        resolve();
      } catch (error) {
        reject(error);
      }
    });
    request.addEventListener("error", () => reject(new ApiError(0, "The upload was cut off.")));
    request.addEventListener("abort", () => resolve());
    request.open("POST", UPLOAD_PATH + form.dataset.upload);
    request.setRequestHeader("CSRFPreventionToken", csrf());
    request.send(body);
  });
}

const isTask = (data) => typeof data === "string" && data.startsWith("UPID:");

function showErrors(form, error) {
  const left = [];
  for (const [name, text] of Object.entries(error.errors ?? {})) {
    const field = form.querySelector(`[data-field="${CSS.escape(name)}"]`);
    if (field && !field.closest("[hidden]")) showError(field, text);
    else left.push(`${name}: ${text}`);
  }
  form.querySelector('[aria-invalid="true"]')?.focus();
  if (left.length === 0 && Object.keys(error.errors ?? {}).length > 0) return;
  const box = form.querySelector("[data-form-error]");
  if (!box) return toast(error.message, "bad");
  box.textContent = left.length > 0 ? left.join("\n") : error.message;
  box.hidden = false;
  box.scrollIntoView({ block: "nearest" });
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
    input.setAttribute("aria-describedby", place.id);
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
