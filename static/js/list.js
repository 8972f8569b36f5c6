// The list of guests: what is typed, chosen and sorted becomes a query, which is the page's address and its topic;
// the server answers with the rows. Guests can be selected, for actions on many at once (bulk.js).

import { run } from "./bulk.js";
import { onChange, setTopic, waitingRows } from "./live.js";
import { at } from "./place.js";
import { t } from "./words.js";

const PAUSE_MS = 60;
const selected = new Set();
let timer = 0;
let asked = -PAUSE_MS;
let lastClicked = null;

const form = () => document.getElementById("guest-filter");
const boxes = () => [...document.querySelectorAll("#guest-rows > tr"), ...waitingRows()].map((row) => row.querySelector("[data-select]"));

export function setUp() {
  if (!form()) return;
  form().addEventListener("submit", (event) => event.preventDefault());
  form().addEventListener("input", () => {
    // the first letter is asked for at once, others together: whoever types does not wait for a pause
    clearTimeout(timer);
    timer = setTimeout(ask, Math.max(0, asked + PAUSE_MS - performance.now()));
  });
  document.addEventListener("click", clicked);
  document.addEventListener("change", (event) => {
    if (event.target.id === "select-all") for (const box of boxes()) choose(box.dataset.select, event.target.checked);
    refresh();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.closest("input, textarea, select, dialog, .console")) return;
    event.preventDefault();
    document.getElementById("find").focus();
  });
  window.addEventListener("popstate", () => location.reload());
  onChange(refresh);
  refresh();
}

function ask() {
  asked = performance.now();
  apply({ limit: "" });
}

/** The query as the form has it now, with `changes`. */
function query(changes = {}) {
  const values = new URLSearchParams(location.search);
  for (const [name, value] of new FormData(form())) values.set(name, value);
  for (const [name, value] of Object.entries(changes)) values.set(name, value);
  for (const [name, value] of [...values]) if (value === "") values.delete(name);
  return values.toString();
}

function apply(changes) {
  const wanted = query(changes);
  history.replaceState(null, "", at(wanted ? `/?${wanted}` : "/"));
  setTopic("guests", `guests:${wanted}`);
}

function clicked(event) {
  const head = event.target.closest("[data-sort]");
  if (head) return sort(head.dataset.sort);
  const more = event.target.closest("[data-more]");
  if (more) return apply({ limit: more.dataset.more });
  if (event.target.closest("[data-clear-filter]")) return clear();
  const box = event.target.closest("[data-select]");
  if (box) select(box, event.shiftKey);
  const action = event.target.closest("[data-bulk]");
  if (action) bulk(action.dataset.bulk);
  if (event.target.closest("[data-unselect]")) {
    selected.clear();
    refresh();
  }
}

function clear() {
  form().reset();
  history.replaceState(null, "", at("/"));
  for (const input of form().querySelectorAll("input")) {
    if (input.type === "radio") input.checked = input.value === "";
    else input.value = "";
  }
  apply({});
}

function sort(column) {
  const now = new URLSearchParams(location.search).get("sort") ?? "id";
  apply({ sort: now === column ? `-${column}` : now === `-${column}` ? "" : column });
}

function choose(id, on) {
  if (on) selected.add(id);
  else selected.delete(id);
}

function select(box, withShift) {
  choose(box.dataset.select, box.checked);
  const all = boxes();
  if (withShift && lastClicked) {
    const [from, to] = [all.findIndex((each) => each.dataset.select === lastClicked), all.indexOf(box)].sort((a, b) => a - b);
    if (from >= 0) for (const each of all.slice(from, to + 1)) choose(each.dataset.select, box.checked);
  }
  lastClicked = box.dataset.select;
  refresh();
}

function bulk(action) {
  const rows = [...selected].map((id) => document.getElementById(`guest-row-${id}`)).filter(Boolean);
  const guests = rows.map((row) => ({ ...JSON.parse(row.dataset.guestFacts), state: row.dataset.state }));
  run(action, guests);
}

function refresh() {
  const present = new Set(boxes().map((box) => box.dataset.select));
  for (const id of [...selected]) if (!present.has(id)) selected.delete(id);
  for (const box of boxes()) {
    box.checked = selected.has(box.dataset.select);
    box.closest("tr").classList.toggle("selected", box.checked);
  }
  const bar = document.getElementById("bulk-bar");
  bar.hidden = selected.size === 0;
  document.getElementById("bulk-count").textContent = t("{count} selected", { count: selected.size });
  const all = document.getElementById("select-all");
  all.checked = selected.size > 0 && selected.size === present.size;
  all.indeterminate = selected.size > 0 && selected.size < present.size;
  const wanted = new URLSearchParams(location.search).get("sort") ?? "id";
  for (const head of document.querySelectorAll("[data-sort]")) {
    const up = wanted === head.dataset.sort;
    const down = wanted === `-${head.dataset.sort}`;
    head.closest("th").ariaSort = up ? "ascending" : down ? "descending" : "none";
  }
  document.getElementById("guest-table").hidden = present.size === 0;
}
