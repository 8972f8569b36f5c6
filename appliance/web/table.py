"""Every declared method, found by HTTP method and path; directories of paths answer with an index by themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from appliance.errors import InvalidParameter, Unsupported
from appliance.web.registry import LOGGED_IN, Call, Method, Resource

_PART = re.compile(r"\{(\w+)(:path)?\}")
_CONTROL = re.compile(r"[\0-\x1f\x7f]")
PATH_LIMIT = 2048


@dataclass(slots=True)
class _Node:
    """One step of the paths. `literal` before `part` before `rest` ({name:path}, takes all that is left)."""

    literal: dict[str, _Node] = field(default_factory=dict)
    part: _Node | None = None
    rest: _Node | None = None
    methods: dict[str, Method] = field(default_factory=dict)
    names: dict[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Match:
    """A method and the values of its path's parts."""

    method: Method
    parts: Mapping[str, str]


class ApiTable:
    """All methods of the API. Built once at start; raises `ValueError` naming every faulty declaration."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self._root = _Node()
        problems: list[str] = []
        for resource in resources:
            for method in resource.methods:
                problems += [*self._add(method), *method.problems()]
        if problems:
            raise ValueError("; ".join(problems))
        self._add_indexes(self._root, "")

    def methods(self) -> Sequence[Method]:
        """Every method, indexes included, by path."""
        found: list[Method] = []
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            found += node.methods.values()
            nodes += [*node.literal.values(), *(child for child in (node.part, node.rest) if child)]
        return sorted(found, key=lambda method: (method.path, method.verb))

    def match(self, verb: str, raw_path: str) -> Match:
        """Find the method for `raw_path`, still percent-encoded, so that "%2F" belongs to a part.

        Raises `Unsupported` (501, PVE's answer to what it does not know) or `InvalidParameter` for hostile parts.
        """
        if len(raw_path) > PATH_LIMIT:
            raise InvalidParameter({"path": f"longer than {PATH_LIMIT} bytes"})
        segments = [unquote(segment) for segment in raw_path.split("/") if segment]
        if any(_CONTROL.search(segment) for segment in segments):
            raise InvalidParameter({"path": "control characters are not allowed"})
        found = _find(self._root, segments, verb, [])
        if found is None:
            raise Unsupported(f"Method '{verb} /{'/'.join(segments)}' not implemented")
        node, values = found
        return Match(node.methods[verb], dict(zip(node.names[verb], values, strict=True)))

    def _add(self, method: Method) -> Sequence[str]:
        node = self._root
        for segment in filter(None, method.path.split("/")):
            part = _PART.fullmatch(segment)
            if part is None:
                node = node.literal.setdefault(segment, _Node())
            elif part[2]:
                node.rest = node = node.rest or _Node()
            else:
                node.part = node = node.part or _Node()
        if method.verb in node.methods:
            return [f"{method.verb} {method.path}: declared twice"]
        node.methods[method.verb] = method
        node.names[method.verb] = method.path_parts
        return []

    def _add_indexes(self, node: _Node, path: str) -> None:
        if node.literal and "GET" not in node.methods:
            index = _index_method(path, sorted(node.literal))
            node.methods["GET"] = index
            node.names["GET"] = index.path_parts
        for segment, child in node.literal.items():
            self._add_indexes(child, f"{path}/{segment}")
        if node.part is not None:
            self._add_indexes(node.part, f"{path}/{{{_name_of(node.part, path)}}}")


def _name_of(node: _Node, path: str) -> str:
    """The name the methods below give to the part at this node."""
    depth = path.count("/{")
    while True:
        if node.names:
            return next(iter(node.names.values()))[depth]
        node = next(iter([*node.literal.values(), *(child for child in (node.part, node.rest) if child)]))


def _index_method(path: str, children: Sequence[str]) -> Method:
    rows = [{"subdir": child} for child in children]

    async def index(call: Call) -> object:
        return rows

    return Method(
        verb="GET",
        path=path or "/",
        summary="Directory index",
        description="What is below this path.",
        allow=LOGGED_IN,
        handler=index,
        returns=list[dict[str, str]],
    )


def _find(node: _Node, segments: Sequence[str], verb: str, values: list[str]) -> tuple[_Node, list[str]] | None:
    if not segments:
        return (node, values) if verb in node.methods else None
    first, rest = segments[0], segments[1:]
    if first in node.literal and (found := _find(node.literal[first], rest, verb, values)):
        return found
    if node.part is not None and (found := _find(node.part, rest, verb, [*values, first])):
        return found
    if node.rest is not None and verb in node.rest.methods:
        return node.rest, [*values, "/".join(segments)]
    return None
