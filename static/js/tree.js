// The resource tree: one flat list of rows, grouped and drawn here; only the rows on the screen are elements.
// The rows come and change by push (topic "tree:DIGEST"); what was seen last paints at once on the next page.

import { actionsFor, stateWord } from "./actions.js";
import { onData, setTopic } from "./live.js";
import { icon, tagElement } from "./parts.js";
import { at as placed, here as address } from "./place.js";
import { t } from "./words.js";

const KEPT = "tree-rows";
const VIEW = "tree-view";
const CLOSED = "tree-closed";
const SCROLL = "tree-scroll";
const ROW_HEIGHT = 28;
const ROW_HEIGHT_TOUCH = 40;
const MARGIN_ROWS = 8;
const MANY_GUESTS = 300;
const FOLDS_LIMIT = 200;

let rows = new Map(); // id → row
let digest = "";
let folds = new Map(); // key of a group → whether it is open, where somebody said so
let lines = []; // what could be on the screen, from top to bottom
let current = -1; // index of the active line
let height = ROW_HEIGHT;
const elements = new Map(); // key of a line → its element
const listeners = new Set();

const box = () => document.getElementById("tree");
const space = () => box().firstElementChild;
const view = () => localStorage.getItem(VIEW) ?? "server";

/** Every row the viewer may see, for the palette. */
export const allRows = () => [...rows.values()];
export const rowOf = (id) => rows.get(id);

/** Call `listener` when rows have changed. */
export const onRows = (listener) => listeners.add(listener);

export function setUp() {
  if (!box()) return;
  height = matchMedia("(pointer: coarse)").matches ? ROW_HEIGHT_TOUCH : ROW_HEIGHT;
  recall();
  recallFolds();
  onData("tree", take);
  setTopic("tree", `tree:${digest}`);
  const select = document.getElementById("tree-view");
  select.value = view();
  select.addEventListener("change", () => {
    localStorage.setItem(VIEW, select.value);
    box().scrollTop = 0;
    rebuild();
  });
  document.getElementById("tree-filter").addEventListener("input", rebuild);
  document.getElementById("tree-filter").addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "Enter") return;
    event.preventDefault();
    box().focus();
    if (event.key === "Enter") open(lines[firstMatch()]);
  });
  box().addEventListener("scroll", () => {
    sessionStorage.setItem(SCROLL, String(box().scrollTop));
    draw();
  });
  new ResizeObserver(draw).observe(box());
  box().addEventListener("keydown", keyed);
  box().addEventListener("focus", () => activate(current < 0 ? here() : current));
  box().addEventListener("click", clicked);
  box().addEventListener("contextmenu", menuWanted);
  rebuild();
  box().scrollTop = Number(sessionStorage.getItem(SCROLL) ?? 0);
  const at = here();
  if (at >= 0 && (at * height < box().scrollTop || (at + 1) * height > box().scrollTop + box().clientHeight)) {
    box().scrollTop = at * height - box().clientHeight / 2;
  }
  draw();
}

// --- rows ------------------------------------------------------------------------------------------------------------

function row([id, name, state, node, pool, tags, template]) {
  const [type, rest] = [id.slice(0, id.indexOf("/")), id.slice(id.lastIndexOf("/") + 1)];
  const isGuest = type === "qemu" || type === "lxc";
  return { id, type, name, state, node, pool, tags, template, isGuest, vmid: isGuest ? Number(rest) : 0 };
}

function recall() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
    if (kept?.user !== document.body.dataset.user) return;
    rows = new Map(kept.rows.map((each) => [each[0], row(each)]));
    digest = kept.digest;
  } catch {
    sessionStorage.removeItem(KEPT);
  }
}

function keep() {
  const flat = [...rows.values()].map((r) => [r.id, r.name, r.state, r.node, r.pool, r.tags, r.template]);
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ user: document.body.dataset.user, digest, rows: flat }));
  } catch {
    sessionStorage.removeItem(KEPT); // too much for this browser: the next page asks again
  }
}

function take(change) {
  if (change.whole) rows = new Map();
  for (const each of change.rows) rows.set(each[0], row(each));
  for (const id of change.gone ?? []) rows.delete(id);
  digest = change.digest;
  setTopic("tree", `tree:${digest}`, { quiet: true });
  keep();
  rebuild();
  for (const listener of listeners) listener();
}

// --- lines -----------------------------------------------------------------------------------------------------------

const isOpen = (key, byDefault) => folds.get(key) ?? byDefault;

function setOpen(key, open) {
  folds.delete(key);
  folds.set(key, open);
  localStorage.setItem(CLOSED, JSON.stringify([...folds].slice(-FOLDS_LIMIT)));
  rebuild();
}

function recallFolds() {
  try {
    folds = new Map(JSON.parse(localStorage.getItem(CLOSED) ?? "[]"));
  } catch {
    localStorage.removeItem(CLOSED);
  }
}

const byId = (a, b) => a.vmid - b.vmid || a.name.localeCompare(b.name);
const byName = (a, b) => a.name.localeCompare(b.name);

function group(label, symbol, members, extra = {}) {
  return { label, symbol, members, ...extra };
}

/** The groups below "Datacenter" in one view. Pure. */
function groups(all, how) {
  const guests = all.filter((r) => r.isGuest).sort(byId);
  const of = (type) => all.filter((r) => r.type === type).sort(byName);
  const storages = of("storage");
  if (how === "folder") {
    return [
      group(t("Nodes"), "server", of("node")),
      group(t("Virtual machines"), "monitor", guests.filter((r) => r.type === "qemu" && !r.template)),
      group(t("Containers"), "container", guests.filter((r) => r.type === "lxc" && !r.template)),
      group(t("Templates"), "layers", guests.filter((r) => r.template)),
      group(t("Storage"), "hard-drive", storages),
      group(t("Pools"), "folder", of("pool")),
    ].filter((each) => each.members.length > 0);
  }
  if (how === "pool") {
    const found = of("pool").map((pool) =>
      group(pool.name, "folder", guests.filter((r) => r.pool === pool.name), { href: placed(`/?pool=${encodeURIComponent(pool.name)}`) }),
    );
    const rest = guests.filter((r) => !r.pool);
    return rest.length > 0 ? [...found, group(t("Without a pool"), "folder", rest)] : found;
  }
  if (how === "tag") {
    const tags = new Map();
    for (const guest of guests) for (const tag of guest.tags) tags.set(tag, [...(tags.get(tag) ?? []), guest]);
    const found = [...tags].sort(([a], [b]) => a.localeCompare(b)).map(([tag, members]) => group(tag, "tag", members, { tag, href: placed(`/?tag=${encodeURIComponent(tag)}`) }));
    const rest = guests.filter((r) => r.tags.length === 0);
    return rest.length > 0 ? [...found, group(t("Untagged"), "tag", rest)] : found;
  }
  return of("node").map((node) =>
    group(node.name, "server", [...guests.filter((r) => r.node === node.name), ...storages.filter((r) => r.node === node.name)], {
      row: node,
      href: hrefOf(node),
    }),
  );
}

export const hrefOf = (r) => placed(pathOf(r));

function pathOf(r) {
  switch (r.type) {
    case "node":
      return r.name === document.querySelector('meta[name="node"]').content ? "/node" : `/?node=${encodeURIComponent(r.name)}`;
    case "storage":
      return `/storage/${encodeURIComponent(r.name)}`;
    case "pool":
      return `/?pool=${encodeURIComponent(r.name)}`;
    default:
      return `/guests/${r.vmid}`;
  }
}

export const symbolOf = (r) =>
  ({ node: "server", storage: "hard-drive", pool: "folder", lxc: "container" })[r.type] ?? "monitor";

function matches(r, words) {
  const text = `${r.vmid || ""} ${r.name} ${r.tags.join(" ")} ${r.pool}`.toLowerCase();
  return words.every((word) => text.includes(word));
}

function rebuild() {
  const active = lines[current]?.key;
  const words = document.getElementById("tree-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const all = allRows();
  const many = all.length > MANY_GUESTS;
  const how = view();
  lines = [{ key: "root", level: 1, label: t("Datacenter"), symbol: "building", href: placed("/overview"), count: 1, at: 1 }];
  let found = groups(all, how);
  if (words.length > 0) {
    found = found.map((each) => ({ ...each, members: each.members.filter((r) => matches(r, words)) })).filter((each) => each.members.length > 0);
  }
  found.forEach((each, index) => {
    const key = `${how}:${each.label}`;
    const open = words.length > 0 || isOpen(key, !many);
    lines.push({ ...each, key, level: 2, open, at: index + 1, count: found.length });
    if (!open) return;
    each.members.forEach((r, place) =>
      lines.push({ key: `${key}/${r.id}`, level: 3, label: r.name, symbol: symbolOf(r), row: r, href: hrefOf(r), at: place + 1, count: each.members.length }),
    );
  });
  current = active ? lines.findIndex((line) => line.key === active) : -1;
  box().setAttribute("aria-busy", String(rows.size === 0));
  space().style.height = `${lines.length * height}px`;
  for (const element of elements.values()) element.remove();
  elements.clear();
  draw();
}

const firstMatch = () => Math.max(0, lines.findIndex((line) => line.level === 3));
const isHere = (line) => line.href && placed(address()) === line.href;
const isAbove = (line) => line.row?.isGuest && location.pathname.startsWith(`${line.href}/`);
const here = () => Math.max(0, lines.findIndex((line) => isHere(line) || isAbove(line)));

// --- drawing ---------------------------------------------------------------------------------------------------------

function draw() {
  const first = Math.max(0, Math.floor(box().scrollTop / height) - MARGIN_ROWS);
  const last = Math.min(lines.length, Math.ceil((box().scrollTop + box().clientHeight) / height) + MARGIN_ROWS);
  const shown = new Set();
  for (let at = first; at < last; at += 1) {
    const line = lines[at];
    shown.add(line.key);
    let element = elements.get(line.key);
    if (!element) {
      element = make(line);
      elements.set(line.key, element);
      space().append(element);
    }
    element.style.transform = `translateY(${at * height}px)`;
    element.dataset.at = String(at);
    element.classList.toggle("active", at === current);
  }
  for (const [key, element] of elements) {
    if (shown.has(key)) continue;
    element.remove();
    elements.delete(key);
  }
}

function make(line) {
  const item = document.createElement(line.href ? "a" : "div");
  item.className = "tree-item";
  item.id = `tree-${line.key.replace(/[^A-Za-z0-9_-]/g, "_")}`;
  item.role = "treeitem";
  if (line.href) item.href = line.href;
  item.tabIndex = -1;
  item.dataset.level = String(line.level);
  item.style.height = `${height}px`;
  item.ariaLevel = String(line.level);
  item.ariaSetSize = String(line.count);
  item.ariaPosInSet = String(line.at);
  item.ariaSelected = String(isHere(line) || isAbove(line) || false);
  if (line.members) item.ariaExpanded = String(line.open);
  const twist = document.createElement("span");
  twist.className = "tree-twist";
  if (line.members) {
    twist.append(icon("chevron-right"));
    twist.dataset.twist = "";
  }
  item.append(twist);
  if (line.tag) {
    item.append(tagElement(line.tag));
  } else {
    const symbol = document.createElement("span");
    symbol.className = "tree-symbol";
    symbol.append(icon(line.symbol));
    if (line.row?.state) symbol.dataset.state = line.row.state;
    const name = document.createElement("span");
    name.className = "tree-name";
    name.textContent = line.label;
    name.dir = "auto";
    item.append(symbol, name);
  }
  if (line.row?.state) item.append(note(stateWord(line.row), "visually-hidden"));
  if (line.members) item.append(note(String(line.members.length)));
  if (line.row?.isGuest) {
    for (const tag of line.row.tags.slice(0, 6)) item.append(tagElement(tag, "dot"));
    item.append(note(String(line.row.vmid)));
    item.title = `${line.label} (${line.row.vmid}), ${stateWord(line.row)}`;
  }
  return item;
}

function note(text, look = "tree-note") {
  const element = document.createElement("span");
  element.className = look;
  element.textContent = text;
  return element;
}

// --- keyboard and mouse ----------------------------------------------------------------------------------------------

function activate(at) {
  current = Math.min(Math.max(0, at), lines.length - 1);
  const top = current * height;
  if (top < box().scrollTop) box().scrollTop = top;
  if (top + height > box().scrollTop + box().clientHeight) box().scrollTop = top + height - box().clientHeight;
  draw();
  const element = elements.get(lines[current]?.key);
  if (element) box().setAttribute("aria-activedescendant", element.id);
}

function open(line) {
  if (line?.href) location.assign(line.href);
  else if (line?.members) setOpen(line.key, !line.open);
}

let typed = "";
let typedAt = 0;

function keyed(event) {
  const line = lines[current];
  const page = Math.max(1, Math.floor(box().clientHeight / height) - 1);
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -lines.length, End: lines.length };
  if (event.key in moves) {
    activate(current + moves[event.key]);
  } else if (event.key === "ArrowRight" && line?.members) {
    if (line.open) activate(current + 1);
    else setOpen(line.key, true);
  } else if (event.key === "ArrowLeft") {
    if (line?.members && line.open) setOpen(line.key, false);
    else activate(lines.findLastIndex((each, at) => at < current && each.level < (line?.level ?? 1)));
  } else if (event.key === "Enter") {
    open(line);
  } else if (event.key === " " && line?.members) {
    setOpen(line.key, !line.open);
  } else if (event.key === "ContextMenu" || (event.key === "F10" && event.shiftKey)) {
    const element = elements.get(line?.key);
    if (element && line.row) showMenu(line.row, element.getBoundingClientRect());
  } else if (event.key.length === 1 && !event.ctrlKey && !event.metaKey && !event.altKey && event.key !== "/") {
    jump(event.key.toLowerCase());
  } else {
    return;
  }
  event.preventDefault();
  event.stopPropagation();
}

function jump(letter) {
  typed = performance.now() - typedAt < 700 ? typed + letter : letter;
  typedAt = performance.now();
  for (let step = typed.length > 1 ? 0 : 1; step < lines.length; step += 1) {
    const at = (current + step) % lines.length;
    if (lines[at].label.toLowerCase().startsWith(typed)) return activate(at);
  }
}

function lineAt(event) {
  const element = event.target.closest(".tree-item");
  return element ? lines[Number(element.dataset.at)] : undefined;
}

function clicked(event) {
  const line = lineAt(event);
  if (!line) return;
  current = lines.indexOf(line);
  if (line.members && (event.target.closest("[data-twist]") || !line.href)) {
    event.preventDefault();
    setOpen(line.key, !line.open);
  }
}

function menuWanted(event) {
  const line = lineAt(event);
  if (!line?.row) return;
  event.preventDefault();
  showMenu(line.row, { left: event.clientX, bottom: event.clientY });
}

function showMenu(r, place) {
  const menu = document.getElementById("tree-menu");
  menu.replaceChildren(
    ...actionsFor(r).map((action) => {
      const button = document.createElement("button");
      button.type = "button";
      button.role = "menuitem";
      if (action.danger) button.className = "danger";
      button.append(icon(action.symbol), action.word);
      button.addEventListener("click", () => {
        menu.hidePopover();
        action.run();
      });
      return button;
    }),
  );
  menu.showPopover();
  menu.style.left = `${Math.min(place.left, innerWidth - menu.offsetWidth - 8)}px`;
  menu.style.top = `${Math.min(place.bottom, innerHeight - menu.offsetHeight - 8)}px`;
  menu.firstElementChild?.focus();
}
