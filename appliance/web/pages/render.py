"""Templates to HTML: one jinja2 environment, autoescaped, with undefined names as errors; the words and units of the UI.

Templates are read and compiled once, in a thread. Whole pages are rendered in a thread too (a thousand rows take tens of
milliseconds), single fragments on the loop.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Hashable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from appliance.lazy import LazyModule
from appliance.version import VERSION

if TYPE_CHECKING:
    import jinja2
else:
    jinja2 = LazyModule("jinja2")

if TYPE_CHECKING:
    from appliance.services.task_records import TaskInfo
    from appliance.web.static import StaticFiles

TASK_WORDS: Mapping[str, str] = {
    "qmcreate": "Create", "qmstart": "Start", "qmstop": "Stop", "qmshutdown": "Shut down", "qmreboot": "Reboot",
    "qmreset": "Reset", "qmsuspend": "Suspend", "qmpause": "Suspend", "qmresume": "Resume", "qmdestroy": "Delete",
    "qmclone": "Clone", "qmconfig": "Configure", "qmtemplate": "Make template", "resize": "Resize disk",
    "vzcreate": "Create", "vzstart": "Start", "vzstop": "Stop", "vzshutdown": "Shut down", "vzreboot": "Reboot",
    "vzsuspend": "Suspend", "vzresume": "Resume", "vzdestroy": "Delete", "vzclone": "Clone",
    "vztemplate": "Make template", "vncproxy": "Open display", "termproxy": "Open console", "imgcopy": "Upload",
    "imgdel": "Delete volume", "download": "Download", "aptemplate": "Build template", "aplinfo": "Build template",
    "startall": "Start all guests", "stopall": "Stop all guests", "vzdump": "Back up",
}  # fmt: skip
SHARED_LIMIT = 4096
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class Renderer:
    """Renders templates by name. `static` gives the addresses of static files."""

    def __init__(self, directory: Path, static: StaticFiles) -> None:
        self._directory = directory
        self._static = static
        self._loaded = asyncio.Lock()
        self._ready = False
        self._shared: dict[tuple[str, Hashable], str] = {}

    @functools.cached_property
    def _environment(self) -> jinja2.Environment:
        """Made with the first page: jinja2 takes a tenth of a second to import."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(self._directory),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.globals |= {"static": self._static.url, "version": VERSION}
        environment.filters |= {
            "size": size,
            "percent": percent,
            "duration": duration,
            "moment": moment,
            "level": level,
            "task_title": task_title,
            "task_outcome": task_outcome,
            "number": number,
        }
        return environment

    async def page(self, name: str, context: Mapping[str, object]) -> str:
        """A template, rendered in a thread."""
        await self.ready()
        return await asyncio.to_thread(self._environment.get_template(name).render, context)

    async def fragment(self, name: str, context: Mapping[str, object]) -> str:
        """A small template, rendered at once."""
        await self.ready()
        return self._environment.get_template(name).render(context)

    async def shared(self, name: str, context: Mapping[str, object], key: Hashable) -> str:
        """A fragment that many pages want at once: `key` stands for everything it shows."""
        known = self._shared.get((name, key))
        if known is None:
            if len(self._shared) >= SHARED_LIMIT:
                self._shared.clear()
            known = self._shared[name, key] = await self.fragment(name, context)
        return known

    async def ready(self) -> None:
        """Compile every template, once."""
        if self._ready:
            return
        async with self._loaded:
            if not self._ready:
                await asyncio.to_thread(self._compile)
                self._ready = True

    def _compile(self) -> None:
        for name in self._environment.list_templates(extensions=["html"]):
            self._environment.get_template(name)


RENDERER: web.AppKey[Renderer] = web.AppKey("renderer")


def size(value: float) -> str:
    """Bytes for people: "1.5 GiB"."""
    amount, unit = float(value), 0
    while abs(amount) >= 1023.5 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    text = f"{amount:.0f}" if unit == 0 or amount >= 99.95 or amount == int(amount) else f"{amount:.1f}"
    return f"{text} {_UNITS[unit]}"


def percent(ratio: float) -> str:
    """0.256 is "26 %"; small loads keep one digit."""
    value = ratio * 100
    return f"{value:.1f} %" if 0.05 <= value < 9.95 else f"{value:.0f} %"


def number(value: float) -> str:
    """2.0 is "2", 1.5 is "1.5"."""
    return f"{value:g}"


def level(ratio: float) -> str:
    """How a meter should look: "", "high" from 80 %, "full" from 92 %."""
    if ratio >= 0.92:
        return "full"
    return "high" if ratio >= 0.8 else ""


def duration(seconds: float) -> str:
    """The two largest units: "3 d 4 h", "12 min 5 s"."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        amount, left = divmod(left, length)
        if amount or (unit == "s" and not parts):
            parts.append(f"{amount} {unit}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts)


def moment(epoch_s: float) -> str:
    """ISO 8601 in UTC, which `<time>` elements carry and the page's script shows in the reader's zone."""
    return datetime.fromtimestamp(int(epoch_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def task_title(task: TaskInfo) -> str:
    """What a task does, for people: "VM 100: Start"."""
    word = TASK_WORDS.get(task.type, task.type)
    if task.type.startswith("qm"):
        return f"VM {task.id}: {word}"
    if task.type.startswith("vz"):
        return f"Container {task.id}: {word}"
    if task.id.isdecimal():
        return f"Guest {task.id}: {word}"
    return f"{word}: {task.id}" if task.id else word


def task_outcome(task: TaskInfo) -> str:
    """One of running, ok, warn, bad."""
    if task.endtime is None:
        return "running"
    if task.status == "OK":
        return "ok"
    return "warn" if (task.status or "").startswith("WARNINGS") else "bad"
