// What scripts say, in the reader's language: t("…") with the English text, {names} filled in.

const element = document.getElementById("words");
const words = element ? JSON.parse(element.textContent) : {};

export function t(text, values = {}) {
  return (words[text] ?? text).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}
