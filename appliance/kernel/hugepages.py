"""Huge pages: pools of them (Documentation/admin-guide/mm/hugetlbpage.rst), and those made as memory is touched. Blocking.

    nr_hugepages             pages the pool keeps, used or not
    free, resv               of these: not in use; promised to mappings that have not touched them yet
    nr_overcommit_hugepages  how many more may be made when the pool is used up; they go as their user goes

So a guest's pages are best made over the pool's size: nothing is left behind, however its end comes. Gigantic pages
(1 GiB) are never made so (mm/hugetlb.c, alloc_surplus_hugetlb_folio): they must be in the pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

DIRECTORY: Final = Path("/sys/kernel/mm/hugepages")
KIB_2M, KIB_1G = 2048, 1 << 20


SHARED_MEMORY_POLICY: Final = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
"""Whether a memfd, which native machines' RAM is, gets huge pages as it is touched (transhuge.rst). The kernel's own
default is "never"; "advise" gives them to who asks by madvise(2)."""
HUGE_SHARED_MEMORY: Final = frozenset({"always", "within_size", "advise", "force"})


@dataclass(frozen=True, slots=True)
class Pool:
    """Pages of one size, counted."""

    pages: int
    free: int
    promised: int
    overcommit: int
    surplus: int

    @property
    def available(self) -> int:
        """Pages of the pool nobody has a claim on."""
        return max(0, self.free - self.promised)


def sizes_kib() -> frozenset[int]:
    """The sizes this host knows."""
    if not DIRECTORY.is_dir():
        return frozenset()
    names = (path.name.removeprefix("hugepages-").removesuffix("kB") for path in DIRECTORY.iterdir())
    return frozenset(int(name) for name in names if name.isdecimal())


def pool(size_kib: int) -> Pool:
    """`OSError` naming the file."""
    return Pool(
        pages=_read(size_kib, "nr_hugepages"),
        free=_read(size_kib, "free_hugepages"),
        promised=_read(size_kib, "resv_hugepages"),
        overcommit=_read(size_kib, "nr_overcommit_hugepages"),
        surplus=_read(size_kib, "surplus_hugepages"),
    )


def shared_memory_policy() -> str:
    """The word chosen in `SHARED_MEMORY_POLICY`; "" where the kernel has no such pages."""
    try:
        words = SHARED_MEMORY_POLICY.read_text().split()
    except OSError:
        return ""
    return next((word.strip("[]") for word in words if word.startswith("[")), "")


def set_overcommit(size_kib: int, pages: int) -> None:
    """How many pages may exist beyond the pool. `OSError` naming the file."""
    _write(size_kib, "nr_overcommit_hugepages", pages)


def set_pages(size_kib: int, pages: int) -> int:
    """Make the pool so large; how large it has become: the kernel gives what it finds. `OSError` naming the file."""
    _write(size_kib, "nr_hugepages", pages)
    return _read(size_kib, "nr_hugepages")


def _read(size_kib: int, name: str) -> int:
    path = _file(size_kib, name)
    try:
        return int(path.read_text())
    except OSError as error:
        raise OSError(error.errno, f"read {path}: {error.strerror}") from error


def _write(size_kib: int, name: str, value: int) -> None:
    path = _file(size_kib, name)
    try:
        path.write_text(str(value))
    except OSError as error:
        raise OSError(error.errno, f"write {path}: {error.strerror}") from error


def _file(size_kib: int, name: str) -> Path:
    return DIRECTORY / f"hugepages-{size_kib}kB" / name
