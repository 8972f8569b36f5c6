"""Changing the network configuration of a container that runs: files of the distribution inside, then its own tools.

As at a start (`interior.py`), but everything goes in as the container's own root: its files through `files.py`, ifup or
networkctl as programs. Whatever the container has made of those, it does to itself. On the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence

from appliance.ct import interior
from appliance.ct.execution import Executions
from appliance.ct.files import Files
from appliance.errors import ApplianceError, GuestFault, NotFound, TimedOut
from appliance.model.guest import CtSpec, NicSpec
from appliance.model.inside import ExecRequest, FileWrite

PROGRAM_LIMIT_S = 30.0
_FILE_LIMIT_BYTES = 1 << 20
_OUTPUT_LIMIT_BYTES = 4096


async def renew(files: Files, executions: Executions, spec: CtSpec, names: Collection[str]) -> str:
    """Write what `spec` says and bring the interfaces `names` up again; a line that tells what was done."""
    nics = [nic for nic in spec.nics if nic.name]
    changed = [nic for nic in nics if nic.name in names]
    if spec.os_type == interior.UNMANAGED or not changed:
        return "addresses are left to the container"
    try:
        if await _any(files, interior.IFUP):
            await _ifupdown(files, executions, nics, changed)
            return "ifup has brought up " + ", ".join(nic.name for nic in changed)
        if await _any(files, interior.NETWORKD):
            await _networkd(files, executions, changed)
            return "systemd-networkd has taken over " + ", ".join(nic.name for nic in changed)
    except ApplianceError as error:
        return f"addresses are not set inside: {error}"
    return "addresses are left to the container: it has neither ifupdown nor systemd-networkd"


async def resolver(files: Files, text: str) -> None:
    """Replace what the container resolves names by. Raises what `Files.write` does."""
    await _write(files, "/etc/resolv.conf", text)


async def _ifupdown(files: Files, executions: Executions, nics: Sequence[NicSpec], changed: Sequence[NicSpec]) -> None:
    present = await _read(files, interior.INTERFACES)
    await _write(files, interior.INTERFACES, interior.interfaces(present, nics))
    for nic in changed:
        for force in ("--force", "-f"):  # ifupdown's word, busybox's
            await _run(executions, "ifdown", force, nic.name, may_fail=True)
        await _run(executions, "ifup", nic.name)


async def _networkd(files: Files, executions: Executions, changed: Sequence[NicSpec]) -> None:
    for nic in changed:
        await _write(files, interior.unit_path(nic.name), interior.network_unit(nic))
    await _run(executions, "networkctl", "reload")
    for nic in changed:
        await _run(executions, "networkctl", "reconfigure", nic.name)


async def _any(files: Files, paths: Sequence[str]) -> bool:
    for path in paths:
        try:
            async with files.read(path, limit=0):
                return True
        except NotFound:
            continue
    return False


async def _read(files: Files, path: str) -> str:
    try:
        async with files.read(path, limit=_FILE_LIMIT_BYTES) as (_, content):
            return b"".join([piece async for piece in content]).decode(errors="replace")
    except NotFound:
        return ""


async def _write(files: Files, path: str, text: str) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield text.encode()

    await files.write(path, content(), FileWrite(parents=True))


async def _run(executions: Executions, *argv: str, may_fail: bool = False) -> None:
    said = b""
    try:
        async with asyncio.timeout(PROGRAM_LIMIT_S), executions.run(ExecRequest(argv=argv)) as execution:
            while item := await execution.next():
                said = (said + item[1])[-_OUTPUT_LIMIT_BYTES:]
            status = await execution.wait()
    except TimeoutError as error:
        raise TimedOut(f"{argv[0]} inside", PROGRAM_LIMIT_S) from error
    if status != 0 and not may_fail:
        lines = said.decode(errors="replace").strip().splitlines()
        raise GuestFault(f"{' '.join(argv)}: status {status}: {lines[-1] if lines else 'no message'}")
