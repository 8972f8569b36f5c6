"""Filters of tasks by their kind, and what a boot order offers."""

from __future__ import annotations

from appliance.model.guest import GuestKind
from appliance.services import guest_config
from appliance.web.pages import forms, guest_dialogs, task_kinds
from appliance.web.pages.contexts import label_of


def test_a_kind_is_every_type_with_its_word_and_a_type_without_one_is_its_own() -> None:
    assert set(task_kinds.types_of("Start")) == {"qmstart", "vzstart"}
    assert task_kinds.types_of("unheard-of") == ["unheard-of"]
    assert task_kinds.types_of("") == ()
    assert "Start" in task_kinds.words()


def test_a_boot_order_offers_every_device_the_booted_ones_first() -> None:
    config = {
        "scsi0": "local:100/a.qcow2,size=1G", "ide2": "none,media=cdrom", "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0",
        "scsi1": "local:100/b.qcow2,size=1G", "ide0": "local:100/vm-100-cloudinit.qcow2,media=cdrom",
        "unused0": "local:100/c.qcow2", "boot": "order=net0;scsi1;scsi7",
    }  # fmt: skip
    found = guest_dialogs.boot_devices(config)
    assert found[0] == ("order", "net0;scsi1")
    assert [slot for slot, _ in found[1:]] == ["net0", "scsi1", "scsi0", "ide2"]
    (one,) = forms.inputs_of(GuestKind.QEMU, "boot", config["boot"], choices={"boot": found}, label_of=label_of)
    assert [(slot, booted) for slot, _, booted in one.devices] == [
        ("net0", True), ("scsi1", True), ("scsi0", False), ("ide2", False),
    ]  # fmt: skip


def test_without_a_boot_order_the_default_one_is_shown() -> None:
    config = {"scsi0": "local:100/a.qcow2,size=1G", "net0": "virtio,bridge=vmbr0"}
    assert guest_dialogs.boot_devices(config)[0] == ("order", "scsi0;net0")
    assert guest_config.parse(GuestKind.QEMU, {"boot": "order="}) == {"boot": "order="}
