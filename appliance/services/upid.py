"""UPIDs, PVE's names of tasks: `UPID:node:PID:PSTART:STARTTIME:type:id:user:`, nine parts between colons.

PID, PSTART and STARTTIME are eight upper-case hex digits. With one process running all tasks, PID is the appliance's and
PSTART a counter that tells its tasks apart. The text is a file name and a store key as well, so its free parts hold
neither "/" nor blanks nor control characters; what an object or a user is really called stands in the task's record.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.errors import InvalidParameter

ID_LIMIT = 48
USER_LIMIT = 64

_UPID = re.compile(
    r"UPID:(?P<node>[A-Za-z0-9][A-Za-z0-9-]{0,62})"
    r":(?P<pid>[0-9A-Fa-f]{8}):(?P<pstart>[0-9A-Fa-f]{8,9}):(?P<starttime>[0-9A-Fa-f]{8})"
    r":(?P<type>[A-Za-z0-9_-]{1,32}):(?P<id>[A-Za-z0-9_.@!+=,-]{0,48}):(?P<user>[A-Za-z0-9_.@!+=,-]{1,64}):"
)
_UNSAFE = re.compile(r"[^A-Za-z0-9_.@!+=,-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upid:
    """The parts of a UPID. `starttime` is epoch seconds."""

    node: str
    pid: int
    pstart: int
    starttime: int
    type: str
    id: str
    user: str

    @staticmethod
    def parse(text: str) -> Upid:
        """Raises `InvalidParameter` for anything else than a UPID of ours."""
        match = _UPID.fullmatch(text)
        if match is None:
            raise InvalidParameter({"upid": f"{text[:100]!r} is not a UPID"})
        return Upid(
            node=match["node"],
            pid=int(match["pid"], 16),
            pstart=int(match["pstart"], 16),
            starttime=int(match["starttime"], 16),
            type=match["type"],
            id=match["id"],
            user=match["user"],
        )

    def __str__(self) -> str:
        numbers = f"{self.pid:08X}:{self.pstart:08X}:{self.starttime:08X}"
        return f"UPID:{self.node}:{numbers}:{self.type}:{self.id}:{self.user}:"


def safe_part(text: str, limit: int) -> str:
    """`text` as it may stand in a UPID: other characters become "_", at most `limit` of them."""
    return _UNSAFE.sub("_", text)[:limit]
