// From a form's fields to the API's parameters: property strings are put together here.
// Fields whose names begin with "_" are only for this; empty fields are left out.

import { call } from "./api.js";
import { config } from "./config_form.js";
import * as oci from "./oci.js";
import * as tasks from "./tasks.js";
import { mounts, valueOf } from "./widgets.js";

/** [method, path] of a form's call; {names} in the path are the form's own fields. */
export function target(form) {
  const [method, path] = form.dataset.api.split(" ");
  return [method, path.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(form.elements[name]?.value ?? ""))];
}

/** { requests, before, after }: the parameters of each call, whole calls before them, and what remains when a task has ended. */
export function compose(form) {
  const fields = new FormData(form);
  const params = {};
  for (const [name, value] of fields) {
    if (name.startsWith("_") || typeof value !== "string") continue;
    // what may be chosen several times is one list
    if (value !== "") params[name] = name in params ? `${params[name]},${value}` : value;
  }
  for (const box of form.querySelectorAll("input[type=checkbox][data-off]")) {
    if (!box.checked) params[box.name] = box.dataset.off;
  }
  for (const input of form.querySelectorAll("[data-empty]")) {
    if (input.value === "" && input.value !== input.defaultValue) params[input.name] = "";
  }
  for (const list of form.querySelectorAll("[data-list]")) params[list.dataset.list] ??= "";
  for (const input of form.querySelectorAll("[data-seconds]")) {
    if (input.value === input.defaultValue) continue; // the day is as it was, and so is the second of it
    params[input.dataset.seconds] = String(input.value ? Math.floor(new Date(`${input.value}T23:59:59`).getTime() / 1000) : 0);
  }
  const emptied = (form.dataset.deleteEmpty ?? "").split(" ").filter((name) => name && fields.get(name) === "");
  emptied.push(...rules(params, form));
  if (emptied.length) params.delete = emptied.join(",");
  const special = { vm, container, application, resize, download, config, clone, user, grant, pull, mapping }[form.dataset.compose];
  const after = special?.(fields, params, form);
  if (form.dataset.compose === "pool") return { requests: poolChanges(params, form) };
  const before = ["pull", "push"].includes(form.dataset.compose) ? oci.credentials(fields) : [];
  return { requests: counted(params, Number(fields.get("_count") ?? 1)), before, after };
}

/** Numbers that make up one rule ("keep-last=3,keep-daily=7"); the names of rules that lost their last number. */
function rules(params, form) {
  const gone = [];
  for (const group of form.querySelectorAll("[data-rule]")) {
    const inputs = [...group.querySelectorAll("[data-rule-part]")].filter((input) => !input.disabled);
    if (inputs.length === 0) continue;
    const given = inputs.filter((input) => Number(input.value) > 0).map((input) => `${input.dataset.rulePart}=${input.value}`);
    if (given.length) params[group.dataset.rule] = given.join(",");
    else if (group.dataset.was) gone.push(group.dataset.rule);
  }
  return gone;
}

/** The same several times: ids and names count up. */
function counted(params, count) {
  if (!(count > 1)) return [params];
  const id = "newid" in params ? "newid" : "vmid";
  const name = "hostname" in params ? "hostname" : "name";
  return Array.from({ length: count }, (_, index) => ({
    ...params,
    [id]: String(Number(params[id]) + index),
    ...(params[name] ? { [name]: numbered(params[name], index) } : {}),
  }));
}

/** "web" is web-1, web-2 …; "web08" is web08, web09 … */
function numbered(name, index) {
  const end = name.match(/\d+$/)?.[0];
  if (!end) return `${name}-${index + 1}`;
  return name.slice(0, -end.length) + String(Number(end) + index).padStart(end.length, "0");
}

function clone(fields, params) {
  if (fields.get("_full") === "1" || params.storage || params.snapname) params.full = "1";
}

function container(fields, params, form) {
  config(fields, params, form);
  params.rootfs = `${fields.get("_storage")}:${fields.get("_disk")}`;
  if (!("unprivileged" in params)) params.unprivileged = "1";
  network(fields, params, { name: "eth0" });
}

function application(fields, params, form) {
  container(fields, params, form);
  Object.assign(params, mounts(form));
}

/** net0 of a new guest, from the inputs that there are. */
function network(fields, params, first) {
  if (!fields.get("_bridge")) return;
  const parts = { ...first, bridge: fields.get("_bridge") };
  if (fields.get("_tag")) parts.tag = fields.get("_tag");
  if (fields.get("_firewall")) parts.firewall = "1";
  const addresses = { ip: fields.get("_ip") || "dhcp", gw: fields.get("_gw"), ip6: fields.get("_ip6"), gw6: fields.get("_gw6") };
  const given = Object.entries(addresses).filter(([, value]) => value);
  if (first.name) Object.assign(parts, Object.fromEntries(given));
  else if (fields.get("_source") === "image") params.ipconfig0 = given.map(([part, value]) => `${part}=${value}`).join(",");
  params.net0 = Object.entries(parts).map(([part, value]) => `${part}=${value}`).join(",");
}

function vm(fields, params, form) {
  config(fields, params, form);
  const storage = fields.get("_storage");
  const disk = fields.get("_disk");
  const source = fields.get("_source");
  const bus = fields.get("_bus") || "scsi0";
  params.ostype ??= "l26";
  params.machine ??= "q35";
  if (bus.startsWith("scsi")) params.scsihw ??= "virtio-scsi-pci";
  params.serial0 = "socket";
  params.rng0 = "source=/dev/urandom";
  network(fields, params, { model: fields.get("_model") || "virtio" });
  params.boot = valueOf(form.querySelector("[data-widget=boot]"));
  if (params.bios === "ovmf") params.efidisk0 = `${storage}:1,efitype=4m`;
  const options = ["cache", "discard", "ssd", "iothread"]
    .filter((name) => fields.get(`_disk_${name}`))
    .map((name) => `,${name}=${fields.get(`_disk_${name}`)}`)
    .join("");
  if (source !== "image") {
    params[bus] = `${storage}:${disk}${options}`;
    if (source === "iso") params.ide2 = `${fields.get("_iso")},media=cdrom`;
    return undefined;
  }
  params[bus] = `${storage}:0,import-from=${fields.get("_image") ?? ""}${options}`;
  params.ide2 = `${storage}:cloudinit`;
  params.agent ??= "1";
  if (params.net0) params.ipconfig0 ||= "ip=dhcp";
  if (fields.get("_sshkeys")) params.sshkeys = encodeURIComponent(fields.get("_sshkeys").trim());
  return growThenStart(form, params, bus, disk);
}

// an imported disk has its image's size: it is grown when it is there, and the VM started then
function growThenStart(form, params, bus, disk) {
  const start = params.start;
  delete params.start;
  return async (sent) => {
    const base = `${form.dataset.api.split(" ")[1]}/${sent.vmid}`;
    try {
      await tasks.ended(await call("PUT", `${base}/resize`, { disk: bus, size: `${disk}G` }));
    } catch (error) {
      if (!/shrink|smaller|already/i.test(error.message + Object.values(error.errors ?? {}).join(" "))) throw error;
    }
    if (start) tasks.report(await call("POST", `${base}/status/start`));
  };
}

function user(fields, params) {
  params.userid = `${fields.get("_name")}@${fields.get("_realm")}`;
}

function grant(fields, params) {
  const [kind, name] = (fields.get("_subject") ?? "").split(/:(.*)/s);
  if (kind) params[kind] = name;
}

/** "node=a,path=/x,node=b,path=/y", of the nodes whose directory is named. */
function mapping(fields, params, form) {
  const rows = [...form.querySelectorAll("[data-map-node], [data-map-of]")]
    .map((input) => [input.dataset.mapNode ?? form.elements[input.dataset.mapOf].value.trim(), input.value.trim()])
    .filter(([node, path]) => node && path);
  if (rows.length) params.map = rows.map(([node, path]) => `node=${node},path=${path}`).join(",");
}

/** A pool's members come and go by calls of their own. */
function poolChanges(params, form) {
  const came = { ...params };
  const left = {};
  for (const box of form.querySelectorAll("[data-member]")) {
    const was = "was" in box.dataset;
    const change = box.checked && !was ? came : !box.checked && was ? left : null;
    if (change) change[box.dataset.member] = [change[box.dataset.member], box.value].filter(Boolean).join(",");
  }
  if (came.vms) came["allow-move"] = "1";
  const changes = [came];
  if (Object.keys(left).length) changes.unshift({ ...left, delete: "1" });
  return changes.filter((change) => Object.keys(change).length);
}

function resize(fields, params) {
  params.size = `+${params.size}G`;
}

function pull(fields, params, form) {
  return oci.pulled(form);
}

function download(fields, params) {
  if (params.checksum) params["checksum-algorithm"] = "sha256";
}
