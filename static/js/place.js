// Where the appliance is published: "" at the root, "/prefix" behind a proxy that says so.

export const BASE = document.documentElement.dataset.base ?? "";

/** The address of a path of ours for this browser. */
export const at = (path) => BASE + path;

/** The address of a websocket of ours. */
export function socketAt(path) {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  return `${scheme}//${location.host}${BASE}${path}`;
}

/** This page's path with its query, as the appliance knows it. */
export const here = () => location.pathname.slice(BASE.length) + location.search;
