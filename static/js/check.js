// While a form is filled in, the server judges it by the schema it will be held to: nothing is done, errors stand at fields.

import { compose, target } from "./compose.js";
import { at } from "./place.js";

const WAIT_MS = 350;
const EMPTY_PART = /\/(\/|$)/; // a name in the address that is not given yet: there is no such method to ask about
const timers = new WeakMap();
const touched = new WeakMap(); // form → names of fields somebody has typed into
let turn = 0;

/** Judge the form a moment after the last change. `show(form, errors)` puts errors at fields. */
export function later(form, input, show) {
  if (!("check" in form.dataset)) return;
  const names = touched.get(form) ?? new Set();
  touched.set(form, names);
  const field = input?.closest?.("[data-field]")?.dataset.field;
  if (field) names.add(field);
  clearTimeout(timers.get(form));
  timers.set(form, setTimeout(() => judge(form, show), WAIT_MS));
}

export const isTouched = (form, field) => touched.get(form)?.has(field) ?? false;

async function judge(form, show) {
  const mine = ++turn;
  const [method, path] = target(form);
  if (!form.isConnected || form.dataset.busy || EMPTY_PART.test(path)) return;
  const { requests } = compose(form);
  const fields = new URLSearchParams(requests[0]);
  fields.set("_method", method);
  fields.set("_path", path);
  try {
    const reply = await fetch(at("/forms/check"), { method: "POST", body: fields });
    if (!reply.ok || mine !== turn || !form.isConnected || form.dataset.busy) return;
    show(form, (await reply.json()).errors ?? {});
  } catch {
    // unreachable: the form is judged when it is sent
  }
}
