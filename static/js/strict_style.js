// xterm.js writes <style> elements and style attributes, which `style-src 'self'` forbids. What scripts do through the
// CSS object model is allowed: such elements become constructed style sheets here, such attributes declarations.
// Import it before xterm.js.

const createElement = document.createElement;
const setAttribute = Element.prototype.setAttribute;

document.createElement = function (name, ...rest) {
  if (String(name).toLowerCase() !== "style") return createElement.call(this, name, ...rest);
  const element = createElement.call(this, "template"); // even an empty <style> is refused
  asSheet(element);
  return element;
};

Element.prototype.setAttribute = function (name, value) {
  if (name === "style" && this.style) this.style.cssText = value;
  else setAttribute.call(this, name, value);
};

function asSheet(element) {
  const sheet = new CSSStyleSheet();
  let text = "";
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  Object.defineProperty(element, "textContent", {
    get: () => text,
    set: (css) => {
      text = String(css);
      sheet.replaceSync(text);
    },
  });
  element.remove = () => {
    Element.prototype.remove.call(element);
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((each) => each !== sheet);
  };
}
