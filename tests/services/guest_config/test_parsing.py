"""Requests become normal forms; every key that is wrong is named, in PVE's words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InvalidParameter
from appliance.model.guest import CtSpec, GuestKind, VmSpec
from appliance.services import guest_config
from appliance.services.guest_config.schema import UNKNOWN_KEY
from tests.services.guest_config.strategies import HOSTILE_TEXT, texts

VM, CT = GuestKind.QEMU, GuestKind.LXC
NAMES = {kind: [name for key in guest_config.key_table(kind) for name in key.names()] for kind in GuestKind}
USABLE = {
    kind: [
        key for key in guest_config.key_table(kind) if key.supported and not key.read_only and key.name != "cipassword"
    ]
    for kind in GuestKind
}


T = TypeVar("T")


def outcome(call: Callable[[], T]) -> tuple[T | None, dict[str, str]]:
    """What `call` returns, or the errors of its refusal; any other exception fails the test."""
    try:
        return call(), {}
    except InvalidParameter as error:
        return None, error.errors


def errors_of(kind: GuestKind, raw: dict[str, object]) -> dict[str, str]:
    with pytest.raises(InvalidParameter) as caught:
        guest_config.parse(kind, raw)
    return caught.value.errors


@given(st.data(), st.sampled_from(list(GuestKind)))
def test_every_supported_key_accepts_its_values_and_the_normal_form_is_stable(
    data: st.DataObject, kind: GuestKind
) -> None:
    key = data.draw(st.sampled_from(USABLE[kind]))
    name = data.draw(st.sampled_from(list(key.names())))
    once = guest_config.parse(kind, {name: data.draw(texts(key))})
    assert guest_config.parse(kind, dict(once)) == once


@given(st.sampled_from(list(GuestKind)), st.data())
def test_hostile_values_are_refused_by_name_or_accepted_whole(kind: GuestKind, data: st.DataObject) -> None:
    name = data.draw(st.one_of(st.sampled_from([n for n in NAMES[kind] if n != "cipassword"]), HOSTILE_TEXT))
    value = data.draw(st.one_of(HOSTILE_TEXT, st.none(), st.integers(), st.floats(), st.lists(st.text())))
    config, errors = outcome(lambda: guest_config.parse(kind, {name: value}))
    assert len(errors) == (1 if config is None else 0)
    if config is None:
        return
    assert guest_config.parse(kind, dict(config)) == config
    assert len(guest_config.digest(config)) == 40


@given(st.sampled_from(list(GuestKind)), st.data())
def test_an_accepted_configuration_becomes_a_spec_or_is_refused_by_name(kind: GuestKind, data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.sampled_from(USABLE[kind]), max_size=12, unique_by=lambda key: key.name))
    raw = {data.draw(st.sampled_from(list(key.names()))): data.draw(texts(key)) for key in keys}

    def specify() -> VmSpec | CtSpec:
        config = guest_config.parse(kind, raw)
        if kind is VM:
            return guest_config.to_vm_spec(100, config)
        return guest_config.to_ct_spec(100, config, id_base=100_000, id_count=65_536)

    spec, errors = outcome(specify)
    assert errors if spec is None else spec.guest_id == 100
    assert all(errors.values())


def test_every_wrong_key_is_named_at_once() -> None:
    raw: dict[str, object] = {
        "foo": "1",
        "cores": "none",
        "net32": "virtio",
        "hostpci0": "01:00",
        "name": "a b",
        "memory": "1",
    }
    errors = errors_of(VM, raw)
    assert set(errors) == set(raw)
    assert errors["foo"] == UNKNOWN_KEY
    assert errors["net32"] == UNKNOWN_KEY
    assert errors["hostpci0"] == "not supported by this appliance yet"
    assert "integer" in errors["cores"]


@pytest.mark.parametrize(
    "key",
    ["hostpci0", "usb1", "tpmstate0", "audio0", "parallel0", "ivshmem", "amd-sev", "intel-tdx",
     "cicustom", "affinity", "spice_enhancements"],
)  # fmt: skip
def test_what_a_vm_cannot_have_yet_is_refused_by_name(key: str) -> None:
    assert errors_of(VM, {key: "x"}) == {key: "not supported by this appliance yet"}


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (VM, "citype", "configdrive2"), (VM, "serial0", "/dev/ttyS0"), (VM, "reboot", "0"),
        (VM, "machine", "pc-q35-8.1"), (VM, "machine", "q35,viommu=intel"), (VM, "vga", "qxl"),
        (VM, "cpu", "host,hidden=1"), (VM, "scsi0", "local:8,mbps=5"), (VM, "scsi0", "/dev/sda"),
        (VM, "scsi0", "local:0,import-from=/root/x.qcow2"), (CT, "mp0", "local:1,mp=/x,quota=1"),
        (CT, "mp0", "local:1,mp=/x,acl=0"), (CT, "console", "0"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_honoured_is_refused_as_not_supported(kind: GuestKind, key: str, value: str) -> None:
    assert "not supported by this appliance yet" in errors_of(kind, {key: value})[key]


@pytest.mark.parametrize("text", ["a\nb", "a\0b", "a\rb", "a\x1b[2J", "a\u2028b"])
@pytest.mark.parametrize("key", ["name", "tags", "args", "smbios1", "net0", "scsi0", "nameserver", "boot", "ciuser"])
def test_control_characters_are_refused_where_a_line_is_expected(key: str, text: str) -> None:
    assert key in errors_of(VM, {key: text})


def test_a_description_may_have_lines() -> None:
    assert guest_config.parse(VM, {"description": "a\n\tb"}) == {"description": "a\n\tb"}
    assert "description" in errors_of(VM, {"description": "a\0b"})


def test_numbers_and_booleans_of_json_are_taken() -> None:
    raw: dict[str, object] = {"cores": 2, "onboot": True, "cpulimit": 1.5, "memory": 1024, "acpi": "off"}
    assert guest_config.parse(VM, raw) == {
        "cores": "2", "onboot": "1", "cpulimit": "1.5", "memory": "1024", "acpi": "0",
    }  # fmt: skip


def test_tags_are_lower_case_sorted_and_unique() -> None:
    assert guest_config.parse(VM, {"tags": "Web, db;web prod"}) == {"tags": "db;prod;web"}


def test_the_old_cdrom_key_is_ide2() -> None:
    assert guest_config.parse(VM, {"cdrom": "none"}) == {"ide2": "none"}
    assert "cdrom" in errors_of(VM, {"ide2": "none", "cdrom": "none"})


def test_ssh_keys_must_be_urlencoded_keys() -> None:
    text = "ssh-ed25519%20AAAAC3Nz%20me%40host%0A"
    assert guest_config.parse(VM, {"sshkeys": text}) == {"sshkeys": text}
    assert "urlencoded" in errors_of(VM, {"sshkeys": "ssh-ed25519 AAAA me"})["sshkeys"]
    assert "validation error" in errors_of(VM, {"sshkeys": "hello"})["sshkeys"]
    assert "validation error" in errors_of(VM, {"sshkeys": "ssh-ed25519%20AAAA%20a%1b%5d0"})["sshkeys"]


def test_passwords_are_hashed_when_read_and_masked_when_shown() -> None:
    config = guest_config.parse(VM, {"cipassword": "secret"})
    assert config["cipassword"].startswith("$6$")
    assert "secret" not in config["cipassword"]
    assert guest_config.parse(VM, dict(config)) == config
    assert guest_config.masked(config) == {"cipassword": "**********"}
    assert "mask" in errors_of(VM, {"cipassword": "**********"})["cipassword"]


@pytest.mark.parametrize("text", ["", ",", " ,"])
def test_an_empty_property_string_means_no_value(text: str) -> None:
    assert guest_config.parse(VM, {"cpu": text}) == {"cpu": ""}


@pytest.mark.parametrize("digits", [10, 20, 64])
def test_a_size_that_is_too_long_is_no_name_of_a_volume(digits: int) -> None:
    assert "may have at most" in errors_of(VM, {"scsi0": f"local:{'9' * digits}"})["scsi0"]


def test_keys_the_appliance_writes_cannot_be_set() -> None:
    assert "appliance only" in errors_of(VM, {"meta": "ctime=1"})["meta"]


def test_a_digest_depends_on_the_content_alone() -> None:
    first = guest_config.digest({"a": "1", "b": "2"})
    assert first == guest_config.digest({"b": "2", "a": "1"})
    assert first != guest_config.digest({"a": "1", "b": "3"})


METHODS = Path(__file__).resolve().parents[4] / "shared/pve-api/methods.jsonl"


@pytest.mark.skipif(not METHODS.exists(), reason="the reference list of PVE's methods is not on this machine")
@pytest.mark.parametrize("kind", list(GuestKind))
def test_every_configuration_key_of_pve_is_in_the_table(kind: GuestKind) -> None:
    path, not_config = f"/nodes/{{node}}/{kind}/{{vmid}}/config", {
        "node", "vmid", "digest", "delete", "revert", "skiplock", "force", "background_delay", "import-working-storage",
        "cdrom",
    }  # fmt: skip
    wanted = next(
        method["params"]
        for method in map(json.loads, METHODS.read_text().splitlines())
        if (method["path"], method["method"]) == (path, "PUT")
    )
    table = guest_config.key_table(kind)
    for name in set(wanted) - not_config:
        key = table.find(name.replace("[n]", "0"))
        assert key is not None, name
        assert bool(key.count) == name.endswith("[n]"), name
        assert key.description, name
