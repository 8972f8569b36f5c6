"""All guests of the node at once, through a real appliance: what the host's shutdown and its start ask for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from proxmoxer import ResourceException

from tests.e2e.busybox import write_template
from tests.harness import ROOT, Appliance

pytestmark = [pytest.mark.host, pytest.mark.timeout(240)]

GUESTS = (801, 802)


def states(api: Any) -> list[str]:
    return [row["status"] for row in sorted(api.cluster.resources.get(type="vm"), key=lambda row: row["vmid"])]


def test_all_guests_are_started_and_shut_down_as_one_task_each(tmp_path: Path) -> None:
    with Appliance() as appliance:
        api = appliance.api()
        node = appliance.node(api)
        template = appliance.upload(api, write_template(tmp_path / "b.tar.gz"), "vztmpl", "busybox.tar.gz")
        for vmid in GUESTS:
            options = {"ostemplate": template, "rootfs": "local:0.1", "memory": 64, "startup": "down=2"}
            appliance.finish(api, node.lxc.post(vmid=vmid, hostname=f"ct{vmid}", onboot=int(vmid == 801), **options))
        appliance.finish(api, node.startall.post())
        assert states(api) == ["running", "stopped"], "only those with onboot"
        appliance.finish(api, node.startall.post(force=1))
        assert states(api) == ["running", "running"]
        unit = (ROOT / "packaging/debian/appliance-guests.service").read_text()
        found = re.search(r"^ExecStop=-?/usr/bin/appliance create /nodes/localhost(/\w+)$", unit, re.M)
        assert found is not None
        appliance.finish(api, node(found[1].strip("/")).post())  # what the unit calls when the host goes down
        assert states(api) == ["stopped", "stopped"]

        api.access.users.post(userid="op@pve", password="some-Password-1")
        api.access.acl.put(path="/vms/801", users="op@pve", roles="PVEVMUser")
        other = appliance.log_in(user="op@pve", password="some-Password-1")
        appliance.finish(api, appliance.node(other).startall.post(vms="801"))
        for refused in ({}, {"vms": "801,802"}):
            with pytest.raises(ResourceException, match="403"):
                appliance.node(other).stopall.post(**refused)
        assert states(api) == ["running", "stopped"]
        appliance.finish(api, node.stopall.post(vms="801"))
        for vmid in GUESTS:
            appliance.finish(api, node.lxc(vmid).delete())
