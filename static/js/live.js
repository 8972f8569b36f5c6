// The page's one websocket: says which topics the page shows, and puts what is pushed into its place.

import { renew, toLogin } from "./api.js";
import { socketAt } from "./place.js";
import { t } from "./words.js";

const FIRST_RETRY_MS = 400;
const LONGEST_RETRY_MS = 15000;
const SESSION_ENDED = 4001;
const LOG_LINES_LIMIT = 5000;
const LOWEST_ROW_PX = 40;

const extra = new Set();
let socket = null;
let told = "";
let retries = 0;
let retry = 0;
let below = { body: null, rows: [] }; // rows that wait until those on the screen are painted

const base = (document.body.dataset.topics ?? "").split(" ").filter(Boolean);
const topics = () => [...new Set([...base, ...extra])];
const kindOf = (topic) => topic.split(":", 1)[0];

/** Follow `topic` in place of the page's own one of this kind. `quiet`: the server knows already. */
export function setTopic(kind, topic, { quiet = false } = {}) {
  const at = base.findIndex((each) => kindOf(each) === kind);
  if (at < 0) base.push(topic);
  else base[at] = topic;
  if (!quiet) tell();
}

/** Call `listener` with each datum of this kind that is pushed. */
export function onData(kind, listener) {
  document.addEventListener(`live:${kind}`, (event) => listener(event.detail));
}

/** Follow one more topic ("log:UPID"), in place of others of its kind. */
export function follow(topic) {
  for (const other of extra) if (kindOf(other) === kindOf(topic)) extra.delete(other);
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
    lost(false);
    tell();
    document.dispatchEvent(new CustomEvent("live:again"));
  });
  socket.addEventListener("message", (message) => apply(JSON.parse(message.data)));
  socket.addEventListener("close", closed);
}

addEventListener("online", () => {
  // no need to wait for the next try
  if (socket?.readyState === WebSocket.CLOSED) {
    clearTimeout(retry);
    retries = 0;
    connect();
  }
});

function lost(is, waitMs = 0) {
  const notice = document.getElementById("offline");
  notice.hidden = !is;
  if (is) notice.textContent = t("Connection lost. What you see may be old. Trying again in {seconds} s…", { seconds: Math.ceil(waitMs / 1000) });
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
    lost(true, wait);
    // a browser does not tell why a websocket was refused: ask whether there is still a session
    if (!(await renew())) return toLogin();
  }
  clearTimeout(retry);
  retry = setTimeout(connect, wait * (0.75 + Math.random() / 2));
}

function apply(fragments) {
  for (const html of fragments) {
    if (typeof html === "object") {
      document.dispatchEvent(new CustomEvent(`live:${html.kind}`, { detail: html }));
      continue;
    }
    // each by itself: after a <div> a parser takes no <tr> any more
    const template = document.createElement("template");
    template.innerHTML = html;
    for (const element of [...template.content.children]) place(element);
  }
  document.dispatchEvent(new CustomEvent("live:change"));
}

/** Put a fragment into the place of its namesake. */
export function place(element) {
  let present = document.getElementById(element.id);
  if (!present && below.rows.length > 0) {
    placeBelow(); // it may be one of them
    present = document.getElementById(element.id);
  }
  if (!present) return;
  if (element.id === "task-log") return placeLog(present, element);
  if ("replace" in element.dataset) {
    below = { body: null, rows: [] };
    if (!present.contains(document.activeElement)) return placeRows(present, element);
  }
  Idiomorph.morph(present, element, {
    morphStyle: "outerHTML",
    // what is typed stays; a focused button is matched like any other, or it keeps the face of the one it was
    ignoreActiveValue: document.activeElement?.matches("input, textarea, select") ?? false,
    callbacks: {
      // what scripts own inside pushed parts stays; an open menu stays open
      beforeNodeMorphed: (old) => !(old.nodeType === Node.ELEMENT_NODE && "keep" in old.dataset),
      beforeAttributeUpdated: (name, node) => !(name === "open" && node.tagName === "DETAILS"),
    },
  });
  const now = document.getElementById(element.id);
  if (now && window.htmx) window.htmx.process(now);
}

/** Many rows of other things: comparing them with the old ones would take longer than showing them. What is on the screen
    comes first, the rest once that is painted: laying out fifty rows takes as long as all of the search. */
function placeRows(present, body) {
  const onScreen = Math.max(1, Math.ceil((innerHeight - present.getBoundingClientRect().top) / LOWEST_ROW_PX) + 1);
  below = { body, rows: [...body.children].slice(onScreen) };
  for (const row of below.rows) row.remove();
  present.replaceWith(body);
  if (below.rows.length > 0) requestAnimationFrame(() => setTimeout(() => below.body === body && placeBelow()));
}

function placeBelow() {
  const { body, rows } = below;
  below = { body: null, rows: [] };
  body.append(...rows);
  document.dispatchEvent(new CustomEvent("live:change"));
}

/** Rows that have arrived and are not in the page yet. */
export const waitingRows = () => below.rows;

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
