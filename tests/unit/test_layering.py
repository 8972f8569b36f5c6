"""Imports point down only, and every module can be imported alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "appliance"

LEAVES = {
    "clock",
    "cloud_init",
    "command",
    "config",
    "errors",
    "events",
    "files",
    "guest_agent",
    "lazy",
    "log",
    "model",
    "tasks",
    "threads",
    "version",
    "terminal",
    "waiting",
}
LEVELS: list[set[str]] = [
    LEAVES,
    {"kernel", "state"},
    {"vmm", "qemu", "ct", "cluster", "storage", "network"},
    {"services"},
    {"web"},
    {"cli", "app", "doctor", "heartbeat", "serve", "__main__", "__init__"},
]
"""From the bottom up. A part may import parts of lower levels; never a sibling. Leaves may import leaves."""

COMMAND_LINE_ONLY_SPEAKS_HTTP = {"web", "services", "qemu", "ct", "storage", "network", "vmm", "cluster"}


def level_of(part: str) -> int:
    return next(level for level, parts in enumerate(LEVELS) if part in parts)


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            assert node.module is not None
            yield node.lineno, node.module
            if node.module == "appliance":
                yield from ((node.lineno, f"appliance.{alias.name}") for alias in node.names)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def violations(path: Path) -> Iterator[str]:
    part = part_of(path)
    for line, name in imported_modules(path):
        pieces = name.split(".")
        if pieces[0] != "appliance" or len(pieces) < 2:
            continue
        target = pieces[1]
        below = level_of(target) < level_of(part) or target == part or {part, target} <= LEAVES
        top = part in {"app", "doctor", "serve", "__main__"} and target in LEVELS[-1]
        if not (below or top) or (part == "cli" and target in COMMAND_LINE_ONLY_SPEAKS_HTTP):
            yield f"{path.relative_to(ROOT)}:{line}: {part} imports {target}"


def test_imports_point_down_only() -> None:
    assert [text for path in modules() for text in violations(path)] == []


def test_the_check_sees_a_violation(tmp_path: Path) -> None:
    bad = PACKAGE / "kernel" / "imaginary.py"
    source = tmp_path / "imaginary.py"
    source.write_text("from appliance.services import guests\n")
    names = list(imported_modules(source))
    assert names == [(1, "appliance.services")]
    assert level_of("services") > level_of(part_of(bad))


def test_the_kernel_layer_knows_no_asyncio() -> None:
    users = [
        str(path.relative_to(ROOT))
        for path in modules()
        if part_of(path) == "kernel" and any(name.split(".")[0] == "asyncio" for _, name in imported_modules(path))
    ]
    assert users == []


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_at_import_time(source: str, known: Container[str]) -> Iterator[str]:
    """What executing a module imports: not the bodies of functions, nor what only a type checker sees.

    `from package import name` is the submodule where `known` has it: the package need only have begun for that.
    """

    def visit(nodes: Iterable[ast.AST]) -> Iterator[str]:
        for node in nodes:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                    continue
                case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                    yield from visit(node.orelse)
                case ast.Import():
                    yield from (alias.name for alias in node.names)
                case ast.ImportFrom(module=str(module)):
                    submodules = (f"{module}.{alias.name}" for alias in node.names)
                    yield from (name if name in known else module for name in submodules)
                case _:
                    yield from visit(ast.iter_child_nodes(node))

    return visit([ast.parse(source)])


def import_cycle(sources: Mapping[str, str]) -> list[str]:
    """The first cycle among modules (name -> source), or []."""
    waits_for = {name: set(imported_at_import_time(source, sources)) - {name} for name, source in sources.items()}
    try:
        TopologicalSorter(waits_for).prepare()
    except CycleError as error:
        return [str(name) for name in error.args[1]]
    return []


def test_every_module_can_be_imported_alone() -> None:
    """Each is imported once, and no cycle makes it matter which one came first."""
    sources = {module_name(path): path.read_text() for path in modules()}
    assert import_cycle(sources) == []
    script = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    names = [name for name in sources if not name.endswith(".__main__")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *names], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def test_the_check_sees_a_cycle() -> None:
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.a\ndef f():\n    import p.a\n"
    assert import_cycle({"p": "", "p.a": "from p import b\n", "p.b": lazy}) == []
    assert import_cycle({"p": "", "p.a": "from p import b\n", "p.b": "class C:\n    import p.a\n"}) != []
    assert import_cycle({"p": "from p.a import x\n", "p.a": "x = 1\n"}) == []
    assert import_cycle({"p": "from p.a import x\n", "p.a": "from p import y\n"}) != []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is_and_stays_small(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or path.name == "__init__.py" or not tree.body, "no module docstring"
    assert path.read_text().count("\n") <= 500, "split by noun before 500 lines"
