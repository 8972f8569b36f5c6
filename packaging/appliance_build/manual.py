"""Man pages and completion, filled with what the command line says of itself: they cannot fall behind it.

@USAGE@ @SERVE_HELP@ @DOCTOR_HELP@          the program's own help, for pages
@COMMANDS@ @VM_VERBS@ @CT_VERBS@ @SERVE_OPTIONS@ @DOCTOR_OPTIONS@      words, for completion and pages
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from appliance_build.run import BuildError, run

WIDTH = 90
_ASK = """
import contextlib, io, json, sys
from appliance.cli.guests import VERBS
from appliance.cli.help import USAGE
def helped(main):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(["--help"])
    return out.getvalue()
from appliance.doctor.main import main as doctor
from appliance.serve import main as serve
verbs = {kind: [name for name, verb in VERBS.items() if verb.only in ("", kind)] for kind in ("vm", "ct")}
json.dump({"usage": USAGE, "verbs": verbs, "serve": helped(serve), "doctor": helped(doctor)}, sys.stdout)
"""


def ask(argv: Sequence[str | Path], *, cwd: Path | None = None) -> Mapping[str, str]:
    """The words for `fill`, from the product that the interpreter `argv` imports. Raises `BuildError`."""
    environment = {"COLUMNS": str(WIDTH), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    said = json.loads(run([*argv, "-c", _ASK], cwd=cwd, env=environment))
    return {
        "USAGE": said["usage"],
        "SERVE_HELP": said["serve"],
        "DOCTOR_HELP": said["doctor"],
        "COMMANDS": " ".join(commands(said["usage"])),
        "VM_VERBS": " ".join(said["verbs"]["vm"]),
        "CT_VERBS": " ".join(said["verbs"]["ct"]),
        "SERVE_OPTIONS": " ".join(options(said["serve"])),
        "DOCTOR_OPTIONS": " ".join(options(said["doctor"])),
    }


def commands(usage: str) -> list[str]:
    """The commands that the usage text lists, in its order. Pure."""
    lines = usage.partition("\nOptions:")[0].splitlines()
    words = (word for line in lines if re.match(r"  [a-z]", line) for word in line.split()[0].split("|"))
    return list(dict.fromkeys(words))


def options(text: str) -> list[str]:
    """The long options of a help text, in its order. Pure."""
    return list(dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)))


def fill_page(text: str, words: Mapping[str, str], *, version: str) -> str:
    """A man page; help texts stand in it letter by letter. Pure. Raises `BuildError` for a word that is not known."""
    return _fill(text, {name: _roff(value) for name, value in {**words, "VERSION": version}.items()})


def fill(text: str, words: Mapping[str, str]) -> str:
    """Completion. Pure. Raises `BuildError` for a word that is not known."""
    return _fill(text, words)


def _fill(text: str, words: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in words:
            raise BuildError(f"{match[0]} stands for nothing")
        return words[match[1]].rstrip("\n")

    return re.sub(r"@([A-Z_]+)@", value, text)


def _roff(text: str) -> str:
    """groff_man_style(7): no character is taken for a request or an escape, and all are ASCII."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    lines = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text).splitlines()
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)
