// From a form's fields to the API's parameters: property strings are put together here.
// Fields whose names begin with "_" are only for this; empty fields are left out.

import { call } from "./api.js";
import * as tasks from "./tasks.js";

/** { params, after }: `after` is what remains to do when the task has ended. */
export function compose(form) {
  const fields = new FormData(form);
  const params = {};
  for (const [name, value] of fields) {
    if (name.startsWith("_") || typeof value !== "string") continue;
    if (value !== "") params[name] = value;
  }
  for (const box of form.querySelectorAll("input[type=checkbox][data-off]")) {
    if (!box.checked) params[box.name] = box.dataset.off;
  }
  const emptied = form.dataset.deleteEmpty;
  if (emptied && fields.get(emptied) === "") params.delete = emptied;
  const special = { vm, container, resize, download }[form.dataset.compose];
  return { params, after: special?.(fields, params, form) };
}

function container(fields, params) {
  params.rootfs = `${fields.get("_storage")}:${fields.get("_disk")}`;
  params.unprivileged = "1";
  if (fields.get("_bridge")) params.net0 = `name=eth0,bridge=${fields.get("_bridge")},ip=dhcp`;
}

function vm(fields, params, form) {
  const storage = fields.get("_storage");
  const disk = fields.get("_disk");
  const source = fields.get("_source");
  params.ostype = "l26";
  params.machine = "q35";
  params.scsihw = "virtio-scsi-pci";
  params.serial0 = "socket";
  params.rng0 = "source=/dev/urandom";
  if (fields.get("_bridge")) params.net0 = `virtio,bridge=${fields.get("_bridge")}`;
  if (params.bios === "ovmf") params.efidisk0 = `${storage}:1,efitype=4m`;
  if (source !== "image") {
    params.scsi0 = `${storage}:${disk}`;
    params.boot = "order=scsi0";
    if (source === "iso") {
      params.ide2 = `${fields.get("_iso")},media=cdrom`;
      params.boot = "order=scsi0;ide2";
    }
    return undefined;
  }
  params.scsi0 = `${storage}:0,import-from=${fields.get("_image") ?? ""}`;
  params.ide2 = `${storage}:cloudinit`;
  params.boot = "order=scsi0";
  params.agent = "1";
  if (params.net0) params.ipconfig0 = "ip=dhcp";
  if (fields.get("_sshkeys")) params.sshkeys = encodeURIComponent(fields.get("_sshkeys").trim());
  return growThenStart(form, params, disk);
}

// an imported disk has its image's size: it is grown when it is there, and the VM started then
function growThenStart(form, params, disk) {
  const base = `${form.dataset.api.split(" ")[1]}/${params.vmid}`;
  const start = params.start;
  delete params.start;
  return async () => {
    try {
      await tasks.ended(await call("PUT", `${base}/resize`, { disk: "scsi0", size: `${disk}G` }));
    } catch (error) {
      if (!/shrink|smaller|already/i.test(error.message + Object.values(error.errors ?? {}).join(" "))) throw error;
    }
    if (start) tasks.report(await call("POST", `${base}/status/start`));
  };
}

function resize(fields, params) {
  params.size = `+${params.size}G`;
}

function download(fields, params) {
  if (params.checksum) params["checksum-algorithm"] = "sha256";
}
