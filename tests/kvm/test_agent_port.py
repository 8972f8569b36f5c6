"""A guest without an agent is told of at once: nobody waits for an answer that cannot come."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import GuestFault
from tests.kvm import plug_guest
from tests.kvm.native import Console, native_engine, native_vm
from tests.kvm.test_plugging import SPEC

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("kvm")]


@pytest.mark.parametrize(("agent", "why"), [(True, "QEMU guest agent is not running"), (False, "agent configured")])
async def test_a_guest_without_an_agent_says_so_at_once(tmp_path: Path, agent: bool, why: str) -> None:
    kernel = plug_guest.write_kernel(tmp_path / "kernel")
    spec = replace(SPEC, disks=(), agent=agent)
    async with native_engine(tmp_path) as engine, native_vm(engine, spec, {"kernel": kernel}) as vm:
        console = await Console.of(vm)
        await console.until(b"R")
        async with asyncio.timeout(2):
            with pytest.raises(GuestFault, match=f"vm 100: .*{why}"):
                await vm.agent("ping")
