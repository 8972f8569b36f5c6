// Short messages that go by themselves; errors stay until they are closed.

const STAY_MS = 5000;
const LIMIT = 4;

export function toast(text, kind = "") {
  const box = document.getElementById("toasts");
  const item = document.createElement("div");
  item.className = `toast ${kind}`;
  const words = document.createElement("p");
  words.textContent = text;
  const close = document.createElement("button");
  close.type = "button";
  close.className = "button quiet small icon-only";
  close.ariaLabel = "Dismiss";
  close.textContent = "×";
  close.addEventListener("click", () => item.remove());
  item.append(words, close);
  box.append(item);
  while (box.childElementCount > LIMIT) box.firstElementChild.remove();
  if (kind !== "bad") setTimeout(() => item.remove(), STAY_MS);
}
