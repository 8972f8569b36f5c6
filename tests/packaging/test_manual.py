"""Man pages and completion say what the command line does: no more, no less."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from appliance_build import manual
from appliance_build.run import BuildError

from appliance.cli.guests import VERBS
from appliance.cli.help import USAGE

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
COMPLETION = PACKAGING / "debian/completion.bash"
_STUBS = """
_init_completion() { words=("${COMP_WORDS[@]}"); cword=$COMP_CWORD; cur=${words[cword]}; prev=${words[cword-1]}; }
_filedir() { COMPREPLY=("<files$1>"); }
"""


@functools.cache
def words() -> Mapping[str, str]:
    return manual.ask([sys.executable], cwd=ROOT)


def filled(name: str) -> str:
    return manual.fill_page((PACKAGING / "man" / name).read_text(), words(), version="1.2")


def page(name: str) -> str:
    """The text of a man page, without the marks."""
    text = re.sub(r"\\f[RPBI]|\\&", "", filled(name).replace("\\-", "-").replace("\\e", "\\"))
    return re.sub(r"\\\[u([0-9A-F]{4})\]", lambda match: chr(int(match[1], 16)), text)


def helped(command: str) -> set[str]:
    """The options that `appliance COMMAND --help` lists."""
    argv = [sys.executable, "-m", "appliance", command, "--help"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(re.findall(r"--[a-z][a-z-]*", done.stdout))


def complete(*line: str) -> set[str]:
    """What bash offers for the last word of `line`."""
    quoted = " ".join(f"'{word}'" for word in line)
    function = manual.fill(COMPLETION.read_text(), words())
    script = f"{_STUBS}\n{function}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(line) - 1}; _appliance; "
    script += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def commands() -> set[str]:
    """The commands that `appliance --help` lists."""
    found = set(manual.commands(USAGE))
    assert {"vm", "ct", "get", "delete", "serve", "doctor"} <= found
    return found


@pytest.mark.parametrize(("command", "name"), [("serve", "appliance-serve.8"), ("doctor", "appliance.1")])
def test_a_page_has_every_option_of_its_command(command: str, name: str) -> None:
    assert helped(command) - set(re.findall(r"--[a-z][a-z-]*", page(name))) == set()


def test_a_help_text_stands_in_its_page_letter_by_letter() -> None:
    for line in USAGE.splitlines():
        assert line in page("appliance.1"), line
    assert manual.fill_page("@USAGE@", {"USAGE": ".x\\y -a\n'z\n"}, version="1") == "\\&.x\\ey \\-a\n\\&'z"


def test_a_word_that_stands_for_nothing_ends_the_build() -> None:
    with pytest.raises(BuildError, match="@NOTHING@"):
        manual.fill("a @NOTHING@", {"USAGE": ""})


def test_the_page_of_serve_has_no_option_that_is_not_there() -> None:
    assert set(re.findall(r"--[a-z][a-z-]*", page("appliance-serve.8"))) - helped("serve") == set()


def test_the_page_has_every_command_option_and_exit_status() -> None:
    text = page("appliance.1")
    for command in commands():
        assert re.search(rf"\b{command}\b", text), command
    for option in set(re.findall(r"--[a-z][a-z-]*", USAGE.partition("Options:")[2].partition("Examples")[0])):
        assert option in text
    for status in re.findall(r"(?<=[:,] )(\d+) ", USAGE.partition("Exit status")[2]):
        assert f".TP\n.B {status}\n" in text, status
    for variable in re.findall(r"APPLIANCE_[A-Z_]+", USAGE):
        assert variable in text


def test_the_page_has_every_verb() -> None:
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", page("appliance.1")), verb


def test_commands_are_completed() -> None:
    offered = complete("appliance", "")
    assert {word for word in offered if not word.startswith("--")} == commands() | {"help"}
    assert complete("appliance", "do") == {"doctor"}


@pytest.mark.parametrize("word", ["vm", "ct"])
def test_verbs_are_completed(word: str) -> None:
    expected = {name for name, verb in VERBS.items() if verb.only in ("", word)}
    assert complete("appliance", word, "") - {"--help"} == expected


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_options_are_completed(command: str) -> None:
    assert complete("appliance", command, "--") == helped(command) - {"--output"} | ({"--output"} & helped(command))


def test_global_options_are_completed_and_their_values_are_no_command() -> None:
    assert complete("appliance", "--out") == {"--output"}
    assert complete("appliance", "--output", "") == {"table", "json", "text"}
    assert complete("appliance", "--socket", "x") == {"<files>"}
    assert complete("appliance", "--url", "vm", "") >= {"vm", "ct"}
    assert complete("appliance", "--data-dir", "/x", "vm", "sto") == {"stop"}


@pytest.mark.parametrize("path", sorted((PACKAGING / "man").iterdir()), ids=lambda path: path.name)
def test_a_page_formats_without_a_warning(path: Path) -> None:
    argv = ["groff", "-man", "-Tutf8", "-ww", "-z", "-"]
    try:
        done = subprocess.run(argv, input=filled(path.name), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("groff is not installed")
    assert (done.returncode, done.stderr) == (0, "")
