// A window with nothing but a console: the websocket for the guest's state, full screen.

import "./console.js";
import { connect } from "./live.js";

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-fullscreen]");
  if (!button) return;
  if (document.fullscreenElement) document.exitFullscreen();
  else document.querySelector(button.dataset.fullscreen).requestFullscreen();
});
connect();
