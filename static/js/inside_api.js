// What can be done inside a guest, the same for both kinds: a container by its own methods, a VM by its guest agent.
//
//   run(program, say, signal)   a program; say("stdout" | "stderr", text) as it comes; resolves to how it ended
//   open(path)                  { directory, entries, more } or { bytes, more, info }; an ApiError of status 404 without one
//   exists(path)                what is there, null if nothing is
//   write(path, bytes, how)     replaces a file; how: { expected, mode, parents, progress, signal }
//   download(path)              gives it to the browser

import { ApiError, call, csrf, read } from "./api.js";
import { at } from "./place.js";
import { size } from "./text.js";
import { t } from "./words.js";

const POLL_MS = [200, 300, 500, 1000, 2000];
const PIECE_BYTES = 4 << 20;
const DOWNLOAD_LIMIT_BYTES = 256 << 20;
const BINARY_LIMIT_BYTES = 45 << 10; // what fits into the agent's 60 KiB as base64
const nameOf = (path) => path.split("/").filter(Boolean).pop() || "file";

export const insideOf = (section) => (section.dataset.inside === "lxc" ? new Container(section.dataset) : new Machine(section.dataset));

/** Bytes as text, null if they are none. */
export function textOf(bytes) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}

/** The SHA-256 of bytes, as the API's `expected`. */
export async function digest(bytes) {
  if (!crypto.subtle) throw new ApiError(0, t("Files are saved over HTTPS only."));
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function request(path, options = {}) {
  let reply;
  try {
    reply = await fetch(at(`/api2/json${path}`), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, t("The appliance cannot be reached."));
  }
  if (!reply.ok) read(reply.status, await reply.text());
  return reply;
}

/** A POST whose parameters may be lists: in a form, one word with spaces or commas would be several. */
const post = (path, params, signal) =>
  request(path, { method: "POST", headers: { CSRFPreventionToken: csrf(), "Content-Type": "application/json" }, body: JSON.stringify(params), signal });

class Container {
  constructor({ base, guest, showLimit }) {
    Object.assign(this, { kind: "lxc", base, guest, showLimit: Number(showLimit), writeLimit: Infinity });
  }

  async run({ words, input, timeout, cwd, uid, gid, env }, say, signal) {
    const given = { command: words, "input-data": input, timeout, cwd, uid, gid, env };
    const params = Object.fromEntries(Object.entries(given).filter(([, value]) => value?.length > 0));
    const reply = await post(`${this.base}/exec`, params, signal);
    const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ; ) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError(0, t("The connection ended before the program did."));
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const each of lines.map((line) => JSON.parse(line))) {
        if (each.error !== undefined) throw new ApiError(0, each.error);
        if (each.exitcode !== undefined) {
          for (const [stream, decoder] of Object.entries(decoders)) say(stream, decoder.decode());
          return { code: each.exitcode, signal: 0 };
        }
        say(each.stream, decoders[each.stream].decode(bytesOf(each.data), { stream: true }));
      }
    }
  }

  stat(path) {
    return call("GET", `${this.base}/file/stat`, { path });
  }

  async open(path) {
    const info = await this.stat(path);
    if (info.type === "directory") return { directory: true, entries: info.entries ?? [], more: Boolean(info.more), info };
    if (info.size > this.showLimit) return { bytes: null, more: true, info };
    const query = new URLSearchParams({ path, count: String(this.showLimit + 1) });
    const bytes = new Uint8Array(await (await request(`${this.base}/file?${query}`)).arrayBuffer());
    return { bytes, more: bytes.length > this.showLimit, info };
  }

  async exists(path) {
    return absentAsNull(this.stat(path));
  }

  /** The file comes last in the body: the server streams it. */
  write(path, bytes, { expected = "", mode = "", parents = false, progress, signal } = {}) {
    const body = new FormData();
    for (const [name, value] of Object.entries({ path, expected, mode, parents: parents ? "1" : "" })) if (value) body.append(name, value);
    body.append("filename", new Blob([bytes]), nameOf(path));
    const sent = new XMLHttpRequest();
    return new Promise((resolve, reject) => {
      sent.upload.addEventListener("progress", (event) => event.lengthComputable && progress?.(event.loaded / event.total));
      sent.addEventListener("load", () => {
        try {
          resolve(read(sent.status, sent.responseText));
        } catch (error) {
          reject(error);
        }
      });
      sent.addEventListener("error", () => reject(new ApiError(0, t("The upload was cut off."))));
      sent.addEventListener("abort", () => reject(new DOMException("", "AbortError")));
      signal?.addEventListener("abort", () => sent.abort());
      sent.open("POST", at(`/api2/json${this.base}/file`));
      sent.setRequestHeader("CSRFPreventionToken", csrf());
      sent.send(body);
    });
  }

  async download(path) {
    await this.stat(path); // what cannot be read is told here, not saved in its place
    give(at(`/api2/json${this.base}/file?${new URLSearchParams({ path })}`), path);
  }
}

class Machine {
  constructor({ base, guest, showLimit, writeLimit }) {
    Object.assign(this, { kind: "qemu", base: `${base}/agent`, guest, showLimit: Number(showLimit), writeLimit: Number(writeLimit) });
  }

  /** The agent tells everything at the end, and cannot end a program. */
  async run({ words, input, timeout }, say, signal) {
    const params = { command: words, ...(input ? { "input-data": input } : {}) };
    const { pid } = (await (await post(`${this.base}/exec`, params)).json()).data;
    const until = performance.now() + Number(timeout || 60) * 1000;
    for (let tries = 0; ; tries += 1) {
      const status = await call("GET", `${this.base}/exec-status`, { pid });
      if (status.exited) {
        if (status["out-data"]) say("stdout", status["out-data"]);
        if (status["err-data"]) say("stderr", status["err-data"]);
        const cut = Boolean(status["out-truncated"] || status["err-truncated"]);
        return { code: status.exitcode ?? 0, signal: status.signal ?? 0, cut };
      }
      if (signal.aborted || performance.now() > until) throw new ApiError(0, t("It still runs in the guest, as process {pid}.", { pid }));
      await new Promise((resolve) => setTimeout(resolve, POLL_MS[Math.min(tries, POLL_MS.length - 1)]));
    }
  }

  async piece(path, offset, count) {
    const { content, truncated } = await call("GET", `${this.base}/file-read`, { file: path, offset, count, decode: 0 });
    return [bytesOf(content), Boolean(truncated)];
  }

  async open(path) {
    const [bytes, more] = await this.piece(path, 0, this.showLimit);
    return { bytes: more ? null : bytes, more, info: null };
  }

  async exists(path) {
    return (await absentAsNull(this.piece(path, 0, 1))) && {};
  }

  async write(path, bytes, { expected = "" } = {}) {
    const text = textOf(bytes);
    if (text === null ? bytes.length > BINARY_LIMIT_BYTES : [...text].length > this.writeLimit) {
      const limits = { text: size(this.writeLimit), binary: size(BINARY_LIMIT_BYTES), size: size(bytes.length) };
      throw new ApiError(413, t("The guest agent takes files of at most {text}, {binary} if they are no text; this one has {size}.", limits));
    }
    const content = text === null ? { content: base64Of(bytes), encode: 0 } : { content: text };
    await call("POST", `${this.base}/file-write`, { file: path, ...content, ...(expected ? { expected } : {}) });
    return null;
  }

  async download(path) {
    const pieces = [];
    for (let offset = 0, more = true; more; ) {
      const [bytes, rest] = await this.piece(path, offset, PIECE_BYTES);
      pieces.push(bytes);
      offset += bytes.length;
      more = rest && bytes.length > 0;
      if (offset > DOWNLOAD_LIMIT_BYTES) throw new ApiError(413, t("The file is larger than {limit}.", { limit: size(DOWNLOAD_LIMIT_BYTES) }));
    }
    const address = URL.createObjectURL(new Blob(pieces, { type: "application/octet-stream" }));
    give(address, path);
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  }
}

async function absentAsNull(asked) {
  try {
    return await asked;
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

function give(address, path) {
  const link = Object.assign(document.createElement("a"), { href: address, download: nameOf(path) });
  link.click();
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

function base64Of(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}
