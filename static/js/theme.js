// Runs before the first paint, so that the chosen theme and the closed tree never flash. The toggle is in app.js.
(() => {
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  if (localStorage.getItem("tree") === "closed") document.documentElement.dataset.tree = "closed";
})();
