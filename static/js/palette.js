// Ctrl-K: finds guests, nodes, storages, pools, tags, pages and settings as one types, and runs actions ("stop shop").

import { actionsFor, openDialog, stateWord } from "./actions.js";
import { onData } from "./live.js";
import { icon } from "./parts.js";
import { at as placed } from "./place.js";
import { allRows, hrefOf, symbolOf } from "./tree.js";
import { t } from "./words.js";

const SHOWN = 12;
const KINDS = { qemu: t("Virtual machine"), lxc: t("Container"), node: t("Node"), storage: t("Storage"), pool: t("Pool") };

let items = [];
let chosen = 0;
let known = null; // what can be found, made when the palette opens and when the tree has changed

const dialog = () => document.getElementById("palette");
const input = () => document.getElementById("palette-input");
const list = () => document.getElementById("palette-list");

export function setUp() {
  if (!dialog()) return;
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k" && !event.target.closest(".console")) {
      event.preventDefault();
      if (dialog().open) dialog().close();
      else open();
    }
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-palette]")) open();
  });
  input().addEventListener("input", search);
  onData("tree", () => (known = null));
  input().addEventListener("keydown", keyed);
  dialog().addEventListener("click", (event) => {
    if (event.target === dialog()) dialog().close();
    const option = event.target.closest("[role=option]");
    if (option) run(items[Number(option.dataset.at)]);
  });
}

function open() {
  if (document.getElementById("dialog").open) return;
  input().value = "";
  known = null;
  dialog().showModal();
  search();
}

/** How well `text` answers `word`: 0 not at all. Pure. */
export function score(text, word) {
  const at = text.indexOf(word);
  if (at < 0) return 0;
  if (text === word) return 100;
  if (at === 0) return 60;
  return /[\s\-_.]/.test(text[at - 1]) ? 40 : 20;
}

function rank(candidate, words) {
  let sum = 0;
  for (const word of words) {
    let best = 0;
    for (const [text, weight] of candidate.texts) best = Math.max(best, score(text, word) * weight);
    if (best === 0) return 0;
    sum += best;
  }
  return sum + (candidate.bonus ?? 0);
}

function places() {
  return [...document.querySelectorAll("#palette-places > *")].map((element) => ({
    word: element.dataset.word,
    note: element.dataset.note,
    symbol: element.dataset.icon,
    texts: [[element.dataset.word.toLowerCase(), 1], [(element.dataset.search ?? "").toLowerCase(), 0.6]],
    bonus: 2,
    run: element.dataset.dialog ? () => openDialog(element.dataset.dialog) : () => location.assign(element.dataset.href),
  }));
}

function things() {
  const found = places();
  const tags = new Map();
  for (const row of allRows()) {
    const names = [[row.name.toLowerCase(), 1], [String(row.vmid || ""), 1], [KINDS[row.type].toLowerCase(), 0.3], [row.tags.join(" ").toLowerCase(), 0.4]];
    found.push({
      word: row.name,
      note: row.isGuest ? `${KINDS[row.type]} ${row.vmid} · ${stateWord(row)}` : KINDS[row.type],
      symbol: symbolOf(row),
      state: row.state,
      texts: names,
      bonus: 5,
      run: () => location.assign(hrefOf(row)),
    });
    for (const tag of row.tags) tags.set(tag, (tags.get(tag) ?? 0) + 1);
  }
  for (const [tag, count] of tags) {
    found.push({ word: tag, note: `${t("Tag")} · ${count}`, symbol: "tag", texts: [[tag.toLowerCase(), 0.9]], run: () => location.assign(placed(`/?tag=${encodeURIComponent(tag)}`)) });
  }
  return found;
}

/** Actions on what is called so: "stop shop". */
function deeds() {
  const found = [];
  for (const row of allRows()) {
    const names = [[row.name.toLowerCase(), 1], [String(row.vmid || ""), 1]];
    for (const action of actionsFor(row)) {
      if (action.id === "open") continue;
      const verb = action.word.replace("…", "").toLowerCase();
      found.push({
        word: `${action.word.replace("…", "")} ${row.name}`,
        note: `${KINDS[row.type]} ${row.vmid} · ${stateWord(row)}`,
        symbol: action.symbol,
        texts: [[verb, 1.2], [action.id, 1.2], ...names],
        needsVerb: [verb, action.id],
        run: action.run,
      });
    }
  }
  return found;
}

function search() {
  const words = input().value.toLowerCase().split(/\s+/).filter(Boolean);
  known ??= { things: things(), deeds: null };
  if (words.length > 1) known.deeds ??= deeds();
  const found = words.length > 1 ? [...known.things, ...known.deeds] : known.things;
  items =
    words.length === 0
      ? found.filter((each) => each.bonus === 2)
      : found
          .filter((each) => !each.needsVerb || words.some((word) => word.length > 1 && each.needsVerb.some((verb) => verb.startsWith(word))))
          .map((each) => [rank(each, words), each])
          .filter(([points]) => points > 0)
          .sort(([a], [b]) => b - a)
          .map(([, each]) => each);
  items = items.slice(0, SHOWN);
  chosen = 0;
  show();
}

function show() {
  list().replaceChildren(
    ...items.map((item, at) => {
      const option = document.createElement("li");
      option.role = "option";
      option.id = `palette-${at}`;
      option.dataset.at = String(at);
      const symbol = document.createElement("span");
      symbol.className = "tree-symbol";
      symbol.append(icon(item.symbol));
      if (item.state) symbol.dataset.state = item.state;
      const word = document.createElement("span");
      word.className = "palette-word";
      word.textContent = item.word;
      word.dir = "auto";
      const note = document.createElement("span");
      note.className = "palette-note";
      note.textContent = item.note ?? "";
      option.append(symbol, word, note);
      return option;
    }),
  );
  document.getElementById("palette-none").hidden = items.length > 0;
  mark();
}

function mark() {
  for (const option of list().children) option.ariaSelected = String(Number(option.dataset.at) === chosen);
  const option = list().children[chosen];
  option?.scrollIntoView({ block: "nearest" });
  if (option) input().setAttribute("aria-activedescendant", option.id);
  else input().removeAttribute("aria-activedescendant");
}

function keyed(event) {
  const moves = { ArrowDown: 1, ArrowUp: -1 };
  if (event.key in moves && items.length > 0) {
    event.preventDefault();
    chosen = (chosen + moves[event.key] + items.length) % items.length;
    mark();
  } else if (event.key === "Enter") {
    event.preventDefault();
    run(items[chosen]);
  }
}

function run(item) {
  if (!item) return;
  dialog().close();
  item.run();
}
