// Files inside a guest: a directory's names (of a container), a file as text that can be edited, everything else to download.
// What is saved is what was read and nobody has changed since; whatever would be lost is said first.

import { attach, quoted } from "./equivalent.js";
import { digest, textOf } from "./inside_api.js";
import { icon } from "./parts.js";
import { at } from "./place.js";
import { hasUnseen, size, visible } from "./text.js";
import { toast } from "./toast.js";
import { t } from "./words.js";

const NAMES_SHOWN = 1000;
const CHANGED = /changed by somebody else/;
const KINDS = { directory: "folder", file: "file-text", link: "link", other: "plug" };
const encoder = new TextEncoder();

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};
const button = (words, act, kind = "") => {
  const made = element("button", { type: "button", className: `button small ${kind}`.trim() }, words);
  made.addEventListener("click", act);
  return made;
};

export const octal = (mode) => mode.toString(8).padStart(4, "0");
export const parentOf = (path) => path.replace(/\/+[^/]*\/*$/, "") || "/";
export const join = (directory, name) => `${directory.replace(/\/+$/, "")}/${name}`;

export class FileView {
  constructor(section, inside, { mayRead, mayWrite }) {
    Object.assign(this, { section, inside, mayRead: mayRead === "1", mayWrite: mayWrite === "1" });
    this.opening = section.querySelector("[data-open-file]");
    this.listing = section.querySelector("[data-directory]");
    this.form = section.querySelector("[data-file]");
    this.file = null; // what is open: { path, expected, ends, saved }
    this.directory = "/";
    this.opening.addEventListener("submit", (event) => {
      event.preventDefault();
      this.go(this.opening.elements.path.value);
    });
    section.addEventListener("click", (event) => this.followed(event));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.save();
    });
    this.form.elements.text.addEventListener("input", () => this.tell(this.isDirty() ? t("Not saved yet") : ""));
    this.form.elements.text.addEventListener("keydown", (event) => {
      if (!(event.ctrlKey || event.metaKey) || event.key !== "s" || !this.mayWrite) return;
      event.preventDefault();
      this.save();
    });
    this.form.querySelector("[data-file-download]").addEventListener("click", (event) => this.download(event.currentTarget));
    attach(this.form, this.form, () => this.equivalent());
    this.form.querySelector(".equivalent").before(this.form.querySelector(".file-foot"));
    addEventListener("beforeunload", (event) => this.isDirty() && event.preventDefault());
    addEventListener("popstate", () => this.asked() && this.go(this.asked(), { isNew: false }));
    const path = this.asked();
    if (path) this.go(path, { isNew: false });
  }

  asked() {
    return new URLSearchParams(location.search).get("path") ?? "";
  }

  followed(event) {
    const link = event.target.closest("a[data-path]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    this.go(link.dataset.path);
  }

  link(path, ...words) {
    const made = element("a", { href: at(`/guests/${this.inside.guest}/inside?${new URLSearchParams({ path })}`), dir: "auto" }, ...words);
    made.dataset.path = path;
    return made;
  }

  isDirty() {
    return this.file !== null && !this.form.hidden && this.form.elements.text.value !== this.file.saved;
  }

  /** Open a path, and have it in the address. What was typed and not saved is given up only when told so. */
  async go(path, { isNew = true, anyway = false } = {}) {
    this.problem(this.opening, "");
    if (this.isDirty() && !anyway) {
      const on = button(t("Give it up"), () => this.go(path, { isNew, anyway: true }), "danger");
      return this.problem(this.opening, t("What you changed in {path} is not saved.", { path: visible(this.file.path) }), on);
    }
    this.section.dataset.used = "";
    this.opening.elements.path.value = path;
    const open = this.opening.querySelector("#open");
    open.ariaBusy = "true";
    try {
      if (this.mayRead) await this.show(path, await this.inside.open(path));
      else await this.edit(path, { bytes: new Uint8Array(), isNew: true, note: t("You may write files here, but not read them.") });
      if (isNew) history.pushState(null, "", at(`/guests/${this.inside.guest}/inside?${new URLSearchParams({ path })}`));
    } catch (error) {
      if (error.status === 404 && this.mayWrite && !path.endsWith("/")) {
        await this.edit(path, { bytes: new Uint8Array(), isNew: true, note: t("There is no such file yet: saving makes it.") });
      } else {
        this.hide();
        this.problem(this.opening, Object.values(error.errors ?? {}).join("; ") || error.message);
      }
    } finally {
      open.ariaBusy = "false";
    }
  }

  hide() {
    this.listing.hidden = true;
    this.form.hidden = true;
    this.file = null;
  }

  async show(path, found) {
    if (found.directory) return this.list(path, found);
    await this.edit(path, found);
  }

  // --- a directory --------------------------------------------------------------------------------------------------

  list(path, { entries, more }) {
    this.hide();
    this.directory = path;
    const rows = [...entries].sort((one, other) => (other.type === "directory") - (one.type === "directory")).slice(0, NAMES_SHOWN);
    const body = element("tbody", {}, ...rows.map((entry) => this.row(path, entry)));
    const heads = [[t("Name"), ""], [t("Size"), "right"], [t("Mode"), ""]].map(([words, className]) => element("th", { scope: "col", className }, words));
    const table = element("table", { className: "table cards" }, element("thead", {}, element("tr", {}, ...heads)), body);
    const parts = [this.trail(path)];
    if (rows.length) parts.push(element("div", { className: "table-wrap" }, table));
    else parts.push(element("div", { className: "empty" }, icon("folder"), element("h3", {}, t("An empty directory"))));
    if (more || rows.length < entries.length) {
      parts.push(element("p", { className: "table-foot" }, t("{shown} names are shown, there are more. Type the path of the others.", { shown: rows.length })));
    }
    this.listing.replaceChildren(...parts);
    this.listing.hidden = false;
  }

  trail(path) {
    const parts = path.split("/").filter(Boolean);
    const root = document.querySelector("#guest-head h1").textContent;
    const steps = [["/", root], ...parts.map((name, index) => [`/${parts.slice(0, index + 1).join("/")}`, name])];
    const items = steps.map(([place, name], index) =>
      element("li", {}, index === steps.length - 1 ? element("span", { ariaCurrent: "page", dir: "auto" }, visible(name)) : this.link(place, visible(name))));
    return element("nav", { className: "path file-trail", ariaLabel: t("Path") }, element("ol", {}, ...items));
  }

  row(directory, { name, type, size: bytes, mode }) {
    const place = join(directory, name);
    const canOpen = type !== "other" && !name.includes("\ufffd"); // a name that is no UTF-8 cannot be asked for
    const words = canOpen ? this.link(place, visible(name)) : element("span", { dir: "auto" }, visible(name));
    const cell = element("td", { className: "name wrap" }, element("span", { className: "with-icon" }, icon(KINDS[type] ?? "plug"), words));
    const amount = element("td", { className: `num right nowrap${type === "file" ? "" : " empty-cell"}` }, type === "file" ? size(bytes) : "");
    amount.dataset.label = t("Size");
    const bits = element("td", { className: "mono small" }, octal(mode));
    bits.dataset.label = t("Mode");
    return element("tr", {}, cell, amount, bits);
  }

  // --- a file -------------------------------------------------------------------------------------------------------

  /** Show a file's content, to be edited where that loses nothing. */
  async edit(path, { bytes, more = false, info = null, isNew = false, note = "" }) {
    const text = bytes === null || more ? null : textOf(bytes);
    const ends = text === null ? null : endsOf(text);
    const notes = [];
    if (note) notes.push([note]);
    if (info?.target) {
      const target = info.target.startsWith("/") ? info.target : join(parentOf(path), info.target);
      notes.push([t("A symbolic link, which saving would replace. To edit, open what it leads to:"), " ", this.link(target, visible(target))]);
    }
    if (more) notes.push([t("It is larger than {limit}, so it is not shown.", { limit: size(this.inside.showLimit) })]);
    else if (text === null) notes.push([t("It is no text in UTF-8, so it is not shown.")]);
    else if (ends === null) notes.push([t("Its lines end in different ways, which editing here would lose.")]);
    if (text !== null && hasUnseen(text.replaceAll("\r\n", "\n"))) notes.push([t("Characters are in it that are not seen, or that change the direction of writing.")]);
    if (this.mayWrite && bytes !== null && bytes.length > this.inside.writeLimit) notes.push([t("It is larger than the {limit} that the guest agent takes.", { limit: size(this.inside.writeLimit) })]);
    const editable = this.mayWrite && ends !== null && !info?.target && bytes.length <= this.inside.writeLimit;
    const expected = !editable ? "" : isNew ? "absent" : await digest(bytes);
    this.file = { path, expected, ends, info, isNew, saved: text === null ? "" : text.replaceAll("\r\n", "\n") };
    this.directory = parentOf(path);
    const area = this.form.elements.text;
    area.value = this.file.saved;
    area.hidden = text === null;
    area.readOnly = !editable;
    area.rows = Math.min(24, Math.max(6, this.file.saved.split("\n").length + 1));
    this.form.querySelector("[data-file-name]").textContent = visible(path);
    this.form.querySelector("[data-file-download]").hidden = isNew;
    const save = this.form.querySelector("#save");
    if (save) save.hidden = !editable;
    this.form.querySelector("[data-file-notes]").replaceChildren(...notes.map((words) => element("p", { className: "notice" }, icon("info"), element("span", {}, ...words))));
    this.facts(bytes?.length);
    this.problem(this.form, "");
    this.tell("");
    this.listing.hidden = true;
    this.form.hidden = false;
    this.form.querySelector(".equivalent").hidden = !editable;
  }

  facts(bytes) {
    const { info, isNew } = this.file;
    const amount = info?.size ?? bytes;
    const parts = isNew ? [] : [amount === undefined ? "" : size(amount), info ? `${octal(info.mode)} ${info.uid}:${info.gid}` : "", info ? new Date(info.mtime * 1000).toLocaleString() : ""];
    this.form.querySelector("[data-file-facts]").textContent = parts.filter(Boolean).join(" · ");
  }

  async save({ anyway = false } = {}) {
    const { file } = this;
    const save = this.form.querySelector("#save");
    if (!file || !save || save.hidden || save.ariaBusy === "true") return;
    const text = this.form.elements.text.value;
    save.ariaBusy = "true";
    this.problem(this.form, "");
    try {
      const bytes = encoder.encode(file.ends === "\r\n" ? text.replaceAll("\n", "\r\n") : text);
      const info = await this.inside.write(file.path, bytes, { expected: anyway ? "" : file.expected });
      Object.assign(file, { expected: await digest(bytes), saved: text, isNew: false, info: info ?? null });
      this.form.querySelector("[data-file-notes]").replaceChildren();
      this.form.querySelector("[data-file-download]").hidden = !this.mayRead;
      this.facts(bytes.length);
      this.tell(this.isDirty() ? t("Not saved yet") : t("Saved"));
    } catch (error) {
      if (error.status === 409 && CHANGED.test(error.message)) this.conflict();
      else this.problem(this.form, Object.values(error.errors ?? {}).join("; ") || error.message);
    } finally {
      save.ariaBusy = "false";
    }
  }

  /** Nothing was overwritten, and what was typed is still here. */
  conflict() {
    const words = this.file.isNew
      ? t("A file of this name is there already. Nothing was saved; saving yours replaces it.")
      : t("Somebody else has changed this file meanwhile. Nothing was saved; what you typed is still here.");
    const theirs = this.link(this.file.path, t("Show theirs"));
    delete theirs.dataset.path; // in a window of its own, beside what was typed
    Object.assign(theirs, { target: "_blank", rel: "noopener", className: "button small" });
    const over = button(t("Save mine over it"), () => this.save({ anyway: true }), "danger");
    this.problem(this.form, words, ...(this.mayRead ? [theirs] : []), over);
  }

  async download(pressed) {
    pressed.ariaBusy = "true";
    try {
      await this.inside.download(this.file.path);
    } catch (error) {
      toast(Object.values(error.errors ?? {}).join("; ") || error.message, "bad");
    } finally {
      pressed.ariaBusy = "false";
    }
  }

  tell(text) {
    this.form.querySelector("[data-file-state]").textContent = text;
  }

  problem(form, text, ...more) {
    const box = form.querySelector("[data-form-error]");
    box.replaceChildren(...(text ? [element("span", { className: "grow" }, visible(text)), ...more] : []));
    box.hidden = !text;
  }

  equivalent() {
    const { base, guest, kind } = this.inside;
    const { path, expected } = this.file ?? { path: "", expected: "" };
    if (kind === "lxc") {
      return {
        cli: `appliance ct edit ${guest} ${quoted(path)}`,
        call: `POST /api2/json${base}/file\nContent-Type: multipart/form-data\n\n  path=${path}\n  expected=${expected}\n  filename=@FILE`,
      };
    }
    return {
      cli: `appliance vm push ${guest} FILE ${quoted(path)}`,
      call: `POST /api2/json${base}/file-write\n  file=${path}\n  expected=${expected}\n  content@FILE`,
    };
  }
}

/** How the lines of a text end: "\n" or "\r\n", null when a browser's text field would not keep it. */
function endsOf(text) {
  const returns = text.split("\r").length - 1;
  if (returns === 0) return "\n";
  const pairs = text.split("\r\n").length - 1;
  return pairs === returns && text.split("\n").length - 1 === pairs ? "\r\n" : null;
}
