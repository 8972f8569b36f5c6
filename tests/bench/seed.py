"""`python -m tests.bench.seed --data-dir DIR [--guests 1000] [--nodes 10]`: an installation as large as it gets, without disks.

Guests are written straight into the store of an appliance that does not run, as the appliance itself writes them: VMs and
containers with names, tags and notes, in pools, on the nodes `--nodes` says. There are no clusters yet: the nodes are
those that guests' records name, the first is the appliance's own. Also used by `./dev bench ui`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from appliance.clock import SystemClock
from appliance.config import default_node_name
from appliance.model.guest import GuestKind
from appliance.services import guest_records
from appliance.services.directory import Pool
from appliance.services.guest_records import GuestRecord
from appliance.state.sqlite import SqliteStore
from appliance.state.store import Operation, Put

FIRST_ID = 100
AT_ONCE = 200
ROLES = ("web", "db", "cache", "mail", "build", "proxy", "files", "queue", "metrics", "auth")
PLACES = ("berlin", "oslo", "lisbon", "prague", "dublin")
TAGS = ("production", "staging", "test", "customer-a", "customer-b", "backup", "legacy")
POOLS = ("office", "shop", "research", "customers", "archive")


def node_names(own: str, count: int) -> Sequence[str]:
    """The appliance's own node and others."""
    return [own, *(f"node-{number:02d}" for number in range(2, count + 1))]


def records(guests: int, nodes: Sequence[str]) -> Iterator[GuestRecord]:
    """The guests; the same for the same numbers."""
    chance = random.Random(guests)
    for number in range(guests):
        guest_id = FIRST_ID + number
        is_ct = number % 3 == 0
        name = f"{chance.choice(ROLES)}-{chance.choice(PLACES)}-{number:03d}"
        config = {
            "hostname" if is_ct else "name": name, "memory": str(chance.choice((512, 1024, 2048, 8192))),
            "cores": str(chance.choice((1, 2, 4))), "tags": ";".join(sorted(chance.sample(TAGS, 2))),
            "description": f"Guest {number} of {guests}.\\n\\nAsk before you restart it.",
        }  # fmt: skip
        if is_ct:
            config |= {"ostype": "debian", "rootfs": f"local:{guest_id}/vm-{guest_id}-disk-0.raw,size=8G", "unprivileged": "1",
                       "arch": "amd64"}  # fmt: skip
        yield GuestRecord(
            guest_id=guest_id, kind=(GuestKind.LXC if is_ct else GuestKind.QEMU).value, node=nodes[number % len(nodes)],
            config=config, created_at=time.time(), id_base=(1 << 20) + number * 65536 if is_ct else 0,
        )  # fmt: skip


async def seed(data_dir: Path, *, guests: int, nodes: Sequence[str]) -> None:
    """Write them. The appliance must have been started once before, and not run."""
    store = await SqliteStore.open(data_dir / "state.db", SystemClock())
    try:
        operations: list[Operation] = [
            Put(f"{guest_records.GUESTS}{record.guest_id}", guest_records.encode(record))
            for record in records(guests, nodes)
        ]
        ids = range(FIRST_ID, FIRST_ID + guests)
        for number, name in enumerate(POOLS):
            pool = Pool(guests=tuple(ids[number :: 2 * len(POOLS)]))
            operations.append(Put(f"access/pools/{name}", msgspec.json.encode(pool)))
        for begin in range(0, len(operations), AT_ONCE):
            await store.txn([], operations[begin : begin + AT_ONCE])
    finally:
        await store.close()


def main() -> int:
    """Status 0 when done."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.seed", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--guests", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--node-name", default=default_node_name())
    options = parser.parse_args()
    nodes = node_names(options.node_name, options.nodes)
    asyncio.run(seed(options.data_dir, guests=options.guests, nodes=nodes))
    print(f"{options.guests} guests on {options.nodes} nodes in {options.data_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
