"""Application containers are kept, returned to, backed up and restored as system containers are."""

from __future__ import annotations

from typing import Any

from tests.harness import Appliance
from tests.oci.test_application import appliance_with_image, create, eventually, registry, site, status

__all__ = ["appliance_with_image", "registry", "site"]


def test_a_container_of_an_image_is_kept_and_restored(site: tuple[Appliance, Any]) -> None:
    appliance, api = site
    node = appliance.node(api)
    guest = create(site, 330, "echo old >/file; echo ready; sleep 300", rootfs="local:0")
    eventually(lambda: status(guest)["status"] == "running")
    appliance.finish(api, node.vzdump.post(vmid=330, storage="local", compress="zstd"))
    (backup,) = node.storage("local").content.get(content="backup", vmid=330)
    names = [
        row["text"] for row in node.storage("local")("file-restore").list.get(volume=backup["volid"], filepath="/")
    ]
    assert {"bin", "file"} <= set(names)
    assert status(guest)["status"] == "running"
    appliance.finish(api, guest.status.stop.post())
    appliance.finish(api, guest.snapshot.post(snapname="one"))
    appliance.finish(api, guest.snapshot("one").rollback.post())
    appliance.finish(api, node.lxc.post(vmid=331, ostemplate=backup["volid"], restore=1))
    appliance.finish(api, node.lxc(331).status.start.post())
    eventually(lambda: status(node.lxc(331))["status"] == "running")
    appliance.finish(api, node.lxc(331).status.stop.post())
    for vmid in (330, 331):
        appliance.finish(api, node.lxc(vmid).delete())
    node.storage("local").content(backup["volid"]).delete()
