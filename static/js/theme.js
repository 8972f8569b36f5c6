// Runs before the first paint, so that the chosen theme never flashes. The toggle is in app.js.
(() => {
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
