"""mmdebstrap: package sets unpacked and configured in a directory.

It runs in mount and PID namespaces of its own. Whatever ends it (cancellation kills its process group), the kernel then
ends every process of it and drops every mount: nothing is left but files below the work directory.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from appliance import command
from appliance.errors import CommandFailed, NoSpace

BOOTSTRAP_TIMEOUT_S: Final = 1800.0
ENABLE_TIMEOUT_S: Final = 60.0
_ISOLATED = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")
_DPKG_OPTIONS = (
    "force-unsafe-io",  # an interrupted build is thrown away whole: nothing to sync for
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
)
_UNPACK = 'tar -C "$1" --numeric-owner --xattrs "--xattrs-include=*" "--exclude=./dev/*" -xf'
_INHERITED_OPTIONS = ("Acquire::http", "Acquire::https")


async def make_base(sources: Path, codename: str, packages: Sequence[str], output: Path) -> None:
    """A tar archive of a minimal system with `packages`, its package lists kept for `extend`."""
    await _mmdebstrap(
        ["--variant=apt", "--format=tar", "--skip=cleanup/apt/lists", f"--include={','.join(packages)}"],
        sources, codename, output,
    )  # fmt: skip


async def extend(
    base: Path,
    sources: Path,
    codename: str,
    packages: Sequence[str],
    output: Path,
    *,
    early: Path,
    hooks: Sequence[str] = (),
) -> None:
    """A root directory: the archive `base`, the files below `early`, and then `packages` on top of them.

    `hooks` are more of mmdebstrap's options, --customize-hook=… for what is to be done at the end.
    """
    await _mmdebstrap(
        [
            "--variant=custom", "--format=directory", "--skip=update", f"--include={','.join(packages)}",
            f"--setup-hook={_UNPACK} {shlex.quote(str(base))}", f'--setup-hook=cp -r {shlex.quote(str(early))}/. "$1"/',
            *hooks,
        ],
        sources, codename, output,
    )  # fmt: skip


async def unpack(base: Path, output: Path) -> None:
    """A root directory: the archive `base` alone."""
    await command.run(["sh", "-c", f'{_UNPACK} "$2"', "sh", str(output), str(base)], timeout_s=BOOTSTRAP_TIMEOUT_S)


async def enable_units(root: Path, units: Sequence[str], masked: Sequence[str]) -> None:
    """Enable and mask systemd units with the image's own systemctl."""
    for verb, names in (("enable", units), ("mask", masked)):
        if names:
            await command.run(["chroot", str(root), "systemctl", verb, *names], timeout_s=ENABLE_TIMEOUT_S)


async def _mmdebstrap(arguments: Sequence[str], sources: Path, codename: str, output: Path) -> None:
    options = [f"--dpkgopt={option}" for option in _DPKG_OPTIONS]
    options += [f"--aptopt={option}" for option in ('Apt::Install-Recommends "false"', *await _inherited_apt_options())]
    argv = [*_ISOLATED, "mmdebstrap", "--mode=root", *options, *arguments, codename, str(output), str(sources)]
    try:
        await command.run(argv, timeout_s=BOOTSTRAP_TIMEOUT_S, cwd=output.parent, env={"TMPDIR": str(output.parent)})
    except CommandFailed as error:
        if "No space left on device" in error.stderr:
            raise NoSpace(f"{output.parent}: no space left while building the template") from error
        raise CommandFailed(["mmdebstrap"], error.returncode, _telling(error.stderr)) from error


async def _inherited_apt_options() -> list[str]:
    """The host's proxy and certificate settings: the build reaches the archive the way the host does."""
    dump = await command.run(["apt-config", "dump", "--format", "%f %v%n", "--no-empty"], timeout_s=ENABLE_TIMEOUT_S)
    found = (line.partition(" ") for line in dump.text.splitlines())
    return [f'{name} "{value}"' for name, _, value in found if value and name.startswith(_INHERITED_OPTIONS)]


def _telling(stderr: str) -> str:
    """Of mmdebstrap's output, the lines that say what failed."""
    lines = [line for line in stderr.splitlines() if line.startswith(("E:", "Err:", "W: Failed"))]
    return "\n".join(lines) or stderr
