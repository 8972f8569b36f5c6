// The public API, as any client uses it: form bodies, the CSRF token, PVE's errors.

import { save as saveDraft } from "./drafts.js";
import { at, here } from "./place.js";
import { t } from "./words.js";

const PREFIX = at("/api2/json");
const RENEW_EVERY_MS = 25 * 60 * 1000;

const csrfMeta = () => document.querySelector('meta[name="csrf-token"]');
export const csrf = () => csrfMeta()?.content ?? "";
export const user = () => document.querySelector(".whoami span")?.textContent ?? "";

export class ApiError extends Error {
  constructor(status, message, errors = {}) {
    super(message);
    this.status = status;
    this.errors = errors; // parameter → what is wrong with it
  }
}

/** Call `method path` with parameters; resolves to the reply's data, rejects with ApiError. */
export async function call(method, path, params = {}) {
  const fields = new URLSearchParams(params);
  const inQuery = method === "GET" || method === "DELETE";
  const query = inQuery && [...fields].length ? `?${fields}` : "";
  let reply;
  try {
    reply = await fetch(PREFIX + path + query, {
      method,
      headers: { CSRFPreventionToken: csrf() },
      body: inQuery ? undefined : fields,
    });
  } catch {
    throw new ApiError(0, t("The appliance cannot be reached."));
  }
  return read(reply.status, await reply.text());
}

/** The data of a reply's text; throws ApiError. A session that has ended leads to the login page. */
export function read(status, text) {
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    body = { message: text.slice(0, 300) };
  }
  if (status === 401) toLogin();
  if (status >= 400) throw new ApiError(status, body.message || `error ${status}`, body.errors || {});
  return body.data;
}

export function toLogin() {
  saveDraft();
  location.assign(`${at("/login")}?next=${encodeURIComponent(here())}`);
}

/** Renew the session; true if there still is one. */
export async function renew() {
  try {
    const reply = await fetch(at("/session/renew"), { method: "POST", headers: { CSRFPreventionToken: csrf() } });
    if (!reply.ok) return reply.status !== 401 && reply.status !== 403;
    const meta = csrfMeta();
    if (meta) meta.content = (await reply.json()).csrf;
  } catch {
    return true; // unreachable is not logged out
  }
  return true;
}

setInterval(renew, RENEW_EVERY_MS);
