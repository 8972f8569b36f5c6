"""Huge pages for a guest's memory: which size, and room for them in the host's pools. For both engines; blocking.

    any      1 GiB pages when the memory is a whole number of them and the pool has them; else 2 MiB
    2        from the pool as far as it has any; the rest is made for the guest and goes with it
    1024     from the pool only, which the operator fills at boot (`hugepagesz=1G hugepages=N`)
    keep     2 MiB ones are added to the pool and stay there, for the guest's next start

Room is made before the memory is taken, for one guest at a time; who takes it fails when another program was faster.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

from appliance.errors import HostError
from appliance.kernel import hugepages
from appliance.kernel.hugepages import KIB_1G, KIB_2M

_MAKING_ROOM: Final = threading.Lock()


def chosen_kib(word: str, sizes_mib: Iterable[int]) -> int:
    """The page size for PVE's word ("2", "1024", "any"; "" for none: 0) and memory in parts of these sizes. `OSError`."""
    if word != "any":
        return {"": 0, "2": KIB_2M, "1024": KIB_1G}[word]
    parts = list(sizes_mib)
    if KIB_1G not in hugepages.sizes_kib() or any(part % 1024 for part in parts):
        return KIB_2M
    return KIB_1G if hugepages.pool(KIB_1G).available >= sum(parts) // 1024 else KIB_2M


def problem(word: str, sizes: frozenset[int]) -> str:
    """Pure. Why a host with huge pages of these sizes in KiB (`hugepages.sizes_kib`) has none for `word`; "" when it has."""
    if word in ("2", "any") and KIB_2M not in sizes:
        return "the kernel has no huge pages of 2 MiB"
    return "the kernel has no huge pages of 1 GiB" if word == "1024" and KIB_1G not in sizes else ""


def make_room(size_kib: int, memory_mib: int, *, keep: bool, about: str) -> None:
    """See that so many pages can be had. Raises `HostError` saying how many there are."""
    needed = memory_mib * 1024 // size_kib
    with _MAKING_ROOM:
        try:
            short = needed - hugepages.pool(size_kib).available
            if short <= 0:
                return
            if size_kib != KIB_2M:
                raise HostError(
                    f"{about}: {needed} huge pages of 1 GiB are needed, {needed - short} are free: fill the pool at boot "
                    "(hugepagesz=1G hugepages=N)"
                )
            if keep:
                _grow(short, about)
            else:
                _allow(short)
        except OSError as error:
            raise HostError.from_os_error(error, about) from error


def _grow(short: int, about: str) -> None:
    before = hugepages.pool(KIB_2M).pages
    made = hugepages.set_pages(KIB_2M, before + short) - before
    if made < short:
        hugepages.set_pages(KIB_2M, before)
        raise HostError(f"{about}: {short} more huge pages of 2 MiB are needed, the kernel finds {max(0, made)}")


def _allow(short: int) -> None:
    """Raise the limit; it is never lowered, as it takes nothing by itself."""
    pool = hugepages.pool(KIB_2M)
    if pool.surplus + short > pool.overcommit:
        hugepages.set_overcommit(KIB_2M, pool.surplus + short)
