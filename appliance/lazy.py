"""Modules that are imported when first used: heavy libraries must not delay the start of the appliance.

if TYPE_CHECKING:
    import pycdlib
else:
    pycdlib = LazyModule("pycdlib")
"""

from __future__ import annotations

import importlib


class LazyModule:
    """Stands for a module; its attributes import it. Any thread may be first: the import system has its own lock."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        return getattr(importlib.import_module(self._name), attribute)


def load(*names: str) -> None:
    """Import modules now. Blocking: for a thread, before the loop touches what stands for them."""
    for name in names:
        importlib.import_module(name)
