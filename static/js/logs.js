// The logs of an application container, as its program writes them: one stream of the API, opened again at every start.

import { at } from "./place.js";
import { onChange } from "./live.js";
import { t } from "./words.js";

const TAIL = 1000;
const LINES_LIMIT = 5000;
const AGAIN_MS = 2000;
const ESCAPES = /\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]/g;

class LogView {
  constructor(section) {
    this.section = section;
    this.log = section.querySelector("[data-log]");
    this.state = section.querySelector("[data-log-state]");
    this.form = section.querySelector("form");
    this.find = this.form.elements.find;
    this.rest = "";
    this.reading = null;
    this.running = this.isUp();
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("change", (event) => event.target.dataset.asked !== undefined && this.open());
    this.find.addEventListener("input", () => this.filter());
    section.querySelector("[data-log-download]").addEventListener("click", () => this.download());
    onChange(() => this.changed());
    addEventListener("pagehide", () => this.reading?.abort());
    this.open();
  }

  isUp() {
    return document.getElementById("guest-head").dataset.state !== "stopped";
  }

  /** A container that has been started again goes on where it was. */
  changed() {
    const now = this.isUp();
    if (now && !this.running && this.reading === null) this.open();
    this.running = now;
  }

  address(params) {
    const query = new URLSearchParams(params);
    for (const box of this.form.querySelectorAll("[data-asked]")) query.set(box.name, box.checked ? "1" : "0");
    return at(`/api2/json${this.section.dataset.logs}?${query}`);
  }

  async open() {
    this.reading?.abort();
    const reading = (this.reading = new AbortController());
    this.log.replaceChildren();
    this.rest = "";
    this.tell(t("Connecting…"));
    try {
      const reply = await fetch(this.address({ follow: "1", tail: String(TAIL) }), { signal: reading.signal });
      if (!reply.ok) throw new Error((await reply.json().catch(() => ({}))).message || `error ${reply.status}`);
      this.tell(this.isUp() ? t("Live") : t("The container does not run"));
      await this.read(reply.body.pipeThrough(new TextDecoderStream()).getReader());
      if (this.rest) this.append("\n");
      this.tell(t("The container has ended"));
      if (this.reading === reading) this.reading = null;
      this.changed();
    } catch (error) {
      if (reading.signal.aborted) return;
      this.tell(error.message);
      setTimeout(() => this.reading === reading && this.open(), AGAIN_MS);
    }
  }

  async read(reader) {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      this.append(value);
    }
  }

  append(text) {
    const atEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 40;
    const lines = (this.rest + text).split("\n");
    this.rest = lines.pop();
    const made = lines.slice(-LINES_LIMIT).map((line) => {
      const element = document.createElement("div");
      element.textContent = line.replace(/^.*\r(?=.)/, "").replace(ESCAPES, "");
      element.hidden = !this.matches(element);
      return element;
    });
    this.log.append(...made);
    while (this.log.childElementCount > LINES_LIMIT) this.log.firstElementChild.remove();
    if (atEnd) this.log.scrollTop = this.log.scrollHeight;
  }

  matches(element) {
    return element.textContent.toLowerCase().includes(this.find.value.toLowerCase());
  }

  filter() {
    for (const element of this.log.children) element.hidden = !this.matches(element);
    this.log.scrollTop = this.log.scrollHeight;
  }

  download() {
    const link = Object.assign(document.createElement("a"), { href: this.address({}), download: this.section.dataset.file });
    link.click();
  }

  tell(text) {
    if (this.state.textContent !== text) this.state.textContent = text;
  }
}

for (const section of document.querySelectorAll("[data-logs]")) new LogView(section);
