"""Arguments of a verb: positional ones and `--name value` pairs, which are the API's own parameters. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from appliance.cli.errors import CliError, Exit


@dataclass(slots=True)
class Arguments:
    """What followed the verb."""

    positional: list[str] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    wants_help: bool = False

    def take(self, *names: str) -> list[str]:
        """Exactly the positional arguments `names`. Raises `CliError`."""
        if len(self.positional) != len(names):
            expected = " ".join(name.upper() for name in names) or "no arguments"
            raise CliError(f"expected {expected}, got {' '.join(self.positional) or 'nothing'}", Exit.USAGE)
        return self.positional


def parse(arguments: Sequence[str]) -> Arguments:
    """`A --x 1 --y=2 --flag B`: a name followed by another name, or by nothing, is 1. `--` ends the names."""
    parsed = Arguments()
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            parsed.positional += rest
            break
        if word in ("--help", "-h"):
            parsed.wants_help = True
        elif word.startswith("--") and len(word) > 2:
            name, given, value = word[2:].partition("=")
            if not given:
                value = rest.pop(0) if rest and not rest[0].startswith("--") else "1"
            if name in parsed.params:
                value = f"{parsed.params[name]},{value}"
            parsed.params[name] = value
        elif word.startswith("-") and len(word) > 1:
            raise CliError(f"unknown option {word}", Exit.USAGE)
        else:
            parsed.positional.append(word)
    return parsed
