// A command line into words as a shell splits it (POSIX.1-2017, Shell 2.2 Quoting). Nothing is expanded.

import { t } from "./words.js";

const OPERATORS = "|&;<>()$`*?";

/** { words, operator }: `operator` is the first unquoted character that only a shell understands, or "". Throws SyntaxError. */
export function split(line) {
  const words = [];
  let word = null;
  let operator = "";
  for (let at = 0; at < line.length; at += 1) {
    const character = line[at];
    if (/\s/.test(character)) {
      if (word !== null) words.push(word);
      word = null;
    } else if (character === "'") {
      const end = line.indexOf("'", at + 1);
      if (end < 0) throw new SyntaxError(t("A quotation mark is not closed."));
      word = (word ?? "") + line.slice(at + 1, end);
      at = end;
    } else if (character === '"') {
      const [text, end] = doubleQuoted(line, at + 1);
      word = (word ?? "") + text;
      at = end;
    } else if (character === "\\") {
      at += 1;
      if (at === line.length) throw new SyntaxError(t("There is nothing after the backslash."));
      word = (word ?? "") + line[at];
    } else {
      if (OPERATORS.includes(character)) operator ||= character;
      word = (word ?? "") + character;
    }
  }
  if (word !== null) words.push(word);
  return { words, operator };
}

/** [text, place of the closing mark]. */
function doubleQuoted(line, from) {
  let text = "";
  for (let at = from; at < line.length; at += 1) {
    if (line[at] === '"') return [text, at];
    if (line[at] === "\\" && '$`"\\'.includes(line[at + 1])) at += 1;
    text += line[at];
  }
  throw new SyntaxError(t("A quotation mark is not closed."));
}
