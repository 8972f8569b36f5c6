// Graphs of figures over time (uPlot): an hour to a year from the API's rrddata, the newest points by push.
// Dragging zooms all graphs of a page together, a double click shows everything again; by keyboard: + − 0 and arrows.

import { call } from "./api.js";
import { follow, onData } from "./live.js";
import { size } from "./text.js";
import { t } from "./words.js";

const HEIGHT = 150;
const GAP_STEPS = 2.5;
const STEPS_S = { hour: 60, day: 60, week: 1800, month: 1800, year: 21600 };
const SPANS_S = { hour: 3600, day: 86400, week: 7 * 86400, month: 31 * 86400, year: 366 * 86400 };
const LIVE = new Set(["hour", "day"]);
const COLOURS = ["--accent", "--graph-2", "--graph-3"];

const percent = (value) => (value == null ? "–" : `${(value * 100).toFixed(value < 0.0995 ? 1 : 0)} %`);
const share = (value) => (value == null ? "–" : `${value.toFixed(value < 9.95 ? 1 : 0)} %`);
const plain = (value) => (value == null ? "–" : value.toFixed(2));
const perSecond = (value) => (value == null ? "–" : `${size(value)}/s`);

const line = (name, word, extra = {}) => ({ name, word, ...extra });
const BINARY = Array.from({ length: 60 }, (_, power) => 2 ** power); // ticks of sizes: 512 MiB, 1 GiB …
const SETS = {
  guestcpu: { say: percent, top: 1, lines: [line("cpu", t("CPU"))] },
  cpu: { say: percent, top: 1, lines: [line("cpu", t("CPU")), line("iowait", t("I/O wait"))] },
  load: { say: plain, lines: [line("loadavg", t("Load")), line("maxcpu", t("CPUs"), { limit: true })] },
  memory: { say: size, steps: BINARY, lines: [line("memused", t("Used")), line("memtotal", t("Total"), { limit: true })] },
  guestmemory: { say: size, steps: BINARY, lines: [line("mem", t("Used")), line("maxmem", t("Total"), { limit: true })] },
  network: { say: perSecond, steps: BINARY, lines: [line("netin", t("In")), line("netout", t("Out"))] },
  disk: { say: perSecond, steps: BINARY, lines: [line("diskread", t("Read")), line("diskwrite", t("Written"))] },
  pressure: {
    say: share,
    lines: [line("pressurecpusome", t("CPU")), line("pressureiosome", t("I/O")), line("pressurememorysome", t("Memory"))],
  },
  space: { say: size, steps: BINARY, lines: [line("used", t("Used")), line("total", t("Total"), { limit: true })] },
};

const root = document.querySelector("[data-graphs]");
let timeframe = "hour";
let fold = "AVERAGE";
let points = [];
let loads = 0;
const plots = [];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A theme's colour as the browser computes it: `light-dark()` is not for canvases. */
function computed(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  root.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value || colour(name);
}

function columns(set) {
  const times = [];
  const values = set.lines.map(() => []);
  const longest = STEPS_S[timeframe] * GAP_STEPS;
  let last = null;
  for (const point of points) {
    if (last !== null && point.time - last > longest) {
      times.push(last + 1);
      for (const each of values) each.push(null);
    }
    times.push(point.time);
    set.lines.forEach(({ name }, at) => values[at].push(point[name] ?? null));
    last = point.time;
  }
  return [times, ...values];
}

function make(figure) {
  const set = SETS[figure.dataset.graph];
  const box = figure.querySelector(".plot");
  const grid = { stroke: computed("--border"), width: 1 };
  const axis = { stroke: computed("--text-3"), grid, ticks: grid, font: `11px ${colour("--font")}` };
  const options = {
    width: Math.max(200, box.clientWidth),
    height: HEIGHT,
    cursor: { sync: { key: "page" }, drag: { x: true, y: false, uni: 20 }, points: { size: 6 } },
    legend: { show: false },
    scales: { x: { time: true }, y: { range: (plot, low, high) => [0, set.top ?? (high > 0 ? high * 1.1 : 1)] } },
    axes: [
      { ...axis, size: 30, space: 70 },
      { ...axis, size: 64, values: (plot, ticks) => ticks.map(set.say), space: 34, ...(set.steps ? { incrs: set.steps } : {}) },
    ],
    series: [
      {},
      ...set.lines.map((each, at) => {
        const stroke = each.limit ? computed("--text-3") : computed(COLOURS[at]);
        return {
          label: each.word,
          stroke,
          width: each.limit ? 1 : 1.75,
          dash: each.limit ? [4, 4] : undefined,
          fill: at === 0 ? faint(stroke) : undefined,
          points: { show: false },
          spanGaps: false,
        };
      }),
    ],
    hooks: { setCursor: [(plot) => tell(figure, set, plot)], setSelect: [zoomed] },
  };
  const plot = new window.uPlot(options, columns(set), box);
  plots.push({ plot, figure, set });
  tell(figure, set, plot);
}

const faint = (stroke) => stroke.replace(/^rgb\((.*)\)$/, "rgba($1, 0.12)");

/** What the caption says: values under the cursor, or the newest. */
function tell(figure, set, plot) {
  const data = plot.data;
  const at = plot.cursor.idx ?? data[0].length - 1;
  const parts = figure.querySelectorAll("[data-value]");
  set.lines.forEach((each, index) => {
    if (parts[index]) parts[index].textContent = set.say(data[index + 1]?.[at]);
  });
  figure.querySelector("[data-when]").textContent =
    plot.cursor.idx == null || !data[0][at] ? "" : new Date(data[0][at] * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "medium" });
}

function zoomed(plot) {
  if (plot.select.width === 0) return;
  const [from, to] = [plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x")];
  setRange(from, to);
  for (const each of plots) each.plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
}

function setRange(min, max) {
  if (max - min < STEPS_S[timeframe]) return;
  for (const { plot } of plots) plot.setScale("x", { min, max });
  document.getElementById("graph-reset").hidden = false;
}

function everything() {
  document.getElementById("graph-reset").hidden = true;
  const now = Date.now() / 1000;
  for (const { plot } of plots) plot.setScale("x", { min: now - SPANS_S[timeframe], max: now });
}

function refresh() {
  const isZoomed = !document.getElementById("graph-reset").hidden;
  for (const { plot, set, figure } of plots) {
    const { min, max } = plot.scales.x;
    plot.setData(columns(set), false);
    plot.setScale("x", isZoomed ? { min, max } : { min: Date.now() / 1000 - SPANS_S[timeframe], max: Date.now() / 1000 });
    tell(figure, set, plot);
  }
  document.getElementById("graph-none").hidden = points.length > 0;
}

async function load() {
  const mine = ++loads;
  root.setAttribute("aria-busy", "true");
  try {
    const found = await call("GET", root.dataset.graphs, { timeframe, cf: fold });
    if (mine !== loads) return; // another choice was made meanwhile
    points = found;
    document.getElementById("graph-problem").hidden = true;
  } catch (error) {
    if (mine !== loads) return;
    document.getElementById("graph-problem").textContent = error.message;
    document.getElementById("graph-problem").hidden = false;
  }
  root.setAttribute("aria-busy", "false");
  document.getElementById("graph-reset").hidden = true;
  refresh();
}

function rebuild() {
  for (const { plot } of plots.splice(0)) plot.destroy();
  for (const figure of root.querySelectorAll("[data-graph]")) make(figure);
  everything();
}

function keyed(event) {
  const figure = event.target.closest(".graph");
  const each = plots.find((one) => one.figure === figure);
  if (!each) return;
  const { min, max } = each.plot.scales.x;
  const middle = (min + max) / 2;
  const width = max - min;
  const changes = {
    "+": [middle - width / 4, middle + width / 4],
    "-": [middle - width, Math.min(Date.now() / 1000, middle + width)],
    ArrowLeft: [min - width / 4, max - width / 4],
    ArrowRight: [min + width / 4, max + width / 4],
  };
  if (event.key === "0") everything();
  else if (event.key in changes) setRange(...changes[event.key]);
  else return;
  event.preventDefault();
}

if (root) {
  for (const figure of root.querySelectorAll("[data-graph]")) {
    const list = figure.querySelector(".graph-lines");
    SETS[figure.dataset.graph].lines.forEach((each, at) => {
      const item = document.createElement("span");
      item.className = each.limit ? "graph-line limit" : `graph-line line-${at + 1}`;
      const value = document.createElement("span");
      value.className = "num";
      value.dataset.value = "";
      item.append(`${each.word} `, value);
      list.append(item);
    });
  }
  root.addEventListener("change", (event) => {
    if (event.target.name === "timeframe") timeframe = event.target.value;
    if (event.target.name === "cf") fold = event.target.checked ? "MAX" : "AVERAGE";
    load();
  });
  document.getElementById("graph-reset").addEventListener("click", everything);
  root.addEventListener("dblclick", everything);
  root.addEventListener("keydown", keyed);
  onData("figures", ({ series, time, values }) => {
    if (series !== root.dataset.series || !LIVE.has(timeframe) || time <= (points.at(-1)?.time ?? 0)) return;
    points.push({ time, ...values });
    while (points.length > 0 && points[0].time < time - SPANS_S[timeframe]) points.shift();
    refresh();
  });
  document.addEventListener("live:again", load);
  new ResizeObserver(() => {
    for (const { plot, figure } of plots) {
      const width = figure.querySelector(".plot").clientWidth;
      if (width > 0 && width !== plot.width) plot.setSize({ width, height: HEIGHT });
    }
  }).observe(root);
  new MutationObserver(rebuild).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
  rebuild();
  load();
  follow(`series:${root.dataset.series}`);
}
