// Forms of OCI images: tags asked of a registry, credentials that go before a pull, a build's context, a container's volumes.

import { call } from "./api.js";
import { at } from "./place.js";
import { toast } from "./toast.js";
import { t } from "./words.js";

const TAGS_SHOWN = 500;
const BLOCK = 512;

export function setUp() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-oci-tags]");
    if (button) askTags(button);
  });
}

/** The registry a reference names, as the server takes it: the first part if it looks like a host, else Docker Hub. */
export function registryOf(reference) {
  const [first, ...rest] = reference.split("/");
  return rest.length && (/[.:]/.test(first) || first === "localhost") ? first : "docker.io";
}

async function askTags(button) {
  const input = button.form.elements.reference;
  const bare = input.value.trim().replace(/@.*$/, "").replace(/:[^:/]*$/, "");
  if (!bare) return input.focus();
  button.ariaBusy = "true";
  try {
    const tags = await call("GET", button.dataset.ociTags, { reference: bare });
    const options = tags.slice(-TAGS_SHOWN).reverse().map((tag) => Object.assign(document.createElement("option"), { value: `${bare}:${tag}` }));
    document.getElementById("oci-tags").replaceChildren(...options);
    toast(t("{count} tags: choose one in the field", { count: tags.length }));
    input.value = `${bare}:`;
    input.focus();
  } catch (error) {
    toast(error.message, "bad");
  } finally {
    button.ariaBusy = "false";
  }
}

/** The call that sets how a form's registry is reached, if the form says so: [[method, path, params]]. */
export function credentials(fields) {
  const username = fields.get("_username") ?? "";
  const password = fields.get("_password") ?? "";
  const transport = fields.get("_transport") ?? "verified";
  if (!username && !password && transport === "verified") return [];
  const registry = registryOf((fields.get("reference") ?? "").trim());
  return [["POST", "/appliance/oci/registries", { registry, transport, username, password }]];
}

/** Go on in the dialog with the image that has been pulled, unless it was closed meanwhile. */
export function pulled(form) {
  if (!form.dataset.then) return undefined;
  return async (params) => {
    if (!form.isConnected) return;
    const query = new URLSearchParams({ reference: params.reference, storage: form.elements._storage.value });
    await window.htmx.ajax("GET", at(`${form.dataset.then}?${query}`), { target: "#dialog", swap: "innerHTML" });
  };
}

/** The context of a build: the archive that was chosen, or one with nothing but the Dockerfile that was typed. */
export function context(fields) {
  const text = fields.get("_text");
  return text === null ? fields.get("_file") : new File([archive("Dockerfile", text)], "context.tar");
}

/** A tar archive (POSIX ustar) of one file. */
function archive(name, text) {
  const encoder = new TextEncoder();
  const data = encoder.encode(text.endsWith("\n") ? text : `${text}\n`);
  const head = new Uint8Array(BLOCK);
  const put = (offset, value) => head.set(encoder.encode(value), offset);
  const octal = (value, width) => value.toString(8).padStart(width, "0");
  put(0, name);
  put(100, "0000644\0" + "0000000\0" + "0000000\0" + `${octal(data.length, 11)}\0` + `${octal(0, 11)}\0`);
  put(148, " ".repeat(8));
  put(156, "0ustar\0" + "00");
  put(148, `${octal(head.reduce((sum, byte) => sum + byte, 0), 6)}\0 `);
  const padding = new Uint8Array((BLOCK - (data.length % BLOCK)) % BLOCK);
  return new Blob([head, data, padding, new Uint8Array(2 * BLOCK)]);
}
