// A form of a guest's configuration: inputs marked data-key (and data-part, for property strings) become the API's keys.
// Only what was changed is sent; a key that lost its last value is deleted.

import * as widgets from "./widgets.js";

const filled = (form, template) =>
  template.replace(/\{(\w+)\}/g, (_, name) => form.elements[name]?.value ?? "");

/** The key an input belongs to: that of the slot chosen, for a new device. */
const keyOf = (form, input) => (input.dataset.key === "slot" ? form.elements._slot.value : input.dataset.key);

function valueOf(form, input) {
  if (input.dataset.widget) return widgets.valueOf(input);
  if (input.dataset.template === undefined) return input.value.trim();
  // the other template is for when this one misses something: an image brings its own size
  const chosen = form.elements._image?.value && input.dataset.else ? input.dataset.else : input.dataset.template;
  return filled(form, chosen);
}

export function config(fields, params, form) {
  const keys = new Map(); // key → { parts, changed, whole }
  for (const input of form.querySelectorAll("[data-key]")) {
    if (input.disabled) continue;
    const key = keyOf(form, input);
    const entry = keys.get(key) ?? { parts: [], changed: false, had: false };
    keys.set(key, entry);
    const value = valueOf(form, input);
    const was = input.dataset.widget ? widgets.wasOf(input) : (input.dataset.was ?? "");
    entry.had ||= was !== "";
    // a new device has its prefilled values yet to be sent
    entry.changed ||= value !== was.trim() || (form.elements._slot !== undefined && value !== "");
    if (!input.dataset.part) {
      entry.whole = "encoded" in input.dataset ? encodeURIComponent(value) : value;
      if ("encoded" in input.dataset) entry.changed = value !== decodeURIComponent(was).trim();
    } else if (value !== "") {
      entry.parts.push(`${input.dataset.part}=${value}`);
    }
  }
  const gone = [];
  for (const [key, entry] of keys) {
    if (!entry.changed) continue;
    const text = entry.whole ?? entry.parts.join(",");
    if (text !== "") params[key] = text;
    else if (entry.had) gone.push(key);
  }
  if (gone.length) params.delete = gone.join(",");
}

/** Parts that only some kinds of slot have. */
export function showSlots(form) {
  const slot = form.elements._slot;
  if (!slot) return;
  const family = slot.value.replace(/\d+$/, "");
  for (const field of form.querySelectorAll("[data-slots]")) {
    const shown = field.dataset.slots.split(" ").includes(family);
    field.hidden = !shown;
    for (const input of field.querySelectorAll("input, select, textarea")) input.disabled = !shown;
  }
}
