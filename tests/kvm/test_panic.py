"""A guest's panic is told to whoever watches it; one that says it ten thousand times is told once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.model.guest import GuestState, VmResources
from tests.kvm import plug_guest
from tests.kvm.native import Console, native_engine, raw
from tests.kvm.test_plugging import SPEC

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("kvm")]

PANICS = bytes.fromhex(
    "b910270000 66ba0505 b001 ee e2fd"  # ten thousand times: port 0x505, 1
    "66baf803 b044 ee ebfe"  # say D; stay here
)


async def test_a_flood_of_panics_is_told_once(tmp_path: Path) -> None:
    told: list[tuple[GuestState, str]] = []
    kernel = plug_guest.write_code(tmp_path / "kernel", PANICS)
    async with native_engine(tmp_path) as engine:
        vm = await engine.start(
            replace(SPEC, disks=()),
            VmResources(disks={"kernel": raw(kernel)}),
            on_state=lambda state, reason: told.append((state, reason)),
            log=lambda line: None,
        )
        console = await Console.of(vm)
        await console.until(b"D")
        assert told == [(GuestState.RUNNING, "the guest's kernel panicked")]
        await console.close()
        await vm.stop()
