// Running a program inside a guest: its line split into words, its output shown as it comes, bounded, as text.

import { attach, copy, quoted } from "./equivalent.js";
import { split } from "./shell_words.js";
import { visible } from "./text.js";
import { t } from "./words.js";

const OUTPUT_LIMIT_CHARS = 512 * 1024;
const NEAR_PX = 40;

export class ProgramForm {
  constructor(section, inside) {
    this.inside = inside;
    this.form = section.querySelector("form");
    this.run = section.querySelector("[data-run]");
    this.output = section.querySelector("[data-run-output]");
    this.section = section;
    this.running = null;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.running) this.start();
    });
    this.form.addEventListener("input", () => this.judge());
    section.querySelector("[data-run-stop]").addEventListener("click", () => this.running?.abort());
    section.querySelector("[data-run-copy]").addEventListener("click", () => copy(this.text()));
    attach(this.form, this.form, () => this.equivalent());
    const line = new URLSearchParams(location.search).get("command"); // a link fills the line in; it is run by hand
    if (line) this.form.elements.line.value = line;
  }

  /** What is to be run. Throws SyntaxError. */
  program() {
    const { line, shell, input, timeout, cwd, uid, gid, env } = this.form.elements;
    const words = shell.checked ? ["/bin/sh", "-c", line.value] : split(line.value).words;
    if (words.length === 0 || !line.value.trim()) throw new SyntaxError(t("There is no program in it."));
    const lines = (env?.value ?? "").split("\n").filter((each) => each.trim());
    return { words, input: input.value, timeout: timeout.value, cwd: cwd?.value, uid: uid?.value, gid: gid?.value, env: lines };
  }

  /** Says while it is typed what only a shell would do. */
  judge() {
    const hint = this.form.querySelector("#h-line");
    hint.dataset.plain ??= hint.textContent;
    let operator = "";
    try {
      if (!this.form.elements.shell.checked) operator = split(this.form.elements.line.value).operator;
    } catch {
      // said when it is run
    }
    const words = operator ? t("{character} is passed on as it is: only a shell makes something of it.", { character: operator }) : hint.dataset.plain;
    if (hint.textContent !== words) hint.textContent = words;
    this.fault("");
  }

  async start() {
    let program;
    try {
      program = this.program();
    } catch (error) {
      return this.fault(error.message);
    }
    const button = this.form.querySelector("#run");
    const running = (this.running = new AbortController());
    this.section.dataset.used = "";
    this.run.hidden = false;
    this.output.replaceChildren();
    this.length = 0;
    this.section.querySelector("[data-run-line]").textContent = visible(this.form.elements.line.value);
    this.section.querySelector("[data-run-stop]").hidden = false;
    button.ariaBusy = "true";
    this.tell("accent", t("Running…"));
    try {
      this.ended(await this.inside.run(program, (stream, text) => this.say(stream, text), running.signal));
    } catch (error) {
      if (running.signal.aborted && error.name === "AbortError") this.tell("warn", t("Stopped"));
      else this.failed(error);
    } finally {
      this.running = null;
      button.ariaBusy = "false";
      this.section.querySelector("[data-run-stop]").hidden = true;
    }
  }

  ended({ code, signal, cut }) {
    if (cut) this.note(t("The agent has cut off the rest of the output."));
    if (!this.output.childElementCount) this.note(t("It said nothing."));
    if (signal) this.tell("bad", t("Ended by signal {signal}", { signal }));
    else this.tell(code === 0 ? "ok" : "bad", t("Exit code {code}", { code }));
  }

  failed(error) {
    this.note(Object.values(error.errors ?? {}).join("; ") || error.message, "bad");
    this.tell("bad", t("Failed"));
  }

  /** Text of a stream, after what it said before. The oldest goes when there is too much. */
  say(stream, text) {
    if (!text) return;
    const atEnd = this.output.scrollHeight - this.output.scrollTop - this.output.clientHeight < NEAR_PX;
    let block = this.output.lastElementChild;
    if (block?.dataset.stream !== stream) {
      block = document.createElement("div");
      block.dataset.stream = stream;
      if (stream === "stderr") block.dataset.label = t("Errors");
      this.output.append(block);
    }
    const shown = visible(text);
    block.append(shown);
    this.length += shown.length;
    this.shorten();
    if (atEnd) this.output.scrollTop = this.output.scrollHeight;
  }

  shorten() {
    const isLong = this.length > OUTPUT_LIMIT_CHARS;
    while (this.length > OUTPUT_LIMIT_CHARS) {
      const block = this.output.querySelector("[data-stream]");
      const oldest = block.firstChild;
      const gone = Math.min(oldest.length, this.length - OUTPUT_LIMIT_CHARS);
      oldest.deleteData(0, gone);
      this.length -= gone;
      if (!oldest.length) oldest.remove();
      if (!block.firstChild) block.remove();
    }
    if (!isLong || this.output.querySelector("[data-cut]")) return;
    const note = Object.assign(document.createElement("div"), { className: "program-note" });
    note.dataset.cut = "";
    note.textContent = t("The beginning is left out: there is too much to show.");
    this.output.prepend(note);
  }

  note(text, kind = "") {
    const line = Object.assign(document.createElement("div"), { className: `program-note ${kind}`.trim(), textContent: visible(text) });
    this.output.append(line);
  }

  text() {
    return [...this.output.querySelectorAll("[data-stream]")].map((block) => block.textContent).join("");
  }

  tell(kind, text) {
    const state = this.section.querySelector("[data-run-state]");
    state.className = `badge ${kind}`;
    state.textContent = text;
  }

  fault(text) {
    const field = this.form.querySelector('[data-field="line"]');
    const place = field.querySelector(".error");
    place.textContent = text;
    place.hidden = !text;
    const input = this.form.elements.line;
    if (text) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
    if (text) input.focus();
  }

  equivalent() {
    let program;
    try {
      program = this.program();
    } catch (error) {
      return { cli: error.message, call: error.message };
    }
    const { words, input, timeout, cwd, uid, gid, env } = program;
    const { base, guest, kind } = this.inside;
    const options = Object.entries({ timeout, cwd, uid, gid }).filter(([, value]) => value);
    const verb = kind === "lxc" ? "ct" : "vm";
    const cli = ["appliance", verb, "exec", guest, ...options.flatMap(([name, value]) => [`--${name}`, quoted(value)]), ...env.flatMap((each) => ["--env", quoted(each)]), "--", ...words.map(quoted)].join(" ");
    const told = kind === "lxc" ? { ...Object.fromEntries(options), ...(env.length ? { env } : {}) } : {};
    const params = { command: words, ...(input ? { "input-data": input } : {}), ...told };
    return {
      cli: input ? `printf %s ${quoted(input)} | ${cli}` : cli,
      call: `POST /api2/json${base}/exec\nContent-Type: application/json\n\n${JSON.stringify(params)}`,
    };
  }
}
