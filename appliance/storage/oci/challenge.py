"""What a registry asks for when it says 401 (RFC 9110 §11.6.1, distribution's token specification). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HEADER_LIMIT = 8192
_SCHEME = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9_-]*)(?:\s+|$)")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))')


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme, in lower case, with its parameters."""

    scheme: str
    parameters: Mapping[str, str]


def parse(headers: Sequence[str]) -> list[Challenge]:
    """Every challenge in the values of WWW-Authenticate; what cannot be read ends its header."""
    found = []
    for text in headers:
        position, text = 0, text[:HEADER_LIMIT]
        while (scheme := _SCHEME.match(text, position)) is not None:
            position = scheme.end()
            parameters: dict[str, str] = {}
            while (each := _PARAMETER.match(text, position)) is not None:
                quoted = each[2]
                parameters[each[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else each[3]
                position = each.end()
            found.append(Challenge(scheme[1].lower(), parameters))
    return found


def choose(challenges: Sequence[Challenge]) -> Challenge | None:
    """The one to answer: bearer where it names a realm, else basic."""
    bearer = [each for each in challenges if each.scheme == "bearer" and each.parameters.get("realm")]
    basic = [each for each in challenges if each.scheme == "basic"]
    return next(iter((*bearer, *basic)), None)
