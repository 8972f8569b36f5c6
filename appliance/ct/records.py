"""What is kept of a running container in its directory, so that a later appliance finds it again.

`RUN_DIR/ct/ID/` holds: `config.json` (the OCI bundle), `record.json` (this), `rootfs` and `mpN` (mount points),
`console.log`, `attach`, `ctl` (the shim's), `exit` (its exit code), `shim.pid`, `init.pid`.
The directory does not outlive a boot: the record names the boot it belongs to.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.errors import HostError
from appliance.kernel.pidfd import ProcessIdentity, identify

FORMAT = 1
NAME = "record.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """One mounted volume. `device` is the loop device of a raw image; `shifted` means its owners were changed on disk."""

    path: str
    device: str | None = None
    shifted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CtRecord:
    """A container that was started. Times are epoch seconds."""

    guest_id: int
    runtime: str
    started_at: float
    init: ProcessIdentity
    shim: ProcessIdentity
    id_base: int
    id_count: int
    volumes: dict[str, VolumeRecord]

    @property
    def alive(self) -> bool:
        """Whether its init still runs: the same process, not another with its number. Blocking."""
        return identify(self.init.pid) == self.init

    def encode(self) -> bytes:
        """JSON with format number and boot."""
        return json.dumps({"format": FORMAT, "boot": boot_id(), **asdict(self)}).encode()

    @staticmethod
    def decode(data: bytes) -> CtRecord | None:
        """The record, or None when it is damaged, of another boot or of an unknown format."""
        try:
            fields = json.loads(data)
            if fields.pop("format") != FORMAT or fields.pop("boot") != boot_id():
                return None
            fields["init"], fields["shim"] = (ProcessIdentity(**fields[name]) for name in ("init", "shim"))
            fields["volumes"] = {slot: VolumeRecord(**each) for slot, each in fields["volumes"].items()}
            return CtRecord(**fields)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def boot_id() -> str:
    """The kernel's name for this boot."""
    return _BOOT_ID.read_text().strip()


def save(directory: Path, name: str, data: bytes) -> None:
    """Replace a file of the directory whole; not synced, because the directory dies with the boot. Blocking.

    Raises `HostError`.
    """
    temporary = directory / f".{name}.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        temporary.replace(directory / name)
    except OSError as error:
        raise HostError.from_os_error(error, f"write {directory / name}") from error


def load(directory: Path) -> CtRecord | None:
    """The record in `directory`, or None. Blocking."""
    try:
        return CtRecord.decode((directory / NAME).read_bytes())
    except OSError:
        return None
