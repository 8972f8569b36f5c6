// The pages with consoles: one terminal or display of a guest, or up to sixteen tiles.

import { DisplayView } from "./display_view.js";
import { TerminalView } from "./terminal_view.js";

for (const section of document.querySelectorAll("[data-console]")) {
  const view = new TerminalView(section);
  if (!("tile" in section.dataset)) view.terminal.focus();
}
for (const section of document.querySelectorAll("[data-display]")) new DisplayView(section);
