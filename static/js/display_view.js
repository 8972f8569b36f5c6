// A VM's display: noVNC over the ticketed websocket, with scaling, key combinations, clipboard and pictures.

import { call } from "./api.js";
import { onChange } from "./live.js";
import { socketAt } from "./place.js";
import { popOut, save } from "./terminal_view.js";
import { toast } from "./toast.js";
import { t } from "./words.js";
import KeyTable from "../vendor/novnc-1.7.0/core/input/keysym.js";
import keysyms from "../vendor/novnc-1.7.0/core/input/keysymdef.js";
import RFB from "../vendor/novnc-1.7.0/core/rfb.js";

const RETRY_MS = [500, 2000, 5000, 15000];
const TYPE_LIMIT_CHARS = 4096;
const TYPE_PAUSE_MS = 12;
const SCALE_KEY = "display-scale";

/** Names of `data-keys="Control Alt Delete"`: keysym and, where there is one, the key's code. */
const KEYS = {
  Control: [KeyTable.XK_Control_L, "ControlLeft"],
  Alt: [KeyTable.XK_Alt_L, "AltLeft"],
  Shift: [KeyTable.XK_Shift_L, "ShiftLeft"],
  Super: [KeyTable.XK_Super_L, "MetaLeft"],
  Delete: [KeyTable.XK_Delete, "Delete"],
  Backspace: [KeyTable.XK_BackSpace, "Backspace"],
  Tab: [KeyTable.XK_Tab, "Tab"],
  Escape: [KeyTable.XK_Escape, "Escape"],
  Enter: [KeyTable.XK_Return, "Enter"],
  Print: [KeyTable.XK_Print, "PrintScreen"],
  ...Object.fromEntries(Array.from({ length: 12 }, (_, index) => [`F${index + 1}`, [KeyTable.XK_F1 + index, `F${index + 1}`]])),
};

export class DisplayView {
  /** `section` holds `[data-screen]` and what of `[data-do]`, `[data-keys]`, `[data-scale]` it wants to have. */
  constructor(section) {
    this.section = section;
    this.screen = section.querySelector("[data-screen]");
    this.rfb = null;
    this.opening = false;
    this.attempt = 0;
    this.lastState = this.guestState();
    const scale = section.querySelector("[data-scale]");
    if (scale) scale.value = localStorage.getItem(SCALE_KEY) ?? "fit";
    this.listen(scale);
    this.open();
  }

  guestState() {
    return document.getElementById("guest-head")?.dataset.state ?? "running";
  }

  listen(scale) {
    scale?.addEventListener("change", () => {
      localStorage.setItem(SCALE_KEY, scale.value);
      this.rescale();
    });
    this.section.addEventListener("click", (event) => {
      const keys = event.target.closest("[data-keys]")?.dataset.keys;
      if (keys) {
        this.press(keys.split(" "));
        event.target.closest("details")?.removeAttribute("open");
      }
      const what = event.target.closest("[data-do]")?.dataset.do;
      if (what) this[what]?.();
    });
    onChange(() => {
      if (this.guestState() === this.lastState) return;
      this.lastState = this.guestState();
      this.attempt = 0;
      this.open();
    });
  }

  show(text, kind = "") {
    const badge = this.section.querySelector("[data-state-badge]");
    if (badge) Object.assign(badge, { textContent: text, className: `badge ${kind}` });
    this.section.dataset.status = kind === "ok" ? "connected" : "waiting";
  }

  async open() {
    clearTimeout(this.timer);
    if (this.opening || this.rfb) return;
    const state = this.guestState();
    if (state !== "running" && state !== "paused") return this.show(t("The guest does not run"));
    this.opening = true;
    this.reconnectButton(false);
    this.show(t("Connecting…"));
    try {
      const path = this.section.dataset.display;
      const ticket = await call("POST", `${path}/vncproxy`, { websocket: "1" });
      const query = new URLSearchParams({ port: ticket.port, vncticket: ticket.ticket });
      this.attach(socketAt(`/api2/json${path}/vncwebsocket?${query}`));
    } catch (error) {
      this.show(error.message, "bad");
      this.later();
    } finally {
      this.opening = false;
    }
  }

  attach(url) {
    this.screen.replaceChildren();
    const mine = new RFB(this.screen, url, { shared: true, wsProtocols: ["binary"] });
    mine.background = "#10141c";
    mine.addEventListener("connect", () => {
      this.attempt = 0;
      this.show(t("Connected"), "ok");
      if (!("tile" in this.section.dataset)) mine.focus();
    });
    mine.addEventListener("disconnect", () => {
      this.rfb = null;
      this.show(this.guestState() === "running" ? t("Disconnected") : t("The guest does not run"), "warn");
      this.later();
    });
    mine.addEventListener("clipboard", (event) => {
      const box = this.section.querySelector("[data-clipboard]");
      if (box) box.value = event.detail.text.slice(0, 100000);
    });
    this.rfb = mine;
    this.rescale();
  }

  /** fit: the whole picture, smaller or larger · own: pixel by pixel, scrolled · guest: the guest follows the window */
  rescale() {
    if (!this.rfb) return;
    const wanted = this.section.querySelector("[data-scale]")?.value ?? "fit";
    this.rfb.scaleViewport = wanted === "fit";
    this.rfb.clipViewport = wanted === "own";
    this.rfb.dragViewport = false;
    this.rfb.resizeSession = wanted === "guest";
  }

  later() {
    this.reconnectButton(true);
    if (this.guestState() !== "running") return;
    const wait = RETRY_MS[Math.min(this.attempt, RETRY_MS.length - 1)];
    this.attempt += 1;
    this.timer = setTimeout(() => this.open(), wait);
  }

  reconnectButton(shown) {
    const button = this.section.querySelector("[data-do=again]");
    if (button) button.hidden = !shown;
  }

  // --- what the buttons do

  again() {
    this.attempt = 0;
    if (this.rfb) this.rfb.disconnect();
    else this.open();
  }

  /** Keys down in order, and up again the other way round. */
  press(names) {
    for (const name of names) this.rfb?.sendKey(...KEYS[name], true);
    for (const name of names.toReversed()) this.rfb?.sendKey(...KEYS[name], false);
    this.rfb?.focus();
  }

  clipboard() {
    const panel = this.section.querySelector("[data-clipboard-panel]");
    panel.hidden = !panel.hidden;
    if (!panel.hidden) panel.querySelector("textarea").focus();
  }

  /** Hand the text to the guest's clipboard, if it has an agent for that. */
  giveClipboard() {
    this.rfb?.clipboardPasteFrom(this.section.querySelector("[data-clipboard]").value);
    toast(t("Given to the guest's clipboard."));
  }

  /** Type the text as keys: works in every guest, also at a login prompt. */
  async typeText() {
    const text = this.section.querySelector("[data-clipboard]").value.slice(0, TYPE_LIMIT_CHARS);
    for (const char of text) {
      if (!this.rfb) return;
      this.rfb.sendKey(char === "\n" ? KeyTable.XK_Return : char === "\t" ? KeyTable.XK_Tab : keysyms.lookup(char.codePointAt(0)), null);
      await new Promise((resolve) => setTimeout(resolve, TYPE_PAUSE_MS));
    }
    this.rfb?.focus();
  }

  screenshot() {
    const canvas = this.screen.querySelector("canvas");
    if (!canvas?.width) return toast(t("There is no picture yet."));
    const stamp = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
    canvas.toBlob((blob) => blob && save(blob, `${this.section.dataset.name ?? "display"}-${stamp}.png`), "image/png");
  }

  popOut() {
    popOut(this.section);
  }
}
