// The API explorer: each method of the list gets a form made from the OpenAPI document, and is called as this user.
// What is shown is what was sent: the request, the same as curl and on the command line, the reply as text.

import { csrf } from "./api.js";
import { at } from "./place.js";
import { icon } from "./parts.js";
import { t } from "./words.js";

const REPLY_LIMIT = 200000;
let documentLoading = null;

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(window.document.createElement(name), properties);
  made.append(...children);
  return made;
};

/** The document, fetched once. */
function spec() {
  documentLoading ??= fetch(at("/api2/openapi.json")).then((reply) => reply.json());
  return documentLoading;
}

function resolved(schema, components) {
  const name = schema?.$ref?.split("/").pop();
  return name ? { ...components[name], ...schema } : (schema ?? {});
}

function field(operation, name, schema, place, required) {
  const id = `try-${operation.operationId}-${place}-${name}`;
  let input;
  if (schema.enum && place !== "rest") {
    input = element("select", { className: "input" }, ...(required ? [] : [element("option", { value: "", textContent: "" })]));
    for (const value of schema.enum) input.append(element("option", { value: String(value), textContent: String(value) }));
  } else if (schema.type === "boolean") {
    input = element("select", { className: "input" }, ...["", "1", "0"].map((value) => element("option", { value, textContent: value })));
  } else {
    input = element("input", { className: "input mono", autocomplete: "off", spellcheck: false, type: /password|secret/.test(name) ? "password" : "text" });
    if (schema.default !== undefined && typeof schema.default !== "object") input.placeholder = String(schema.default);
  }
  input.id = id;
  input.name = name;
  input.required = required;
  input.dataset.place = place;
  if (place === "path" && name === "node") input.value = window.document.querySelector('meta[name="node"]').content;
  const label = element("label", { htmlFor: id }, name, required ? element("span", { className: "muted", textContent: ` ${t("required")}` }) : "");
  return element("div", { className: "field" }, label, input, element("p", { className: "hint", textContent: schema.description ?? "" }));
}

/** The form of one method. */
function form(path, verb, operation, components) {
  const made = element("form", { className: "try" });
  const fields = element("div", { className: "fields" });
  for (const parameter of operation.parameters ?? []) {
    fields.append(field(operation, parameter.name, resolved(parameter.schema, components), parameter.in, Boolean(parameter.required)));
  }
  const content = operation.requestBody?.content ?? {};
  const isUpload = "multipart/form-data" in content;
  const body = resolved(Object.values(content)[0]?.schema, components);
  for (const [name, schema] of Object.entries(body.properties ?? {})) {
    fields.append(field(operation, name, resolved(schema, components), "body", (body.required ?? []).includes(name)));
  }
  if (body.patternProperties) {
    const id = `try-${operation.operationId}-more`;
    const more = element("textarea", { className: "input mono", id, rows: 2, spellcheck: false, placeholder: "net0=virtio,bridge=vmbr0" });
    more.dataset.place = "rest";
    fields.append(element("div", { className: "field full" }, element("label", { htmlFor: id, textContent: t("Further parameters, one a line: name=value") }), more));
  }
  if (isUpload) made.append(element("p", { className: "notice warn", textContent: t("Files are uploaded on the page of the storage.") }));
  const changes = verb !== "get";
  const send = element("button", { className: changes ? "button danger primary" : "button primary", disabled: isUpload }, icon("play"), t("Send {verb}", { verb: verb.toUpperCase() }));
  const note = element("span", { className: "muted small", textContent: changes ? t("This is done for real.") : "" });
  const output = element("div", { className: "try-output" });
  made.append(fields, element("div", { className: "button-group" }, send, note), output);
  made.addEventListener("submit", async (event) => {
    event.preventDefault();
    send.ariaBusy = "true";
    try {
      await run(made, path, verb, output);
    } finally {
      send.ariaBusy = "false";
    }
  });
  return made;
}

function values(made) {
  const found = { path: {}, query: [], body: [] };
  for (const input of made.querySelectorAll("[data-place]")) {
    const place = input.dataset.place;
    if (place === "rest") {
      for (const line of input.value.split("\n")) {
        const cut = line.indexOf("=");
        if (cut > 0) found.body.push([line.slice(0, cut).trim(), line.slice(cut + 1)]);
      }
    } else if (place === "path") {
      found.path[input.name] = input.value;
    } else if (input.value !== "") {
      found[place === "query" ? "query" : "body"].push([input.name, input.value]);
    }
  }
  return found;
}

const quoted = (text) => (/^[A-Za-z0-9_/.:=@,%-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

async function run(made, path, verb, output) {
  const given = values(made);
  const filled = path.replace(/\{(\w+)\}/g, (whole, name) => encodeURIComponent(given.path[name] ?? ""));
  const query = new URLSearchParams(given.query).toString();
  const address = at(filled) + (query ? `?${query}` : "");
  const method = verb.toUpperCase();
  const words = { get: "get", post: "create", put: "set", delete: "delete" };
  const cli = [`appliance ${words[verb]} ${quoted(decodeURIComponent(filled.replace("/api2/json", "")))}`, ...[...given.query, ...given.body].map(([name, value]) => `--${name} ${quoted(value)}`)].join(" ");
  const curl = [`curl -H 'Authorization: PVEAPIToken=USER@REALM!TOKEN=SECRET'`, method === "GET" ? "" : `-X ${method}`, ...given.body.map(([name, value]) => `--data-urlencode ${quoted(`${name}=${value}`)}`), quoted(location.origin + address)].filter(Boolean).join(" ");
  const began = performance.now();
  let head;
  let text;
  try {
    const reply = await fetch(address, {
      method,
      headers: method === "GET" ? {} : { CSRFPreventionToken: csrf() },
      body: given.body.length > 0 || method === "POST" || method === "PUT" ? new URLSearchParams(given.body) : undefined,
    });
    text = await reply.text();
    head = `${reply.status} ${reply.statusText} · ${Math.round(performance.now() - began)} ms`;
    output.dataset.outcome = reply.ok ? "ok" : "bad";
  } catch {
    head = t("The appliance cannot be reached.");
    text = "";
    output.dataset.outcome = "bad";
  }
  output.replaceChildren(
    element("p", { className: "try-status", textContent: head, role: "status" }),
    element("pre", { className: "try-reply", textContent: pretty(text), tabIndex: 0 }),
    element("p", { className: "small muted" }, t("Command line"), ": ", element("code", { textContent: cli })),
    element("p", { className: "small muted" }, "curl: ", element("code", { textContent: curl })),
  );
}

function pretty(text) {
  const shown = text.length > REPLY_LIMIT ? `${text.slice(0, REPLY_LIMIT)}\n…` : text;
  try {
    return text.length > REPLY_LIMIT ? shown : JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return shown;
  }
}

function find(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const section of document.querySelectorAll(".api-group")) {
    let shown = 0;
    for (const each of section.querySelectorAll(".api-operation")) {
      const summary = each.querySelector("summary").textContent.toLowerCase();
      each.hidden = !words.every((word) => summary.includes(word));
      if (!each.hidden) shown += 1;
    }
    section.hidden = shown === 0;
  }
}

document.addEventListener(
  "toggle",
  async (event) => {
    const details = event.target;
    if (!details.matches?.(".api-operation") || !details.open || details.querySelector(".try")) return;
    const { paths, components } = await spec();
    const path = `/api2/json${details.dataset.path === "/" ? "" : details.dataset.path}`;
    const verb = details.dataset.verb;
    const operation = paths[path]?.[verb];
    if (operation && !details.querySelector(".try")) details.append(form(path, verb, operation, components.schemas));
  },
  true,
);
document.getElementById("api-find")?.addEventListener("input", (event) => find(event.target.value));
const wanted = location.hash ? document.getElementById(location.hash.slice(1)) : null;
if (wanted?.matches(".api-operation")) {
  wanted.open = true;
  wanted.scrollIntoView();
}
