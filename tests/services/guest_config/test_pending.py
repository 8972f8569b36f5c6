"""What waits for the next start of a running guest, and how it is taken back."""

from __future__ import annotations

import pytest

from appliance.errors import InvalidParameter
from appliance.model.guest import GuestKind
from appliance.services.guest_config import Pending, pending, plan_update, revert

VM = GuestKind.QEMU
STARTED = {
    "cores": "1",
    "memory": "512",
    "scsi0": "local:100/vm-100-disk-0.qcow2,size=8G",
    "net0": "virtio=BC:24:11:00:00:01,bridge=a",
}


def test_a_key_that_was_changed_added_or_removed_waits() -> None:
    config = {"cores": "2", "scsi0": STARTED["scsi0"], "net0": STARTED["net0"], "rng0": "source=/dev/urandom"}
    assert pending(VM, config, STARTED) == [
        Pending("cores", "1", "2"),
        Pending("memory", "512", None),
        Pending("rng0", None, "source=/dev/urandom"),
    ]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("description", "new notes"),
        ("tags", "web"),
        ("onboot", "1"),
        ("unused0", "local:100/vm-100-disk-1.qcow2"),
        ("scsi0", "local:100/vm-100-disk-0.qcow2,backup=0,size=16G"),
        ("lock", "backup"),
    ],
)
def test_what_applies_at_once_or_is_bookkeeping_waits_for_nothing(key: str, text: str) -> None:
    assert pending(VM, {**STARTED, key: text}, STARTED) == []


def test_an_option_of_a_disk_that_the_machine_sees_waits() -> None:
    config = {**STARTED, "scsi0": "local:100/vm-100-disk-0.qcow2,size=8G,ssd=1"}
    assert [each.key for each in pending(VM, config, STARTED)] == ["scsi0"]


def test_reverting_leads_back_to_what_runs_and_keeps_the_volume_of_a_new_disk() -> None:
    config = {**STARTED, "cores": "4", "scsi1": "local:100/vm-100-disk-1.qcow2,size=1G"}
    put, delete = revert(VM, config, STARTED, ["cores", "scsi1", "memory"])
    plan = plan_update(VM, config, put, delete)
    assert plan.config == {**STARTED, "unused0": "local:100/vm-100-disk-1.qcow2"} | {"cores": "1"}
    assert pending(VM, plan.config, STARTED) == []
    assert plan.removed == ()


def test_reverting_a_disk_that_was_taken_out_attaches_its_volume_again() -> None:
    config = plan_update(VM, STARTED, {}, ["scsi0"]).config
    put, delete = revert(VM, config, STARTED, ["scsi0"])
    assert plan_update(VM, config, put, delete).config == STARTED


def test_a_key_that_does_not_exist_cannot_be_reverted() -> None:
    with pytest.raises(InvalidParameter):
        revert(VM, STARTED, STARTED, ["nonsense"])
