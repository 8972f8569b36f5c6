"""Hook scripts: a snippet run on the host, as root, when a guest's state changes. PVE's calling convention: VMID and phase.

Who sets one holds Sys.Modify on `/`. Uploads are never executable: only the host's root can make a script of a snippet, so
that the right to upload is not the right to run something. `pre-start` may refuse the start; what the others do wrong is
told and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from appliance import command
from appliance.errors import ApplianceError, CommandFailed, HostError
from appliance.model.guest import GuestId
from appliance.model.volume import VolumeId
from appliance.services.ports import LogLine
from appliance.services.storage import StorageService

log = logging.getLogger(__name__)

LIMIT_S = 600.0
STOP_LIMIT_S = 60.0
"""Before a stop: whoever pulls the plug does not wait longer for a script."""
LINES_SHOWN = 100
PRE_START, POST_START, PRE_STOP, POST_STOP = "pre-start", "post-start", "pre-stop", "post-stop"


async def run(storage: StorageService, script: str, guest_id: GuestId, phase: str, log_line: LogLine) -> None:
    """Run the snippet `script` ("" for none) for `phase`. Raises `ApplianceError` only for `pre-start`."""
    if not script:
        return
    try:
        await _run(storage, script, guest_id, phase, log_line)
    except ApplianceError as error:
        if phase == PRE_START:
            raise
        log_line(f"hook script {script}: {phase}: {error}")


async def _run(storage: StorageService, script: str, guest_id: GuestId, phase: str, log_line: LogLine) -> None:
    path = (await storage.open(VolumeId.parse(script))).path
    if not await asyncio.to_thread(_is_executable, path):
        raise HostError(f"hook script {script} is not executable: on the host, chmod +x {path}")
    limit_s = STOP_LIMIT_S if phase == PRE_STOP else LIMIT_S
    done = await command.run([str(path), str(guest_id), phase], timeout_s=limit_s, check=False, cwd=Path("/"))
    for line in (done.stdout + done.stderr).decode(errors="replace").splitlines()[-LINES_SHOWN:]:
        log_line(f"{phase}: {line}")
    if done.returncode != 0:
        raise CommandFailed((script, phase), done.returncode, done.stderr.decode(errors="replace"))


def _is_executable(path: Path) -> bool:
    return os.access(path, os.X_OK)
