"""What the tabs of a guest's page show, as values: the tree of snapshots, rows of devices, what a guest says of itself."""

from __future__ import annotations

import pytest

from appliance.model.guest import GuestKind
from appliance.services import guest_config
from appliance.services.guest_config import Pending
from appliance.web.pages import contexts, forms, hardware
from appliance.web.pages.guest_inside import TEXT_LIMIT, file_systems_of, interfaces_of
from appliance.web.pages.guest_tabs import snapshot_tree
from appliance.web.pages.hardware import Tab

VM, CT = GuestKind.QEMU, GuestKind.LXC


def shape(rows: list[dict[str, object]]) -> list[tuple[str, int]]:
    return [(row.name, row.depth) for row in snapshot_tree(rows)]


def test_snapshots_stand_below_their_parents_older_ones_first_and_now_last() -> None:
    rows: list[dict[str, object]] = [
        {"name": "late", "parent": "root", "snaptime": 30},
        {"name": "root", "snaptime": 10},
        {"name": "early", "parent": "root", "snaptime": 20},
        {"name": "current", "parent": "early"},
    ]
    assert shape(rows) == [("root", 0), ("early", 1), ("current", 2), ("late", 1)]


@pytest.mark.parametrize("parent", ["gone", "a"])
def test_a_lost_parent_or_a_cycle_hides_no_snapshot(parent: str) -> None:
    assert {name for name, _ in shape([{"name": "a", "parent": parent}, {"name": "current"}])} == {"a", "current"}


def test_every_key_that_can_be_set_has_a_form_in_exactly_one_tab() -> None:
    hidden = hardware._HIDDEN
    for kind in GuestKind:
        config = {key.name + ("0" if key.count else ""): "1" for key in guest_config.key_table(kind) if key.supported}
        shown: list[str] = []
        for tab in Tab:
            for row in hardware.rows(kind, tab, {}, [Pending(name, "1", "1") for name in config], contexts.label_of):
                shown += hardware.form_keys(kind, row.form)
        for key in guest_config.key_table(kind):
            if key.supported and not key.read_only and key.name not in hidden:
                name = key.name + ("0" if key.count else "")
                assert shown.count(name) >= 1, f"{kind} {name} can be set nowhere"


def test_a_form_carries_what_only_the_appliance_writes() -> None:
    text = "local:100/vm-100-disk-0.qcow2,size=8G,ssd=1"
    assert dict(forms.carried_parts(VM, "scsi0", text)) == {"file": "local:100/vm-100-disk-0.qcow2", "size": "8G"}
    parts = {
        each.part: each.value for each in forms.inputs_of(VM, "scsi0", text, choices={}, label_of=contexts.label_of)
    }
    assert parts["ssd"] == "1"
    assert "file" not in parts


def test_an_operating_system_is_called_by_its_name_where_it_is_shown_and_chosen() -> None:
    rows = hardware.rows(VM, Tab.OPTIONS, {"ostype": "l26"}, [Pending("ostype", "win11", "l26")], contexts.label_of)
    assert [(row.value, row.waits) for row in rows if row.key == "ostype"] == [("Linux 2.6+", "Windows 11/2022/2025")]
    for kind in GuestKind:
        (each,) = forms.inputs_of(kind, "ostype", "", choices={}, label_of=contexts.label_of)
        assert not [(value, word) for value, word in each.choices if value == word], "a code has no name"


def test_a_password_is_never_put_into_a_form() -> None:
    (each,) = forms.inputs_of(VM, "cipassword", "$6$secret", choices={}, label_of=contexts.label_of)
    assert (each.kind, each.value) == ("password", "")


@pytest.mark.parametrize(
    "answer", [None, "x", {"result": []}, [None, 1, "x"], [{"name": 7}], [{"ip-addresses": 5, "name": "a"}]]
)
def test_nonsense_from_an_agent_is_left_out(answer: object) -> None:
    assert len(interfaces_of(answer)) <= 1
    assert file_systems_of(answer) == []


def test_what_an_agent_says_is_bounded() -> None:
    (one,) = interfaces_of(
        [{"name": "e" * 9999, "hardware-address": "x" * 9999, "ip-addresses": [{"ip-address": "1"}]}]
    )
    assert len(one.name) == len(one.mac) == TEXT_LIMIT
    assert len(interfaces_of([{"name": f"eth{n}"} for n in range(999)])) == 64
    assert file_systems_of([{"mountpoint": "/", "type": "ext4", "used-bytes": 9, "total-bytes": 5}]) == []
