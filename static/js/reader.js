// How this browser shows the appliance: language and colours, chosen on the account page.

import { BASE } from "./place.js";

const YEAR_S = 365 * 24 * 3600;

export function setUp() {
  const theme = document.querySelector("[data-theme-choice]");
  if (theme) theme.value = localStorage.getItem("theme") ?? "system";
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-language]")) {
      const secure = location.protocol === "https:" ? "; Secure" : "";
      document.cookie = `language=${event.target.value}; Path=${BASE || "/"}; Max-Age=${YEAR_S}; SameSite=Lax${secure}`;
      location.reload();
    }
    if (event.target.matches("[data-theme-choice]")) choose(event.target.value);
  });
}

function choose(theme) {
  if (theme === "system") {
    localStorage.removeItem("theme");
    delete document.documentElement.dataset.theme;
  } else {
    localStorage.setItem("theme", theme);
    document.documentElement.dataset.theme = theme;
  }
}
