// The dialog that uploads a file into a guest. What would be replaced is said before it is.

import { attach, quoted } from "./equivalent.js";
import { join, octal } from "./inside_files.js";
import { at } from "./place.js";
import { size, visible } from "./text.js";
import { toast } from "./toast.js";
import { t } from "./words.js";

export function setUpUploads(inside, view) {
  document.querySelector("[data-upload-file]")?.addEventListener("click", () => {
    const query = new URLSearchParams({ path: view.directory });
    window.htmx.ajax("GET", at(`/dialogs/guest/${inside.guest}/upload?${query}`), { target: "#dialog", swap: "innerHTML" });
  });
  document.body.addEventListener("htmx:afterSwap", (event) => {
    const form = event.detail.target.id === "dialog" && event.detail.target.querySelector("[data-inside-upload]");
    if (form) new UploadForm(form, inside, view);
  });
}

class UploadForm {
  constructor(form, inside, view) {
    Object.assign(this, { form, inside, view, replaces: "", stop: new AbortController() });
    const { file, path } = form.elements;
    file.addEventListener("change", () => {
      if (file.files[0]) path.value = join(form.dataset.insideUpload, file.files[0].name);
      this.warn("");
    });
    path.addEventListener("input", () => this.warn(""));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    form.closest("dialog").addEventListener("close", () => this.stop.abort(), { once: true });
    attach(form, form.querySelector(".dialog-body"), () => this.equivalent());
  }

  async submit() {
    const { file, path, mode, parents } = this.form.elements;
    const confirm = this.form.querySelector("#confirm");
    if (confirm.ariaBusy === "true") return;
    const to = path.value;
    confirm.ariaBusy = "true";
    this.fault("");
    try {
      const expected = this.replaces === to ? "" : "absent";
      if (expected && this.view.mayRead) {
        const there = await this.inside.exists(to);
        if (there) return this.ask(to, there);
      }
      const bytes = this.inside.kind === "lxc" ? file.files[0] : new Uint8Array(await file.files[0].arrayBuffer());
      document.getElementById("upload-progress").hidden = false;
      await this.inside.write(to, bytes, { expected, mode: mode?.value, parents: parents?.checked, progress: (part) => this.progress(part), signal: this.stop.signal });
      this.form.closest("dialog").close();
      toast(t("{path} is uploaded.", { path: visible(to) }));
      // its directory shows it, where there are directories
      if (this.inside.kind === "lxc" && this.view.mayRead && !this.view.isDirty()) this.view.go(this.form.dataset.insideUpload);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status === 409 && /changed by somebody else/.test(error.message)) this.ask(to, {});
      else this.fault(Object.values(error.errors ?? {}).join("; ") || error.message);
    } finally {
      confirm.ariaBusy = "false";
      const progress = document.getElementById("upload-progress");
      if (progress) progress.hidden = true;
    }
  }

  /** What is there already; the next press replaces it. */
  ask(path, { type, size: bytes, mtime, mode }) {
    if (type === "directory") return this.fault(t("{path} is a directory: add a name.", { path: visible(path) }));
    const facts = bytes === undefined ? [] : [size(bytes), octal(mode), new Date(mtime * 1000).toLocaleString()];
    const what = facts.length ? `${visible(path)} (${facts.join(", ")})` : visible(path);
    this.warn(t("{path} is there already. It is replaced, and what is in it is lost.", { path: what }));
    this.replaces = path;
  }

  warn(text) {
    this.replaces = "";
    const box = this.form.querySelector("[data-replaces]");
    box.textContent = text;
    box.hidden = !text;
    const confirm = this.form.querySelector("#confirm");
    confirm.textContent = text ? t("Replace") : t("Upload");
    confirm.classList.toggle("danger", Boolean(text));
  }

  progress(part) {
    document.getElementById("upload-bar").value = part;
    document.getElementById("upload-amount").textContent = `${Math.round(part * 100)} %`;
  }

  fault(text) {
    const box = this.form.querySelector("[data-form-error]");
    box.textContent = visible(text);
    box.hidden = !text;
  }

  equivalent() {
    const { file, path, mode, parents } = this.form.elements;
    const { base, guest, kind } = this.inside;
    const name = quoted(file.files[0]?.name ?? "FILE");
    if (kind !== "lxc") {
      return { cli: `appliance vm push ${guest} ${name} ${quoted(path.value)}`, call: `POST /api2/json${base}/file-write\n  file=${path.value}\n  content@FILE` };
    }
    const options = [...(mode.value ? [`--mode ${mode.value}`] : []), ...(parents.checked ? ["--parents"] : [])];
    const fields = { path: path.value, ...(mode.value ? { mode: mode.value } : {}), ...(parents.checked ? { parents: 1 } : {}), filename: `@${name}` };
    return {
      cli: ["appliance ct push", guest, name, quoted(path.value), ...options].join(" "),
      call: [`POST /api2/json${base}/file`, "Content-Type: multipart/form-data", "", ...Object.entries(fields).map(([key, value]) => `  ${key}=${value}`)].join("\n"),
    };
  }
}
