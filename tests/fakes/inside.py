"""What is inside a running guest: files that are a dictionary, and programs that say what was prepared for them.

`InsideCt` is a container; `InsideVm` a VM whose agent reaches the same. "sleep" runs until somebody ends it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from appliance.errors import Conflict, GuestFault, NotFound
from appliance.model.guest import GuestId, GuestState
from appliance.model.inside import ExecRequest, FileInfo, FileWrite
from tests.fakes.guests import AgentVm

MTIME = 1_700_000_000
Said = tuple[int, bytes]


@dataclass(slots=True)
class Interior:
    """`contents` by path, `links` by path; `programs` by their command line: what they say, and their exit code."""

    contents: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    programs: dict[str, tuple[Sequence[Said], int]] = field(default_factory=dict)

    def names_in(self, directory: str) -> list[dict[str, object]]:
        """The entries of a directory, as the engine tells them."""
        below = f"{directory.rstrip('/')}/"
        found: dict[str, dict[str, object]] = {}
        for path in (*self.contents, *self.links):
            if not path.startswith(below):
                continue
            name, slash, _ = path.removeprefix(below).partition("/")
            kind = "directory" if slash else "link" if path in self.links else "file"
            size = len(self.contents[path]) if kind == "file" else 0
            found[name] = {"name": name, "type": kind, "size": size, "mode": 0o755 if slash else 0o644}
        return [found[name] for name in sorted(found)]


class InsideCt:
    """A running container that lets somebody in; `asked` are the programs it was asked for, `ended` those cut off."""

    def __init__(self, guest_id: int, interior: Interior) -> None:
        self.guest_id = GuestId(guest_id)
        self.pid = 4242
        self.state = GuestState.RUNNING
        self.interior = interior
        self.asked: list[ExecRequest] = []
        self.ended: list[ExecRequest] = []

    @property
    def executions(self) -> InsideCt:
        return self

    @property
    def files(self) -> InsideCt:
        return self

    @asynccontextmanager
    async def run(self, request: ExecRequest) -> AsyncIterator[FakeExecution]:
        self.asked.append(request)
        line = " ".join(request.argv)
        if request.argv[0] != "sleep" and line not in self.interior.programs:
            raise GuestFault(f"ct {self.guest_id}: exec: {request.argv[0]}: No such file or directory")
        says, code = self.interior.programs.get(line, ((), 0))
        try:
            yield FakeExecution(list(says), code, endless=request.argv[0] == "sleep")
        except asyncio.CancelledError:
            self.ended.append(request)
            raise

    @asynccontextmanager
    async def read(
        self, path: str, *, offset: int = 0, limit: int = 1 << 62
    ) -> AsyncIterator[tuple[FileInfo, AsyncIterator[bytes]]]:
        target = self.interior.links.get(path, "")
        path = target or path
        content = self.interior.contents.get(path)
        if content is None:
            entries = self.interior.names_in(path)
            if not entries and path != "/":
                raise NotFound(f"ct {self.guest_id}: {path}")
            yield FileInfo(type="directory", mode=0o755, mtime=MTIME, entries=tuple(entries)), _pieces(b"")
            return
        info = FileInfo(type="file", size=len(content), mode=0o644, mtime=MTIME, target=target)
        yield info, _pieces(content[offset : offset + limit])

    async def write(self, path: str, content: AsyncIterator[bytes], how: FileWrite) -> FileInfo:
        if how.expected and _digest(self.interior.contents, path) != how.expected:
            raise Conflict(f"ct {self.guest_id}: {path}: the file has been changed by somebody else")
        data = b"".join([piece async for piece in content])
        self.interior.contents[path] = data
        return FileInfo(type="file", size=len(data), mode=how.mode or 0o644, mtime=MTIME)


@dataclass(slots=True)
class FakeExecution:
    """A program that says its pieces and ends, unless it is `endless`."""

    says: list[Said]
    code: int
    endless: bool

    async def next(self) -> Said | None:
        await asyncio.sleep(0)
        if self.says:
            return self.says.pop(0)
        if self.endless:
            await asyncio.Event().wait()
        return None

    async def wait(self) -> int:
        return self.code


class InsideVm(AgentVm):
    """A running VM with an agent; `silent` plays one that is not there, `frozen` is the state of its file systems."""

    def __init__(self, guest_id: int, interior: Interior) -> None:
        super().__init__(guest_id)
        self.interior = interior
        self.silent = False
        self.frozen = False
        self._started: list[str] = []
        self._open: dict[int, str] = {}
        self._places: dict[int, int] = {}

    async def agent(self, command: str, **arguments: object) -> object:
        self.asked.append((command, arguments))
        if self.silent:
            raise GuestFault(f"vm {self.guest_id}: QEMU guest agent is not running")
        match command:
            case "exec":
                self._started.append(" ".join([str(arguments["path"]), *_words(arguments["arg"])]))
                return {"pid": len(self._started)}
            case "exec-status":
                return self._status(int(str(arguments["pid"])))
            case "file-open" | "file-seek" | "file-read" | "file-write":
                return self._of_file(command, arguments)
            case "fsfreeze-status":
                return "frozen" if self.frozen else "thawed"
            case "fsfreeze-freeze" | "fsfreeze-thaw":
                self.frozen = command == "fsfreeze-freeze"
                return 2
        return self.answers.get(command, [{}])[0]

    def _status(self, pid: int) -> Mapping[str, object]:
        line = self._started[pid - 1]
        if line.startswith("sleep"):
            return {"exited": False}
        says, code = self.interior.programs[line]
        out, err = (b"".join(text for stream, text in says if stream == wanted) for wanted in (1, 2))
        return {"exited": True, "exitcode": code, "out-data": _encoded(out), "err-data": _encoded(err)}

    def _of_file(self, command: str, arguments: Mapping[str, object]) -> object:
        contents = self.interior.contents
        if command == "file-open":
            path = str(arguments["path"])
            if arguments["mode"] == "rb" and path not in contents:
                raise GuestFault(f"vm {self.guest_id}: guest agent: guest-file-open: {path}: No such file or directory")
            if arguments["mode"] == "wb":
                contents[path] = b""
            handle = len(self._open)
            self._open[handle], self._places[handle] = path, 0
            return handle
        handle = int(str(arguments["handle"]))
        path, place = self._open[handle], self._places[handle]
        if command == "file-write":
            written = base64.b64decode(str(arguments["buf-b64"]))
            contents[path] = contents[path][:place] + written
            self._places[handle] += len(written)
            return {"count": len(written), "eof": False}
        if command == "file-seek":
            self._places[handle] = int(str(arguments["offset"]))
            return {}
        data = contents[path][place : place + int(str(arguments["count"]))]
        self._places[handle] += len(data)
        return {"count": len(data), "buf-b64": _encoded(data), "eof": self._places[handle] >= len(contents[path])}


def _words(value: object) -> Sequence[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _digest(contents: Mapping[str, bytes], path: str) -> str:
    return hashlib.sha256(contents[path]).hexdigest() if path in contents else "absent"


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data
