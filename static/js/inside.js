// The tab "Inside" of a guest's page: whether it can be reached is asked again when its state changes; what was typed, and
// what was said, stays. What a VM's agent says of the system is asked for once it answers.

import { insideOf } from "./inside_api.js";
import { ProgramForm } from "./inside_program.js";
import { FileView } from "./inside_files.js";
import { setUpUploads } from "./inside_upload.js";
import { onChange } from "./live.js";
import { at } from "./place.js";

const section = document.querySelector("[data-inside]");
const inside = insideOf(section);
const state = () => document.getElementById("guest-head").dataset.state;
let known = state();

const ask = () => window.htmx.ajax("GET", at(`/parts/guest/${section.dataset.guest}/reach`), { target: "#guest-reach", swap: "outerHTML" });

onChange(() => {
  if (state() === known) return;
  known = state();
  ask();
});
const reach = () => document.getElementById("guest-reach").dataset.reach;

/** What a VM's agent says is asked for once it is known to answer. */
function askAgent() {
  const card = document.getElementById("guest-agent");
  if (card && reach() === "ready") window.htmx.trigger(card, "ask");
}

document.body.addEventListener("htmx:afterSwap", (event) => event.detail.target.id === "guest-reach" && askAgent());
document.addEventListener("form:done", () => (reach() === "ready" ? askAgent() : ask())); // the agent may be on now, or frozen

const program = section.querySelector("[data-program]");
if (program) new ProgramForm(program, inside);
const files = section.querySelector("[data-files]");
if (files) setUpUploads(inside, new FileView(files, inside, section.dataset));
