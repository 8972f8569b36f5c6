// A page's scripts and style sheets arrive whole or the page is fetched again: a browser gives up what it is loading when
// the computer changes its network (ERR_NETWORK_CHANGED) or a connection breaks, and never asks for a module again.
// Not while somebody types: what they have written is worth more than a missing file. `data-whole` on the root says that
// all has arrived. Plain script, first in the head, so that it hears of all that follow.

(() => {
  const KEY = "fetched-again";
  const LIMIT = 3; // in a minute, of one address: a file that never comes must not have the page fetched for ever
  const WITHIN_MS = 60_000;
  const FIRST_WAIT_MS = 300;
  let begun = false;
  let typed = false;

  function tries() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(KEY) ?? "null");
      return kept?.page === location.href && Date.now() - kept.at < WITHIN_MS ? kept : { page: location.href, at: Date.now(), count: 0 };
    } catch {
      return null; // no storage: then nobody would count
    }
  }

  async function again(wait) {
    await new Promise((resolve) => setTimeout(resolve, wait));
    const answer = await fetch(location.href, { method: "HEAD", cache: "no-store" }).catch(() => null);
    if (typed) return;
    if (answer?.ok) location.reload(); // else what is here is better than the browser's page of errors
    else if (wait < WITHIN_MS) again(2 * wait);
  }

  addEventListener("input", () => (typed = true), true);
  addEventListener("load", () => {
    if (!begun) document.documentElement.dataset.whole = "";
  });
  addEventListener(
    "error",
    (event) => {
      const missing = event.target;
      if (begun || !(missing instanceof HTMLScriptElement || (missing instanceof HTMLLinkElement && missing.rel === "stylesheet"))) return;
      const kept = tries();
      if (!kept || kept.count >= LIMIT) return;
      begun = true;
      kept.count += 1;
      sessionStorage.setItem(KEY, JSON.stringify(kept));
      again(FIRST_WAIT_MS * kept.count);
    },
    true, // such errors do not bubble
  );
})();
