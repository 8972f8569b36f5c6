"""`./dev demo`: a VM and a container on this machine, made and watched through the public API only.

Builds two images from Debian's packages (once; kept under .build/), starts the appliance on https://127.0.0.1:8006 with
an empty data directory of its own, creates VM 100 and container 101 with proxmoxer, waits until the VM's login prompt
and the container's running systemd are seen through the websocket consoles, and stays up. With `--once`, and on Ctrl-C,
it shuts both guests down in an orderly way and stops, and fails if anything of it is left on the host.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.harness import Appliance
from tests.images import build_images

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / ".build"
VM, CT = 100, 101
VM_LOGIN_LIMIT_S = 600.0
CT_LIMIT_S = 180.0
STOP_LIMIT_S = 240.0


def say(text: str) -> None:
    """One line of progress."""
    print(f"demo: {text}", flush=True)


def create_guests(appliance: Appliance, api: Any, images: tuple[Path, Path]) -> None:
    """VM 100 and container 101, from the two images."""
    node = appliance.node(api)
    say("uploading the images through the API")
    disk = appliance.upload(api, images[0], "import", "debian-12.qcow2")
    template = appliance.upload(api, images[1], "vztmpl", "debian-12-standard_12_amd64.tar.zst")
    say(f"creating VM {VM} and container {CT}")
    tasks = [
        node.qemu.post(
            vmid=VM, name="debian-vm", memory=1024, cores=2, ostype="l26", machine="q35", scsihw="virtio-scsi-pci",
            scsi0=f"local:0,import-from={disk}", ide2="local:cloudinit", serial0="socket", agent=1, rng0="source=/dev/urandom",
            net0=f"virtio,bridge={appliance.bridge}", boot="order=scsi0", ciuser="debian",
            cipassword=appliance.password, ipconfig0="ip=dhcp",
        ),
        node.lxc.post(
            vmid=CT, hostname="debian-ct", ostemplate=template, rootfs="local:4", memory=512, cores=1,
            password=appliance.password,
            net0=f"name=eth0,bridge={appliance.bridge},ip=dhcp", unprivileged=1, start=0,
        ),
    ]  # fmt: skip
    for upid in tasks:
        appliance.finish(api, upid)
    for upid in (node.qemu(VM).status.start.post(), node.lxc(CT).status.start.post()):
        appliance.finish(api, upid)


def watch_consoles(appliance: Appliance, api: Any) -> None:
    """The proof: the container's systemd and the VM's login prompt, each seen in its console."""
    with appliance.terminal(api, f"lxc/{CT}") as console:
        console.type("\n")
        console.wait_for(r"login: ", timeout_s=CT_LIMIT_S)
        console.type("root\n")
        console.wait_for(r"assword: ", timeout_s=30)
        console.type(f"{appliance.password}\n")
        console.wait_for(r"[#$] ", timeout_s=60)
        console.type("systemctl is-system-running --wait; ps -o comm= -p 1\n")
        console.wait_for(r"[\r\n]running\s", timeout_s=CT_LIMIT_S)
        console.wait_for(r"systemd", timeout_s=30)
        console.type("exit\n")
    say(f"container {CT}: systemd is running, seen in its console")
    say(f"waiting for the login prompt of VM {VM} (emulated CPUs take a minute or two)")
    with appliance.terminal(api, f"qemu/{VM}") as console:
        console.wait_for(r"login: ", timeout_s=VM_LOGIN_LIMIT_S)
    say(f"VM {VM}: login prompt seen in its serial console")


def shut_down(appliance: Appliance, api: Any) -> None:
    """Both guests, in an orderly way."""
    say("shutting both guests down")
    node = appliance.node(api)
    tasks = [guest.status.shutdown.post(timeout=int(STOP_LIMIT_S)) for guest in (node.lxc(CT), node.qemu(VM))]
    for upid in tasks:
        appliance.finish(api, upid, limit_s=STOP_LIMIT_S + 30)
    say("both guests have shut down in an orderly way")


def run(port: int, *, once: bool, images: tuple[Path, Path]) -> None:
    """One demonstration, from an empty data directory to an empty host."""
    home = BUILD / "demo"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    began = time.monotonic()
    with Appliance(home, port=port, bridge="vmbr0") as appliance:
        assert appliance.process is not None
        api = appliance.api()
        create_guests(appliance, api, images)
        watch_consoles(appliance, api)
        say(f"ready after {time.monotonic() - began:.0f} s")
        print(f"\n  https://127.0.0.1:{port}\n  user      admin@pve\n  password  {appliance.password}\n", flush=True)
        if not once:
            say("Ctrl-C shuts the guests down and stops")
            _wait_for_interrupt(appliance.process)
        shut_down(appliance, appliance.api())
    left = appliance.lasting_traces()
    if left:
        raise SystemExit("left behind on this host:\n  " + "\n  ".join(left))
    say("stopped; nothing is left behind on this host")


def _wait_for_interrupt(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait()
    except KeyboardInterrupt:
        return
    raise SystemExit("the appliance ended by itself")


def main() -> None:
    """Parse and run; exits non-zero with the reason when anything was not seen."""
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__.splitlines()[0])
    parser.add_argument("--once", action="store_true", help="shut down and stop once everything has been seen")
    parser.add_argument("--port", type=int, default=8006)
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("demo: only root may start virtual machines and containers")
    run(options.port, once=options.once, images=asyncio.run(build_images(say)))


if __name__ == "__main__":
    main()
