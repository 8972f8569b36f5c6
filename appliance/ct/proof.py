"""The memory of a passed self-test: one file in the run directory, which dies with the boot as the kernel's answer does.

A self-test costs a fifth of a second, at every start of the appliance. What it proved still holds while runtime program,
host facts and boot are the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from appliance.ct import oci, records
from appliance.errors import HostError

_NAME = "runtime.json"


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What passed, and in which surroundings. `facts` is a digest."""

    version: int = 1
    program: str
    modified_ns: int
    size_bytes: int
    facts: str
    said: str
    takes_pipe: bool = False


def describe(program: Path, facts: oci.HostFacts, *, said: str, takes_pipe: bool = False) -> Proof:
    """The proof that `program` passes with `facts`; `said` is its version text, `takes_pipe` as `OciRuntime` has it. Blocking.
    Raises `OSError`."""
    status = program.stat()
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()
    return Proof(
        program=str(program),
        modified_ns=status.st_mtime_ns,
        size_bytes=status.st_size,
        facts=digest,
        said=said,
        takes_pipe=takes_pipe,
    )


def recall(directory: Path, program: Path, facts: oci.HostFacts) -> Proof | None:
    """What is known of `program` when its self-test has passed here before; else None. Blocking."""
    try:
        known = msgspec.json.decode((directory / _NAME).read_bytes(), type=Proof)
        same = describe(program, facts, said=known.said, takes_pipe=known.takes_pipe)
        return known if known == same else None
    except (OSError, msgspec.MsgspecError):
        return None


def remember(directory: Path, program: Path, facts: oci.HostFacts, *, said: str, takes_pipe: bool = False) -> None:
    """Note that the self-test has passed. Without room it is simply run again next time. Blocking."""
    try:
        records.save(directory, _NAME, msgspec.json.encode(describe(program, facts, said=said, takes_pipe=takes_pipe)))
    except (OSError, HostError):
        return
