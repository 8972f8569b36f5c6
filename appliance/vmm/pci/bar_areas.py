"""A BAR of several parts: MSI-X's table and pending array, and around them the device's own registers."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.vmm.bus import BusHandler
from appliance.vmm.pci.msix import MsixTable


class BarAreas:
    """`areas` are (first, end, handler that sees offsets in its area); the rest is `otherwise`'s, which sees the BAR's.

    An access that lies in two parts is nobody's: zeros, ignored. No driver does that (PCI 3.0 §6.8.2: aligned doublewords
    and quadwords only), and no handler need think of it.
    """

    def __init__(self, areas: Sequence[tuple[int, int, BusHandler]], otherwise: BusHandler) -> None:
        self._areas = tuple(areas)
        self._otherwise = otherwise

    def read(self, offset: int, size: int) -> int:
        handler, inside = self._at(offset, size)
        return handler.read(inside, size)

    def write(self, offset: int, size: int, value: int) -> None:
        handler, inside = self._at(offset, size)
        handler.write(inside, size, value)

    def _at(self, offset: int, size: int) -> tuple[BusHandler, int]:
        for first, end, handler in self._areas:
            if offset < end and offset + size > first:
                if offset >= first and offset + size <= end:
                    return handler, offset - first
                return Unused(), offset
        return self._otherwise, offset


class Table:
    """MSI-X's table on the bus."""

    def __init__(self, msix: MsixTable) -> None:
        self._msix = msix

    def read(self, offset: int, size: int) -> int:
        return self._msix.read_table(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._msix.write_table(offset, size, value)


class Pending:
    """MSI-X's pending array on the bus; it is read-only."""

    def __init__(self, msix: MsixTable) -> None:
        self._msix = msix

    def read(self, offset: int, size: int) -> int:
        return self._msix.read_pending(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        pass


class Unused:
    """Nothing behind it: zeros."""

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass
