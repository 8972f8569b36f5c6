// A VM's display: noVNC over the ticketed websocket.

import { call } from "./api.js";
import { onChange } from "./live.js";
import { socketAt } from "./place.js";
import RFB from "../vendor/novnc-1.7.0/core/rfb.js";

const RETRY_MS = 2000;

const section = document.getElementById("display");
const screen = document.getElementById("display-screen");
const stateBadge = document.getElementById("display-state");
const reconnect = document.getElementById("display-reconnect");

let rfb = null;
let opening = false;
let timer = 0;

const guestState = () => document.getElementById("guest-head").dataset.state;

function show(text, kind = "") {
  stateBadge.textContent = text;
  stateBadge.className = `badge ${kind}`;
  section.dataset.status = kind === "ok" ? "connected" : "waiting";
}

async function open() {
  clearTimeout(timer);
  if (opening || rfb) return;
  if (guestState() !== "running" && guestState() !== "paused") return show(`The guest is ${guestState()}`);
  opening = true;
  reconnect.hidden = true;
  show("Connecting…");
  try {
    const path = section.dataset.display;
    const ticket = await call("POST", `${path}/vncproxy`, { websocket: "1" });
    const query = new URLSearchParams({ port: ticket.port, vncticket: ticket.ticket });
    attach(socketAt(`/api2/json${path}/vncwebsocket?${query}`));
  } catch (error) {
    show(error.message, "bad");
    reconnect.hidden = false;
  } finally {
    opening = false;
  }
}

function attach(url) {
  screen.replaceChildren();
  const mine = new RFB(screen, url, { shared: true, wsProtocols: ["binary"] });
  mine.scaleViewport = true;
  mine.background = "#10141c";
  mine.addEventListener("connect", () => {
    show("Connected", "ok");
    mine.focus();
  });
  mine.addEventListener("disconnect", () => {
    rfb = null;
    show(guestState() === "running" ? "Disconnected" : `The guest is ${guestState()}`, "warn");
    reconnect.hidden = false;
    if (guestState() === "running") timer = setTimeout(open, RETRY_MS);
  });
  rfb = mine;
}

reconnect.addEventListener("click", open);
document.getElementById("display-cad").addEventListener("click", () => rfb?.sendCtrlAltDel());
let lastState = guestState();
onChange(() => {
  if (guestState() === lastState) return;
  lastState = guestState();
  open();
});
open();
