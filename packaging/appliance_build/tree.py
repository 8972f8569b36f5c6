"""/usr/lib/appliance: an interpreter with one directory of modules. It may be moved as a whole.

    bin/python3.11      Debian's; finds what follows by its own place (sys.prefix)
    lib/*.so.*          libraries, by names of our own (elf.py)
    lib/python3.11/     standard library, wheels, `appliance`, and beside it templates/ and static/ (config.py)
    start.py            what /usr/bin/appliance runs

All modules are in one directory because each one on sys.path is searched in turn, and because every way of running the
interpreter finds the same modules: helper processes use `sys.executable -I -S`. Bytecode is "unchecked-hash" (PEP 552):
valid whatever the source's time is, and never written again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from appliance_build import elf
from appliance_build.ingredients import PYTHON, DebianPackage
from appliance_build.run import BuildError, run
from appliance_build.source import Source

MODULES = f"lib/python{PYTHON}"
INTERPRETER = f"bin/python{PYTHON}"

_UNUSED_STDLIB = (
    "__phello__", "antigravity.py", "cgi.py", "cgitb.py", "config-*", "ctypes/macholib", "ctypes/test", "curses", "dbm",
    "dist-packages",
    "distutils", "ensurepip", "idlelib", "lib2to3", "msilib", "pydoc.py", "pydoc_data", "site-packages",
    "sitecustomize.py", "sqlite3/test", "test", "this.py", "tkinter", "turtle.py", "turtledemo", "unittest/test", "venv",
    "xxlimited*", "EXTERNALLY-MANAGED", "LICENSE.txt",
    *(
        f"lib-dynload/{name}.*"
        for name in (
            "_crypt", "_ctypes_test", "_curses", "_curses_panel", "_dbm", "_gdbm", "_test*", "_xxtestfuzz", "nis",
            "ossaudiodev", "readline", "xxlimited*",
        )
    ),
)  # fmt: skip
"""Without use here. What stays out takes its libraries with it: curses, dbm, nis and readline are the only ones that
would need more packages. unittest stays: libraries import it."""

_UNUSED_IN_WHEELS = (
    "**/*.c", "**/*.h", "**/*.hpp", "**/*.pxd", "**/*.pyi", "**/*.pyx", "**/*.pyx.in", "**/py.typed", "**/tests",
    "**/__pycache__", "bin", "*.pth", "*.lock", ".lock", "*.dist-info/RECORD", "*.dist-info/INSTALLER",
    "*.dist-info/REQUESTED", "*.dist-info/direct_url.json", "*.dist-info/uv_*",
)  # fmt: skip

_START = '''\
"""What /usr/bin/appliance runs, by the interpreter beside it."""

import sys

from appliance.__main__ import main

sys.argv[0] = "appliance"
sys.exit(main())
'''


def build(root: Path, *, source: Source, packages: Sequence[DebianPackage], wheels: Path, work: Path) -> None:
    """Make the tree at `root`, which does not exist yet. Raises `BuildError`."""
    unpacked = work / "unpacked"
    for package in packages:
        run(["dpkg-deb", "--extract", package.path, unpacked])
    _interpreter(root, unpacked)
    _libraries(root / "lib", unpacked)
    modules = root / MODULES
    _wheels(modules, wheels)
    _product(modules, source)
    (root / "start.py").write_text(_START)
    _no_programs(modules)
    for path in elf.objects(root):
        elf.strip(path)
        elf.drop_unused_cxx(path)
    elf.bind(root, root / "lib")
    _compile(root)
    _import_extensions(root)


def settle(root: Path, *, epoch_s: int) -> None:
    """Fix what a build's time and umask would decide: modes 0755 and 0644, and the time of everything."""
    for path in sorted([root, *root.rglob("*")]):
        if not path.is_symlink():
            runnable = path.is_dir() or bool(path.stat().st_mode & 0o100)
            path.chmod(0o755 if runnable else 0o644)
    run(["find", root, "-exec", "touch", "--no-dereference", f"--date=@{epoch_s}", "{}", "+"])


def _interpreter(root: Path, unpacked: Path) -> None:
    (root / "bin").mkdir(parents=True)
    shutil.copy2(unpacked / f"usr/bin/python{PYTHON}", root / INTERPRETER)
    shutil.copytree(unpacked / f"usr/lib/python{PYTHON}", root / MODULES, symlinks=True)
    _remove(root / MODULES, _UNUSED_STDLIB)
    for path in sorted((root / MODULES).rglob("*")):
        if path.is_symlink():
            content = path.read_bytes()  # of another module; a link out of the package would be missing here
            path.unlink()
            path.write_bytes(content)


def _libraries(to: Path, unpacked: Path) -> None:
    """By their sonames: the files that carry them, without the links."""
    for path in sorted(
        [*unpacked.glob("lib/x86_64-linux-gnu/lib*.so.*"), *unpacked.glob("usr/lib/x86_64-linux-gnu/lib*.so.*")]
    ):
        if not path.is_symlink():
            soname = run(["patchelf", "--print-soname", path]).decode().strip()
            shutil.copyfile(path, to / soname)


def _wheels(modules: Path, wheels: Path) -> None:
    _remove(wheels, _UNUSED_IN_WHEELS)
    for path in sorted(wheels.iterdir()):
        if (modules / path.name).exists():
            raise BuildError(f"a wheel brings {path.name}, which the standard library has")
        shutil.move(path, modules / path.name)


def _no_programs(modules: Path) -> None:
    """Modules are imported: those that could also be run name interpreters that are not there. Line numbers stay."""
    for path in modules.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            if path.suffix == ".py" and (content := path.read_bytes()).startswith(b"#!"):
                path.write_bytes(b"#" + content[content.index(b"\n") :])


def _product(modules: Path, source: Source) -> None:
    for name in ("appliance", "templates", "static"):
        shutil.copytree(source.root / name, modules / name)
    version = modules / "appliance/version.py"
    text, count = re.subn(r'^VERSION = ".*"$', f'VERSION = "{source.version}"', version.read_text(), flags=re.M)
    if count != 1:
        raise BuildError('appliance/version.py: no line VERSION = "…"')
    version.write_text(text)


def _compile(root: Path) -> None:
    """By the bundled interpreter itself; the path in tracebacks is where the package puts it."""
    arguments = ["-q", "-f", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/usr/lib/appliance"]
    run(
        [root / INTERPRETER, "-I", "-S", "-m", "compileall", *arguments, root / MODULES],
        env={"PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin"},
    )


def _import_extensions(root: Path) -> None:
    """Each of the bundled extension modules, each in the bundled interpreter. Raises `BuildError` naming the first that fails."""
    modules = root / MODULES
    for path in sorted(modules.rglob("*.so")):
        place = path.relative_to(modules)
        parts = place.parts[1:] if place.parts[0] == "lib-dynload" else place.parts
        name = ".".join([*parts[:-1], parts[-1].partition(".")[0]])
        if "-appliance" not in name:
            run([root / INTERPRETER, "-I", "-S", "-B", "-c", f"import {name}"], env={})


def _remove(root: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
