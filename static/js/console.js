// A terminal on a guest's serial port or container console: xterm.js over PVE's packet protocol.
// A connection that drops is opened again by itself, and the server replays what was missed.

import { call, user } from "./api.js";
import { onChange } from "./live.js";
import { socketAt } from "./place.js";
import "./strict_style.js";
import { Terminal } from "../vendor/xterm-6.0.0/xterm.mjs";
import { FitAddon } from "../vendor/xterm-addon-fit-0.11.0/addon-fit.mjs";

const RETRY_MS = [300, 1000, 3000, 6000];
const PING_EVERY_MS = 25000;
const PASTE_CHUNK_BYTES = 4096;

const section = document.getElementById("console");
const screen = document.getElementById("console-screen");
const stateBadge = document.getElementById("console-state");
const reconnect = document.getElementById("console-reconnect");
const encoder = new TextEncoder();

let socket = null;
let attempt = 0;
let opening = false;
let timer = 0;
let lastState = "";

const terminal = new Terminal({
  fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono"),
  fontSize: 13,
  lineHeight: 1.15,
  cursorBlink: true,
  scrollback: 10000,
  theme: { background: "#10141c", foreground: "#dfe4ee", cursor: "#a3b4ff", selectionBackground: "#3d4a75" },
});
const fit = new FitAddon();

const guestState = () => document.getElementById("guest-head").dataset.state;

function show(text, kind = "") {
  stateBadge.textContent = text;
  stateBadge.className = `badge ${kind}`;
  section.dataset.status = kind === "ok" ? "connected" : "waiting";
}

function send(data) {
  if (socket?.readyState !== WebSocket.OPEN) return;
  const bytes = typeof data === "string" ? encoder.encode(data) : data;
  for (let at = 0; at < bytes.length; at += PASTE_CHUNK_BYTES) {
    const part = bytes.slice(at, at + PASTE_CHUNK_BYTES);
    const head = encoder.encode(`0:${part.length}:`);
    const packet = new Uint8Array(head.length + part.length);
    packet.set(head);
    packet.set(part, head.length);
    socket.send(packet);
  }
}

function sendSize() {
  if (socket?.readyState === WebSocket.OPEN) socket.send(`1:${terminal.cols}:${terminal.rows}:`);
}

async function open() {
  clearTimeout(timer);
  if (opening || socket) return;
  if (guestState() !== "running" && guestState() !== "paused") return show(`The guest is ${guestState()}`);
  opening = true;
  reconnect.hidden = true;
  show("Connecting…");
  try {
    const path = section.dataset.console;
    const port = document.getElementById("console-port")?.value ?? screen.dataset.port;
    const params = section.dataset.kind === "qemu" ? { serial: port } : {};
    const ticket = await call("POST", `${path}/termproxy`, params);
    attach(path, ticket);
  } catch (error) {
    show(error.message, "bad");
    later();
  } finally {
    opening = false;
  }
}

function attach(path, ticket) {
  const query = new URLSearchParams({ port: ticket.port, vncticket: ticket.ticket });
  const mine = new WebSocket(socketAt(`/api2/json${path}/vncwebsocket?${query}`), "binary");
  mine.binaryType = "arraybuffer";
  socket = mine;
  let greeted = false;
  mine.addEventListener("open", () => mine.send(`${ticket.user ?? user()}:${ticket.ticket}\n`));
  mine.addEventListener("message", (message) => {
    let bytes = new Uint8Array(message.data);
    if (!greeted) {
      greeted = true;
      attempt = 0;
      terminal.reset(); // what follows is the replay of what the screen shows
      show("Connected", "ok");
      sendSize();
      bytes = bytes.slice(2); // "OK"
    }
    if (bytes.length > 0) terminal.write(bytes);
  });
  mine.addEventListener("close", () => {
    if (socket !== mine) return;
    socket = null;
    show(guestState() === "running" ? "Disconnected" : `The guest is ${guestState()}`, "warn");
    later();
  });
}

function later() {
  reconnect.hidden = false;
  if (guestState() !== "running" && guestState() !== "paused") return;
  const wait = RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)];
  attempt += 1;
  clearTimeout(timer);
  timer = setTimeout(open, wait);
}

if (section) {
  terminal.loadAddon(fit);
  terminal.open(screen);
  fit.fit();
  terminal.onData(send);
  terminal.onBinary((data) => send(Uint8Array.from(data, (char) => char.charCodeAt(0))));
  terminal.onResize(sendSize);
  new ResizeObserver(() => fit.fit()).observe(screen);
  setInterval(() => socket?.readyState === WebSocket.OPEN && socket.send("2"), PING_EVERY_MS);
  reconnect.addEventListener("click", open);
  document.getElementById("console-port")?.addEventListener("change", () => {
    const old = socket;
    socket = null;
    old?.close();
    open();
  });
  onChange(() => {
    if (guestState() === lastState) return;
    lastState = guestState();
    attempt = 0;
    open();
  });
  section.terminal = terminal; // for whoever wants to read the screen: tests, extensions
  lastState = guestState();
  open();
  terminal.focus();
}
