// A terminal on a serial port, a container's console or the host's login: xterm.js over PVE's packet protocol.
// A connection that drops is opened again by itself, and the server replays what was missed. Any number on a page.

import { call, user } from "./api.js";
import { onChange } from "./live.js";
import { socketAt } from "./place.js";
import "./strict_style.js";
import { toast } from "./toast.js";
import { t } from "./words.js";
import { FitAddon } from "../vendor/xterm-addon-fit-0.11.0/addon-fit.mjs";
import { SearchAddon } from "../vendor/xterm-addon-search-0.16.0/addon-search.mjs";
import { Terminal } from "../vendor/xterm-6.0.0/xterm.mjs";

const RETRY_MS = [300, 1000, 3000, 6000, 15000];
const PING_EVERY_MS = 25000;
const PASTE_CHUNK_BYTES = 4096;
const PASTE_LIMIT_CHARS = 500_000;
const encoder = new TextEncoder();

export class TerminalView {
  /** `section` holds `[data-screen]`, and what of `[data-do]`, `[data-state]`, `[data-find]` it wants to have. */
  constructor(section) {
    this.section = section;
    this.screen = section.querySelector("[data-screen], .console-screen");
    this.socket = null;
    this.attempt = 0;
    this.opening = false;
    this.timer = 0;
    this.terminal = new Terminal({
      fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono"),
      fontSize: Number(section.dataset.fontSize ?? 13),
      lineHeight: 1.15,
      cursorBlink: true,
      scrollback: 10000,
      allowProposedApi: true, // marks of the search
      screenReaderMode: false,
      theme: { background: "#10141c", foreground: "#dfe4ee", cursor: "#a3b4ff", selectionBackground: "#3d4a75" },
    });
    this.fit = new FitAddon();
    this.search = new SearchAddon();
    this.terminal.loadAddon(this.fit);
    this.terminal.loadAddon(this.search);
    this.terminal.open(this.screen);
    section.terminal = this.terminal; // for whoever wants to read the screen: tests, extensions
    this.lastState = this.guestState();
    this.listen();
    this.open();
  }

  guestState() {
    return document.getElementById("guest-head")?.dataset.state ?? "running";
  }

  listen() {
    const { terminal } = this;
    terminal.onData((data) => this.send(data));
    terminal.onBinary((data) => this.send(Uint8Array.from(data, (char) => char.charCodeAt(0))));
    terminal.onResize(() => this.sendSize());
    terminal.attachCustomKeyEventHandler((event) => this.shortcut(event));
    new ResizeObserver(() => this.fit.fit()).observe(this.screen);
    setInterval(() => this.socket?.readyState === WebSocket.OPEN && this.socket.send("2"), PING_EVERY_MS);
    this.section.addEventListener("click", (event) => {
      const what = event.target.closest("[data-do]")?.dataset.do;
      if (what) this[what]?.();
    });
    this.section.querySelector("[data-port-choice]")?.addEventListener("change", () => this.again());
    const find = this.section.querySelector("[data-find] input");
    find?.addEventListener("input", () => this.findNext(true));
    find?.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this[event.shiftKey ? "findPrevious" : "findNext"]();
      if (event.key === "Escape") this.find();
    });
    onChange(() => {
      const state = this.guestState();
      if (state === this.lastState) return;
      this.lastState = state;
      this.attempt = 0;
      this.open();
    });
  }

  /** Ctrl+Shift+C, V and F; everything else is the guest's. */
  shortcut(event) {
    if (event.type !== "keydown" || !event.ctrlKey || !event.shiftKey) return true;
    const does = { C: "copy", V: "paste", F: "find" }[event.key.toUpperCase()];
    if (!does) return true;
    event.preventDefault();
    this[does]();
    return false;
  }

  show(text, kind = "") {
    const badge = this.section.querySelector("[data-state-badge], [role=status]");
    if (badge) Object.assign(badge, { textContent: text, className: `badge ${kind}` });
    this.section.dataset.status = kind === "ok" ? "connected" : "waiting";
  }

  send(data) {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    const bytes = typeof data === "string" ? encoder.encode(data) : data;
    for (let at = 0; at < bytes.length; at += PASTE_CHUNK_BYTES) {
      const part = bytes.slice(at, at + PASTE_CHUNK_BYTES);
      const head = encoder.encode(`0:${part.length}:`);
      const packet = new Uint8Array(head.length + part.length);
      packet.set(head);
      packet.set(part, head.length);
      this.socket.send(packet);
    }
  }

  sendSize() {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(`1:${this.terminal.cols}:${this.terminal.rows}:`);
  }

  async open() {
    clearTimeout(this.timer);
    if (this.opening || this.socket) return;
    const state = this.guestState();
    if (state !== "running" && state !== "paused") return this.show(t("The guest does not run"));
    this.opening = true;
    this.reconnectButton(false);
    this.show(t("Connecting…"));
    try {
      const path = this.section.dataset.console;
      const port = this.section.querySelector("[data-port-choice]")?.value ?? this.screen.dataset.port;
      this.attach(path, await call("POST", `${path}/termproxy`, this.section.dataset.kind === "qemu" ? { serial: port } : {}));
    } catch (error) {
      this.show(error.message, "bad");
      this.later();
    } finally {
      this.opening = false;
    }
  }

  attach(path, ticket) {
    const query = new URLSearchParams({ port: ticket.port, vncticket: ticket.ticket });
    const mine = new WebSocket(socketAt(`/api2/json${path}/vncwebsocket?${query}`), "binary");
    mine.binaryType = "arraybuffer";
    this.socket = mine;
    let greeted = false;
    mine.addEventListener("open", () => mine.send(`${ticket.user ?? user()}:${ticket.ticket}\n`));
    mine.addEventListener("message", (message) => {
      let bytes = new Uint8Array(message.data);
      if (!greeted) {
        greeted = true;
        this.attempt = 0;
        this.terminal.reset(); // what follows is the replay of what the screen shows
        this.show(t("Connected"), "ok");
        this.sendSize();
        bytes = bytes.slice(2); // "OK"
      }
      if (bytes.length > 0) this.terminal.write(bytes);
    });
    mine.addEventListener("close", () => {
      if (this.socket !== mine) return;
      this.socket = null;
      const state = this.guestState();
      this.show(state === "running" ? t("Disconnected") : t("The guest does not run"), "warn");
      this.later();
    });
  }

  later() {
    this.reconnectButton(true);
    const state = this.guestState();
    if (state !== "running" && state !== "paused") return;
    const wait = RETRY_MS[Math.min(this.attempt, RETRY_MS.length - 1)];
    this.attempt += 1;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), wait);
  }

  reconnectButton(shown) {
    const button = this.section.querySelector("[data-do=again], #console-reconnect");
    if (!button) return;
    button.hidden = !shown;
    button.dataset.do = "again";
  }

  // --- what the buttons do

  again() {
    const old = this.socket;
    this.socket = null;
    old?.close();
    this.attempt = 0;
    this.open();
  }

  async copy() {
    const text = this.terminal.getSelection();
    if (!text) return toast(t("Select some text first."));
    await navigator.clipboard.writeText(text).then(() => toast(t("Copied.")), () => toast(t("The browser does not allow copying here."), "bad"));
  }

  async paste() {
    try {
      const text = await navigator.clipboard.readText();
      if (text.length > PASTE_LIMIT_CHARS) return toast(t("Too much to paste into a terminal."), "bad");
      this.terminal.paste(text);
      this.terminal.focus();
    } catch {
      toast(t("The browser does not allow pasting here: use Ctrl+V."), "bad");
    }
  }

  find() {
    const bar = this.section.querySelector("[data-find]");
    if (!bar) return;
    bar.hidden = !bar.hidden;
    if (bar.hidden) {
      this.search.clearDecorations();
      this.terminal.focus();
    } else {
      bar.querySelector("input").focus();
    }
  }

  findNext(incremental = false) {
    this.found(this.search.findNext(this.wanted(), { incremental, decorations: this.marks() }));
  }

  findPrevious() {
    this.found(this.search.findPrevious(this.wanted(), { decorations: this.marks() }));
  }

  wanted() {
    return this.section.querySelector("[data-find] input").value;
  }

  marks() {
    return { matchBackground: "#5b4a12", matchOverviewRuler: "#e0a03a", activeMatchBackground: "#8a6d10", activeMatchColorOverviewRuler: "#fff" };
  }

  found(any) {
    const none = this.section.querySelector("[data-find-none]");
    if (none) none.hidden = any || !this.wanted();
  }

  /** Everything the terminal holds, as a text file. */
  download() {
    const buffer = this.terminal.buffer.active;
    const lines = [];
    for (let row = 0; row < buffer.length; row += 1) {
      const line = buffer.getLine(row);
      const text = line.translateToString(!buffer.getLine(row + 1)?.isWrapped);
      if (line.isWrapped && lines.length) lines[lines.length - 1] += text;
      else lines.push(text);
    }
    save(new Blob([`${lines.join("\n").trimEnd()}\n`], { type: "text/plain" }), `${this.section.dataset.name ?? "console"}.txt`);
  }

  popOut() {
    popOut(this.section);
  }
}

/** Open the section's own page in a small window. */
export function popOut(section) {
  window.open(section.dataset.popOut, section.dataset.popOut, "popup,width=1000,height=680");
}

export function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
