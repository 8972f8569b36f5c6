// The page's one websocket: says which topics the page shows, and puts what is pushed into its place.

import { renew, toLogin } from "./api.js";
import { socketAt } from "./place.js";

const FIRST_RETRY_MS = 400;
const LONGEST_RETRY_MS = 15000;
const SESSION_ENDED = 4001;
const LOG_LINES_LIMIT = 5000;

const extra = new Set();
let socket = null;
let told = "";
let retries = 0;

const topics = () => [...new Set([...(document.body.dataset.topics ?? "").split(" ").filter(Boolean), ...extra])];

/** Follow one more topic ("log:UPID"), in place of others of its kind. */
export function follow(topic) {
  const kind = topic.split(":", 1)[0];
  for (const other of extra) if (other.startsWith(`${kind}:`)) extra.delete(other);
  extra.add(topic);
  tell();
}

/** Call `listener` after each push that changed the page. */
export function onChange(listener) {
  document.addEventListener("live:change", listener);
}

export function connect() {
  socket = new WebSocket(socketAt("/ws/page"));
  told = "";
  socket.addEventListener("open", () => {
    retries = 0;
    document.body.dataset.live = "connected";
    document.getElementById("offline").hidden = true;
    tell();
  });
  socket.addEventListener("message", (message) => apply(JSON.parse(message.data)));
  socket.addEventListener("close", closed);
}

function tell() {
  const wish = JSON.stringify({ topics: topics() });
  if (socket?.readyState !== WebSocket.OPEN || wish === told) return;
  told = wish;
  socket.send(wish);
}

async function closed(event) {
  delete document.body.dataset.live;
  if (event.code === SESSION_ENDED && !(await renew())) return toLogin();
  const wait = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** retries);
  retries += 1;
  if (retries > 1) {
    document.getElementById("offline").hidden = false;
    // a browser does not tell why a websocket was refused: ask whether there is still a session
    if (!(await renew())) return toLogin();
  }
  setTimeout(connect, wait * (0.75 + Math.random() / 2));
}

function apply(fragments) {
  for (const html of fragments) {
    // each by itself: after a <div> a parser takes no <tr> any more
    const template = document.createElement("template");
    template.innerHTML = html;
    for (const element of [...template.content.children]) place(element);
  }
  document.dispatchEvent(new CustomEvent("live:change"));
}

function place(element) {
  const present = document.getElementById(element.id);
  if (!present) return;
  if (element.id === "task-log") return placeLog(present, element);
  Idiomorph.morph(present, element, {
    morphStyle: "outerHTML",
    ignoreActiveValue: true,
    callbacks: {
      // what scripts own inside pushed parts stays; an open menu stays open
      beforeNodeMorphed: (old) => !(old.nodeType === Node.ELEMENT_NODE && "keep" in old.dataset),
      beforeAttributeUpdated: (name, node) => !(name === "open" && node.tagName === "DETAILS"),
    },
  });
  const now = document.getElementById(element.id);
  if (now && window.htmx) window.htmx.process(now);
}

function placeLog(present, element) {
  const atEnd = present.scrollHeight - present.scrollTop - present.clientHeight < 40;
  if (element.dataset.push === "fresh" || present.dataset.upid !== element.dataset.upid) {
    present.replaceChildren();
    present.dataset.upid = element.dataset.upid;
  }
  present.append(...element.children);
  while (present.childElementCount > LOG_LINES_LIMIT) present.firstElementChild.remove();
  if (atEnd || element.dataset.push === "fresh") present.scrollTop = present.scrollHeight;
}
