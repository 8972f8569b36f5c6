"""`appliance doctor [--data-dir DIR] [--output json] [--bundle FILE]`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from appliance.config import DEFAULT_DATA_DIR, default_run_dir
from appliance.doctor.checks import examine
from appliance.doctor.facts import SOCKET_NAME, Facts, gather
from appliance.doctor.finding import Finding, Level
from appliance.errors import ApplianceError

WIDTH = 100
_INDENT = 24

_WARNING = (
    "It has no passwords, keys or tokens, but names of guests and users, and addresses. Look at it before you send it."
)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 nothing is broken, 1 something is, or the bundle could not be written, 2 usage."""
    parser = argparse.ArgumentParser(
        prog="appliance doctor",
        description="What this host lacks and what that costs. It works whether or not the appliance runs.",
    )
    parser.add_argument(
        "--data-dir", type=Path, default=DEFAULT_DATA_DIR, metavar="DIR", help="the appliance's; default %(default)s"
    )
    parser.add_argument(
        "--bundle", type=Path, metavar="FILE", help="write an archive for a bug report, without secrets"
    )
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args(arguments)
    data_dir = options.data_dir.absolute()
    facts = asyncio.run(gather(data_dir))
    findings = examine(facts, now=time.time())
    text = "\n".join(render(findings)) + "\n"
    if options.output == "json":
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        sys.stdout.write(text)
    if options.bundle is not None:
        try:
            _write_bundle(options.bundle, text, facts)
        except ApplianceError as error:
            sys.stderr.write(f"appliance: {error}\n")
            return 1
        sys.stderr.write(f"{options.bundle} is written. {_WARNING}\n")
    return int(any(finding.level is Level.BROKEN for finding in findings))


def render(findings: Sequence[Finding]) -> Iterator[str]:
    """Lines for people: what is wrong first said in a sentence, then its cost and what helps."""
    for finding in findings:
        yield from _wrapped(f"{finding.level:<7} {finding.what:<{_INDENT - 9}} ", finding.found)
        if finding.cost:
            yield from _wrapped(" " * _INDENT + "costs: ", finding.cost)
        if finding.remedy:
            yield from _wrapped(" " * _INDENT + "helps: ", finding.remedy)
    counts = [sum(finding.level is level for finding in findings) for level in (Level.LACKS, Level.BROKEN)]
    yield ""
    yield f"{counts[0]} lacking, {counts[1]} broken"


def _wrapped(first: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _write_bundle(path: Path, text: str, facts: Facts) -> None:
    from appliance.cli.client import Api, Target
    from appliance.doctor import bundle

    if not facts.serves:
        bundle.write(path, text, data_dir=facts.data_dir, api=None)
        return
    with Api(Target(socket_path=default_run_dir(facts.data_dir) / SOCKET_NAME)) as api:
        bundle.write(path, text, data_dir=facts.data_dir, api=api)
