"""What a helper process has read and written, as the kernel counts it (proc(5), /proc/PID/io). Blocking.

    rchar, wchar              bytes of read and write calls, whatever the page cache made of them
    read_bytes, write_bytes   bytes of the storage, also those that other ways of I/O (libaio) fetched
The larger of the two is taken: the first misses libaio, the second what was cached. A process begins with some of its own
(its libraries): `begun` notes those.
"""

from __future__ import annotations

from pathlib import Path

from appliance.vmm.block.backend import BlockStatistics

_Moved = tuple[int, int]  # read, written


class DaemonIo:
    """Of one helper, over its restarts: what a process did between the last look and its end is lost."""

    def __init__(self) -> None:
        self._pid = 0
        self._own: _Moved = (0, 0)  # what a process does before it has work
        self._earlier: _Moved = (0, 0)  # by the processes before this one
        self._now: _Moved = (0, 0)

    def begun(self, pid: int) -> None:
        """The first process is ready, and has had no work yet."""
        self._pid, self._own = pid, _moved(pid) or (0, 0)

    def statistics(self, pid: int | None) -> BlockStatistics:
        """So far; `pid` is the process there is, if any."""
        moved = _moved(pid) if pid is not None else None
        if pid is not None and moved is not None:
            if pid != self._pid:
                self._pid, self._earlier = pid, self._now
            read, written = (max(0, now - own) for now, own in zip(moved, self._own, strict=True))
            self._now = self._earlier[0] + read, self._earlier[1] + written
        return BlockStatistics(read_bytes=self._now[0], written_bytes=self._now[1])


def _moved(pid: int) -> _Moved | None:
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:  # it has ended
        return None
    counts = {name: int(value) for name, _, value in (line.partition(": ") for line in text.splitlines())}
    return max(counts["rchar"], counts["read_bytes"]), max(counts["wchar"], counts["write_bytes"])
