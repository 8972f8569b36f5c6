// Text for people: amounts, and what a guest says with every character seen.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const UNSEEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const CARET = 0x40; // "^[" is ESC, as terminals and cat -v write it

/** Bytes: "1.5 GiB". */
export function size(value) {
  if (value == null) return "–";
  let unit = 0;
  let amount = value;
  while (Math.abs(amount) >= 1023.5 && unit < UNITS.length - 1) [amount, unit] = [amount / 1024, unit + 1];
  return `${unit === 0 || amount >= 99.95 ? amount.toFixed(0) : amount.toFixed(1)} ${UNITS[unit]}`;
}

/** Text in which controls and what changes the direction of writing are seen: "^[[31m", "‹U+202E›". */
export function visible(text) {
  return text.replaceAll("\r\n", "\n").replace(UNSEEN, (character) => {
    const code = character.codePointAt(0);
    if (code < 0x20 || code === 0x7f) return `^${String.fromCodePoint(code ^ CARET)}`;
    return `‹U+${code.toString(16).toUpperCase().padStart(4, "0")}›`;
  });
}

/** Whether a text has characters that are not seen, or that change the direction of writing. */
export const hasUnseen = (text) => text.search(UNSEEN) >= 0;
