"""What one running VM keeps on the host: `RUN_DIR/vm/ID/`, mode 0700, removed when the VM has ended.

    run.json          the record below; written before the launch, again with the pid after it
    pid               written by QEMU itself (`-pidfile`)
    qemu.log          QEMU's stderr
    qmp.sock          monitor       qga.sock    guest agent      vnc.sock   display
    serialN.sock      a serial console                           serialN.log  all it ever said
    virtiofsN.sock    a shared directory's virtiofsd             virtiofsN.log  its complaints
    vars.fd           UEFI variables of a VM without an EFI disk

Everything here blocks briefly: call it in a thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.errors import HostError
from appliance.files import write_atomic
from appliance.kernel.pidfd import ProcessIdentity, identify
from appliance.model.guest import GuestId, VmSpec
from appliance.qemu import process

RECORD_VERSION = 1
SOCKET_PATH_LIMIT_BYTES = 107  # unix(7): sun_path holds 108 with its terminating zero
_RECORD_LIMIT_BYTES = 1 << 20
LOG_TAIL_BYTES = 8 << 10
_PREFIX = re.compile(r"^(?:\d{4}-\d\d-\d\dT\S+ )?(?:\S*qemu-system-\w+: )?")


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of a launched VM whatever becomes of its configuration. `pid` 0: not launched yet as far as known.

    Saved as JSON, version first; new members get defaults, none is ever renamed.
    """

    version: int = RECORD_VERSION
    guest_id: int
    uuid: str
    started_at: float
    pid: int = 0
    start_ticks: int = 0
    memory_mib: int
    serials: tuple[int, ...] = ()
    display: bool = False
    agent: bool = False
    balloon: bool = False
    spec: VmSpec | None = None
    """What it has now: hot-plug changes it. Without what cloud-init was told. None: of an earlier appliance."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of one VM."""

    path: Path
    guest_id: GuestId

    @staticmethod
    def of(run_dir: Path, guest_id: GuestId) -> RunDir:
        """The directory of `guest_id` below the engine's `run_dir`."""
        return RunDir(run_dir / "vm" / str(guest_id), guest_id)

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def pid(self) -> Path:
        return self.path / "pid"

    @property
    def log(self) -> Path:
        return self.path / "qemu.log"

    @property
    def qmp(self) -> Path:
        return self.path / "qmp.sock"

    @property
    def agent(self) -> Path:
        return self.path / "qga.sock"

    @property
    def vnc(self) -> Path:
        return self.path / "vnc.sock"

    @property
    def vars(self) -> Path:
        return self.path / "vars.fd"

    def serial(self, number: int) -> Path:
        """The socket of serial port `number`."""
        return self.path / f"serial{number}.sock"

    def share(self, slot: str) -> Path:
        """The socket of a shared directory's daemon."""
        return self.path / f"{slot}.sock"

    def serial_log(self, number: int) -> Path:
        """The log of serial port `number`."""
        return self.path / f"serial{number}.log"

    def socket_path_problem(self) -> str:
        """Why UNIX sockets cannot be made here; empty when they can."""
        longest = max((self.share("virtiofs9"), self.qmp, self.vnc), key=lambda path: len(os.fsencode(path)))
        size = len(os.fsencode(longest))
        if size <= SOCKET_PATH_LIMIT_BYTES:
            return ""
        limit = SOCKET_PATH_LIMIT_BYTES
        return f"socket path {longest} is {size} bytes long, the limit is {limit}: choose a shorter run directory"

    def create(self) -> None:
        """Make it anew, without anything an earlier run left. Raises `HostError`."""
        try:
            self.remove()
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700)
        except OSError as error:
            raise HostError.from_os_error(error, f"vm {self.guest_id}: make {self.path}") from error

    def remove(self) -> None:
        """Remove it with all it holds. Idempotent. Raises `OSError`."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path)

    def write_record(self, record: RunRecord) -> None:
        """Replace the record atomically. Raises `HostError`."""
        write_atomic(self.record, msgspec.json.encode(record), mode=0o600)

    def update_spec(self, spec: VmSpec) -> None:
        """Note what it has now. Raises `HostError`."""
        if (record := self.read_record()) is not None:
            self.write_record(msgspec.structs.replace(record, spec=spec))

    def read_record(self) -> RunRecord | None:
        """The record; None when there is none or it is not one of ours."""
        try:
            with self.record.open("rb") as file:
                record = msgspec.json.decode(file.read(_RECORD_LIMIT_BYTES), type=RunRecord)
        except (OSError, msgspec.DecodeError):
            return None
        return record if record.version == RECORD_VERSION and record.guest_id == self.guest_id else None

    def find_process(self, record: RunRecord) -> ProcessIdentity | None:
        """This VM's QEMU if it lives; never another process that got its number later.

        The record's pid is missing when the appliance died within the launch: then all processes are looked through.
        """
        pid = record.pid or process.find_launched_with(self.pid)
        if not pid or not process.is_launched_with(pid, self.pid) or record.uuid not in process.read_argv(pid):
            return None
        found = identify(pid)
        return None if found and record.start_ticks and found.start_ticks != record.start_ticks else found

    def complaints(self) -> list[str]:
        """What QEMU said on stderr, without time stamps; warnings only when there is nothing else."""
        lines = [_PREFIX.sub("", line) for line in self.log_lines()]
        return [line for line in lines if not line.startswith("warning:")] or lines

    def log_lines(self, limit: int = 20) -> list[str]:
        """The newest lines of QEMU's stderr."""
        text = read_tail(self.log, LOG_TAIL_BYTES).decode(errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()][-limit:]


def read_tail(path: Path, limit_bytes: int, *, end: int | None = None) -> bytes:
    """The last bytes of a file before offset `end` (default its end); empty when there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END) if end is None else end
            start = max(0, size - limit_bytes)
            file.seek(start)
            return file.read(size - start)
    except FileNotFoundError:
        return b""
