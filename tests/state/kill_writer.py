"""A writer that expects to be killed; `test_kill.py` starts it as `python -m tests.state.kill_writer PATH`.

The program imports everything once and then, for each byte on stdin, forks a child that opens the store and writes until it
dies; it answers the child's pid in one line on stdout. Acknowledged writes are told on descriptor 1 of the child as
records of `ACK`, each in one write, so that a kill never tears one.

What the children keep true, each in single transactions:
- `pair/W/{a,b,c}` of writer W carry one counter, which rises by one; the values are of several pages;
- the balances under `bank/` sum to `TOTAL`; money moves by compare-and-set;
- of `toggle/W/on` and `toggle/W/off` exactly one exists.
"""

from __future__ import annotations

import asyncio
import os
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import uvloop

from appliance.clock import SystemClock
from appliance.state.sqlite import SqliteStore
from appliance.state.store import Absent, Delete, Exists, Put, RevisionIs

ACK = struct.Struct("<HQQ")
"""Writer, counter, revision."""

READY = 0xFFFF
"""The "writer" of a child's first record: the store is open, the load begins."""

WRITERS = 6
ACCOUNTS = 8
TOTAL = 800
PADDING_BYTES = (0, 900, 9000)


def pair_value(counter: int, size_bytes: int) -> bytes:
    return b"%d:" % counter + b"p" * size_bytes


async def _write_pairs(store: SqliteStore, writer: int) -> None:
    document = await store.get(f"pair/{writer}/a")
    counter = int(document.value.partition(b":")[0]) if document else 0
    while True:
        counter += 1
        result = await store.txn(
            [Absent("stop")],
            [
                Put(f"pair/{writer}/{name}", pair_value(counter, size_bytes))
                for name, size_bytes in zip("abc", PADDING_BYTES, strict=True)
            ],
        )
        os.write(1, ACK.pack(writer, counter, result.revision))


async def _move_money(store: SqliteStore, chance: random.Random) -> None:
    while True:
        one, other = chance.sample(range(ACCOUNTS), 2)
        source, target = await store.get(f"bank/{one}"), await store.get(f"bank/{other}")
        assert source is not None
        assert target is not None
        amount = min(int(source.value), chance.randrange(20))
        await store.txn(
            [RevisionIs(source.key, source.mod_revision), RevisionIs(target.key, target.mod_revision)],
            [
                Put(source.key, b"%d" % (int(source.value) - amount)),
                Put(target.key, b"%d" % (int(target.value) + amount)),
            ],
        )


async def _toggle(store: SqliteStore, writer: int) -> None:
    on, off = f"toggle/{writer}/on", f"toggle/{writer}/off"
    while True:
        if not (await store.txn([Exists(on)], [Delete(on), Put(off, b"")])).succeeded:
            await store.txn([], [Delete(off), Put(on, b"")])


async def _write_for_ever(path: Path) -> None:
    store = await SqliteStore.open(path, SystemClock())
    await store.txn([Absent("bank/0")], [Put(f"bank/{n}", b"%d" % (TOTAL // ACCOUNTS)) for n in range(ACCOUNTS)])
    chance = random.Random()
    os.write(1, ACK.pack(READY, 0, 0))
    async with asyncio.TaskGroup() as group:
        for writer in range(WRITERS):
            group.create_task(_write_pairs(store, writer))
            group.create_task(_toggle(store, writer))
        group.create_task(_move_money(store, chance))
        group.create_task(_move_money(store, chance))


def acknowledged(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The (writer, counter, revision) records in what a child wrote."""
    return ACK.iter_unpack(data)


def main() -> None:
    """One child per byte on stdin; its pid as a record of its own on stderr's line, its acknowledgements on stdout."""
    path = Path(sys.argv[1])
    while os.read(0, 1):
        pid = os.fork()
        if pid == 0:
            uvloop.run(_write_for_ever(path))
        os.write(2, b"%d\n" % pid)
        os.waitpid(pid, 0)
        os.write(2, b"dead\n")


if __name__ == "__main__":
    main()
