"""`./dev i18n`: brings templates/words/*.po up to what templates, scripts and tables of words say. Exit 1 when words lack."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from appliance.model.guest import GuestKind
from appliance.services.guest_config.ct_schema import CT_KEYS
from appliance.services.guest_config.property_string import PropertySchema
from appliance.services.guest_config.schema import ConfigKey
from appliance.services.guest_config.vm_schema import VM_KEYS
from appliance.web.pages import (
    access_dialogs,
    access_pages,
    app_creation,
    areas,
    backup_dialogs,
    contexts,
    creation,
    forms,
    guest_tabs,
    hardware,
    language,
    oci,
    render,
    value_words,
)

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES, SCRIPTS = ROOT / "templates", ROOT / "static" / "js"
HEADER = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=UTF-8\\n"\n"Language: {}\\n"\n'
_IS_CODE = re.compile(r"/\S+|[a-z0-9.:,=;_-]+|[A-Z][a-z]+/[A-Z][a-z]+|C\.UTF-8")
"""Placeholders that are examples of what to type."""
STATES = ("Running", "Stopped", "Paused", "Starting", "Stopping")


def sources() -> dict[str, list[str]]:
    """Where each message stands: English text → files."""
    found: dict[str, list[str]] = {}
    for path in sorted(TEMPLATES.rglob("*.html")):
        _note(found, language.messages(path.read_text()), path.relative_to(ROOT).as_posix())
    for path in sorted(SCRIPTS.glob("*.js")):
        _note(found, language.script_messages(path.read_text()), path.relative_to(ROOT).as_posix())
    _note(found, tables(), "appliance/web/pages")
    return found


def tables() -> list[str]:
    """The words Python gives to templates, which say them by `_(…)`."""
    words: list[str] = [*contexts.LABELS.values(), *contexts.CONTENT_WORDS.values(), *STATES]
    words += [
        *guest_tabs.TAB_WORDS.values(),
        *guest_tabs.HEALTH_WORDS,
        guest_tabs.CONTAINER_HARDWARE,
        *render.TASK_WORDS.values(),
        *areas.words(),
        *value_words.words(),
    ]
    words += [name for name, _, _ in hardware.FORMS.values()] + [
        *forms.PART_LABELS.values(),
        *forms.HINTS.values(),
        *forms.PLACEHOLDERS.values(),
    ]
    words += [device.word for kind in GuestKind for device in hardware.addable(kind, {})]
    words += [*backup_dialogs.KEEP_WORDS.values()]
    words += oci.TRANSPORT_WORDS.values()
    words += [*access_pages.TABS.values(), *access_dialogs.LOSSES.values()]
    words += [word for word, _ in app_creation.SECTIONS]
    words += [word for sections in creation.SECTIONS.values() for word, _ in sections]
    words += ["VM", "Container", "Guest", "Yes", "No", "Default", "Default (yes)", "Default (no)", "No medium"]
    words += ["Cloud-init drive", "CD/DVD drive", "User", "Group", "Token"]
    words += ["System", "Kernel", "Host name", "Time zone", "Logged in", "Version of the agent"]
    words += ["Every (s)", "Gives up after (s)", "Time to start (s)", "Failures in a row"]
    return [word for word in dict.fromkeys(words) if word and not _IS_CODE.fullmatch(word)]


def descriptions() -> list[str]:
    """What the key tables say of each key: the API's documentation, shown as hints; translated as far as there are words."""
    words: list[str] = []
    for key in (*VM_KEYS, *CT_KEYS):
        if key.supported and not key.read_only:
            words += _descriptions(key)
    return [word for word in dict.fromkeys(words) if word]


def lacking(path: Path) -> list[str]:
    """The messages a catalogue has no words for, and those whose words lost an expression or a tag."""
    words = language.parse_po(path.read_text())
    present = [text for text in sources() if text not in words]
    return present + [text for text, own in words.items() if not _fits(text, own)]


def update(path: Path) -> None:
    """Write the catalogue anew: every message with its words, as far as there are any; what is said no longer goes."""
    words = language.parse_po(path.read_text()) if path.exists() else {}
    blocks = [HEADER.format(path.stem)]
    every = sources()
    _note(every, descriptions(), "appliance/services/guest_config")
    for text, places in every.items():
        blocks.append(f"#: {' '.join(places[:4])}\nmsgid {_quoted(text)}\nmsgstr {_quoted(words.get(text, ''))}\n")
    path.write_text("\n".join(blocks))


def _descriptions(key: ConfigKey) -> Iterable[str]:
    yield key.description
    if isinstance(key.value, PropertySchema):
        yield from (value.description for value in key.value.fields.values() if value.supported)


def _note(found: dict[str, list[str]], texts: Iterable[str], place: str) -> None:
    for text in texts:
        places = found.setdefault(text, [])
        if place not in places:
            places.append(place)


def _fits(text: str, own: str) -> bool:
    """Whether a translation has the original's tags and {names}, and uses no variable the original does not have."""
    if sorted(re.findall(r"</?[a-z]+>", own)) != sorted(re.findall(r"</?[a-z]+>", text)):
        return False
    if set(re.findall(r"(?<!\{)\{\w+\}", own)) != set(re.findall(r"(?<!\{)\{\w+\}", text)):
        return False
    used, known = ({name for each in re.findall(r"\{\{.*?\}\}", side) for name in re.findall(r"[a-z_]\w*", each)}
                   for side in (own, text))  # fmt: skip
    return used <= known and bool(used) == bool(known)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def main() -> int:
    status = 0
    for tongue in language.LANGUAGES:
        if tongue == language.ENGLISH:
            continue
        path = TEMPLATES / "words" / f"{tongue}.po"
        path.parent.mkdir(exist_ok=True)
        update(path)
        without = lacking(path)
        print(f"{path.relative_to(ROOT)}: {len(sources())} messages, {len(without)} without words")
        for text in without:
            print(f"  {text}")
        status = status or int(bool(without))
    return status


if __name__ == "__main__":
    sys.exit(main())
