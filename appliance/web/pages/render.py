"""Templates to HTML: a jinja2 environment a language, autoescaped, with undefined names as errors; words and units.

Templates are read, translated and compiled once, in a thread. Whole pages are rendered in a thread too (a thousand
rows take tens of milliseconds), single fragments on the loop. `voice(request)` renders for one reader: in their
language, with every address below the prefix a proxy publishes us under (templates write all addresses from the root).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from aiohttp import web

from appliance.lazy import LazyModule
from appliance.version import VERSION
from appliance.web import proxy
from appliance.web.pages import language
from appliance.web.pages.language import ENGLISH, Catalogue

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
    "vncshell": "Open shell", "srvreload": "Apply settings",
    "imgdel": "Delete volume", "download": "Download", "aptemplate": "Build template", "aplinfo": "Build template",
    "ocipush": "Push image", "ocigc": "Clean up images", "ocibuild": "Build image",
    "startall": "Start all guests", "stopall": "Stop all guests", "vzdump": "Back up",
    "vzdump-several": "Back up several guests", "prunebackups": "Remove old backups",
    "qmrestore": "Restore", "vzrestore": "Restore", "qmmove": "Move disk", "move_volume": "Move volume",
}  # fmt: skip
SHARED_LIMIT = 4096
TAG_HUES = 12
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_PLACES = "href|src|action|hx-get|hx-post|data-next|data-gone|data-href|data-icons|data-pop-out|data-dialog"
_FROM_ROOT = re.compile(rf'(\s(?:{_PLACES})=")/(?!/)')
"""Addresses in what was rendered: no text of a user can look like one, its quotes are escaped."""


class Renderer:
    """Renders templates by name. `static` gives the addresses of static files."""

    def __init__(self, directory: Path, static: StaticFiles) -> None:
        self._directory = directory
        self._static = static
        self._loading = asyncio.Lock()
        self._environments: dict[str, jinja2.Environment] = {}
        self._shared: dict[tuple[str, str, Hashable], str] = {}

    async def page(self, name: str, context: Mapping[str, object], *, tongue: str = ENGLISH) -> str:
        """A template, rendered in a thread."""
        environment = await self.ready(tongue)
        return await asyncio.to_thread(environment.get_template(name).render, context)

    async def fragment(self, name: str, context: Mapping[str, object], *, tongue: str = ENGLISH) -> str:
        """A small template, rendered at once."""
        return (await self.ready(tongue)).get_template(name).render(context)

    async def shared(self, name: str, context: Mapping[str, object], key: Hashable, *, tongue: str = ENGLISH) -> str:
        """A fragment that many pages want at once: `key` stands for everything it shows."""
        known = self._shared.get((name, tongue, key))
        if known is None:
            if len(self._shared) >= SHARED_LIMIT:
                self._shared.clear()
            known = self._shared[name, tongue, key] = await self.fragment(name, context, tongue=tongue)
        return known

    async def ready(self, tongue: str = ENGLISH) -> jinja2.Environment:
        """The environment of a language, every template compiled, once: jinja2 takes a tenth of a second to import."""
        known = self._environments.get(tongue)
        if known is not None:
            return known
        async with self._loading:
            if tongue not in self._environments:
                self._environments[tongue] = await asyncio.to_thread(self._compile, tongue)
            return self._environments[tongue]

    def _compile(self, tongue: str) -> jinja2.Environment:
        catalogue = Catalogue.read(self._directory, tongue)
        environment = jinja2.Environment(
            loader=_loader(self._directory, catalogue),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.globals |= {
            "static": self._static.url, "version": VERSION, "_": catalogue, "language": catalogue.language,
            "languages": language.LANGUAGES, "script_words": catalogue.of_scripts(self._static.root / "js"),
        }  # fmt: skip
        filters: dict[str, Callable[..., str | int]] = {
            "size": _localized(size, catalogue),
            "percent": _localized(percent, catalogue),
            "duration": duration,
            "moment": moment,
            "level": level,
            "task_title": lambda task: task_title(task, catalogue),
            "task_outcome": task_outcome,
            "number": number,
            "urldecode": unquote,
            "tag_hue": tag_hue,
            "cpus": cpus,
        }
        environment.filters |= filters
        for name in jinja2.FileSystemLoader(self._directory).list_templates():
            if not name.endswith(".html"):
                continue
            environment.get_template(name)
        return environment


@dataclass(frozen=True, slots=True)
class Voice:
    """A renderer as one reader hears it."""

    renderer: Renderer
    tongue: str = ENGLISH
    prefix: str = ""

    @property
    def at_root(self) -> Voice:
        """The same without the prefix: for what becomes part of something that gets it."""
        return replace(self, prefix="") if self.prefix else self

    async def page(self, name: str, context: Mapping[str, object]) -> str:
        """A template, rendered in a thread."""
        html = await self.renderer.page(name, {"prefix": self.prefix, **context}, tongue=self.tongue)
        return self._placed(html)

    async def fragment(self, name: str, context: Mapping[str, object]) -> str:
        """A small template, rendered at once."""
        html = await self.renderer.fragment(name, {"prefix": self.prefix, **context}, tongue=self.tongue)
        return self._placed(html)

    async def shared(self, name: str, context: Mapping[str, object], key: Hashable) -> str:
        """A fragment that many pages want at once: `key` stands for everything it shows."""
        return self._placed(await self.renderer.shared(name, context, key, tongue=self.tongue))

    def _placed(self, html: str) -> str:
        return _FROM_ROOT.sub(lambda match: f"{match[1]}{self.prefix}/", html) if self.prefix else html


def voice(request: web.Request) -> Voice:
    """For whoever sent the request."""
    tongue = language.choose(request.cookies.get(language.COOKIE), request.headers.get("Accept-Language", ""))
    return Voice(request.app[RENDERER], tongue, proxy.prefix(request))


def _loader(directory: Path, catalogue: Catalogue) -> jinja2.BaseLoader:
    """Templates from files; in the catalogue's language."""
    files = jinja2.FileSystemLoader(directory)
    if not catalogue.words:
        return files

    def load(name: str) -> str:
        path = jinja2.loaders.split_template_path(name)
        return language.translate(directory.joinpath(*path).read_text(encoding="utf-8"), catalogue.words)

    return jinja2.ChoiceLoader([jinja2.FunctionLoader(load), files])


def _localized(words: Callable[[float], str], catalogue: Catalogue) -> Callable[[float], str]:
    """A number's text with the language's decimal separator."""
    separator = language.DECIMAL.get(catalogue.language, ".")
    return words if separator == "." else lambda value: words(value).replace(".", separator)


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


def cpus(value: float) -> str:
    """How many CPUs' worth of work: "1.3 CPUs"."""
    return f"{value:.2f} CPUs" if value < 9.995 else f"{value:.0f} CPUs"


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


def tag_hue(tag: str) -> int:
    """Which of the theme's colours a tag has: FNV-1a of its UTF-8 (`static/js/parts.js` computes the same)."""
    value = 2166136261
    for byte in tag.encode("utf-8", "surrogatepass"):
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value % TAG_HUES


def task_title(task: TaskInfo, say: Callable[[str], str] = str) -> str:
    """What a task does, for people: "VM 100: Start"."""
    word = say(TASK_WORDS.get(task.type, task.type))
    if task.type == "vzdump" and not task.id:
        return say(TASK_WORDS["vzdump-several"])
    if task.type.startswith("vz") and task.type != "vzdump":
        return f"{say('Container')} {task.id}: {word}"
    if task.type.startswith("qm"):
        return f"VM {task.id}: {word}"
    if task.id.isdecimal():
        return f"{say('Guest')} {task.id}: {word}"
    return f"{word}: {task.id}" if task.id else word


def task_outcome(task: TaskInfo) -> str:
    """One of running, ok, warn, bad."""
    if task.endtime is None:
        return "running"
    if task.status == "OK":
        return "ok"
    return "warn" if (task.status or "").startswith("WARNINGS") else "bad"
