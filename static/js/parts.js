// Small elements that scripts make, as the macros of templates/macros/ui.html do on the server.

const SVG = "http://www.w3.org/2000/svg";
const HUES = 12;

/** An icon of icons.svg. */
export function icon(name, extra = "") {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", `icon ${extra}`.trim());
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `${document.body.dataset.icons}#${name}`);
  svg.append(use);
  return svg;
}

/** The same number for a tag as `render.tag_hue`: its colour among those of the theme. */
export function tagHue(tag) {
  let hash = 2166136261;
  for (const byte of new TextEncoder().encode(tag)) hash = Math.imul(hash ^ byte, 16777619) >>> 0;
  return hash % HUES;
}

/** A tag, as a word or as a dot. */
export function tagElement(tag, shape = "") {
  const element = document.createElement("span");
  element.className = shape === "dot" ? "tag-dot" : "tag";
  element.dataset.hue = String(tagHue(tag));
  element.dataset.tag = tag;
  if (shape !== "dot") element.textContent = tag;
  colour(element);
  return element;
}

/** Colours that were chosen for tags ("tag-style" of the cluster's options): tag → [background, text]. */
const chosen = new Map(
  (document.querySelector('meta[name="tag-colors"]')?.content ?? "")
    .split(";")
    .map((each) => each.match(/^(.+?):([0-9a-fA-F]{6})(?::([0-9a-fA-F]{6}))?$/))
    .filter(Boolean)
    .map(([, tag, back, text]) => [tag, [`#${back}`, text ? `#${text}` : readable(back)]]),
);

function readable(back) {
  const [red, green, blue] = [0, 2, 4].map((at) => parseInt(back.slice(at, at + 2), 16));
  return red * 0.299 + green * 0.587 + blue * 0.114 > 150 ? "#000" : "#fff";
}

function colour(element) {
  const colours = chosen.get(element.dataset.tag);
  if (!colours) return;
  element.style.background = colours[0];
  element.style.color = colours[1];
  element.style.borderColor = "transparent";
}

/** Give the tags of the page their chosen colours. */
export function colourTags() {
  if (chosen.size === 0) return;
  for (const element of document.querySelectorAll("[data-tag]")) colour(element);
}
