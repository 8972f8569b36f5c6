"""The OCI runtime as a program: which one works on this host, and its commands.

runc works on every cgroup layout; crun starts faster and is preferred on pure v2, but refuses the hybrid layout. The
first candidate that can *create* a container with all namespaces and limits is chosen (`self_test`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from appliance import command
from appliance.ct import config_pipe, oci, process, proof
from appliance.ct.host import Places
from appliance.errors import ApplianceError, CommandFailed, HostError
from appliance.kernel import ns
from appliance.kernel.cgroups import Cgroup, CgroupLayout
from appliance.model.guest import CtMount, CtSpec, GuestId
from appliance.tasks import to_its_end
from appliance.threads import to_the_end

log = logging.getLogger(__name__)

COMMAND_LIMIT_S = 60.0
TEST_LIMIT_S = 20.0
_TEST_ID = "self-test"
_FIFO = "exec.fifo"
_READ_ONCE = ("runc",)
"""The runtimes whose `create` reads config.json once; crun copies it afterwards."""
_RELEASE_LIMIT_MS = 2000


@dataclass(frozen=True, slots=True)
class OciRuntime:
    """A runtime and the directory of its state. Commands raise `CommandFailed`, `TimedOut`."""

    program: Path
    state_dir: Path
    version: str = ""
    takes_pipe: bool = False
    """Whether its `create` can be given config.json as a pipe (`config_pipe`)."""

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def mounts_at_root_only(self) -> bool:
        """Whether it refuses procfs and sysfs anywhere but directly below the root (crun, src/libcrun/linux.c)."""
        return self.name == "crun"

    @property
    def argv(self) -> tuple[str, ...]:
        return (str(self.program), "--root", str(self.state_dir))

    async def start(self, container: str) -> None:
        """Let the created container's init run.

        runc's init waits on a FIFO in its state directory; reading it is all that `runc start` does, and costs 0.2 ms
        instead of the 7 of a Go program. Whenever that is not as expected, the command decides.
        """
        if self.name == "runc" and await asyncio.to_thread(_release, self.state_dir / container / _FIFO):
            return
        await process.run([*self.argv, "start", container], timeout_s=COMMAND_LIMIT_S)

    async def delete(self, container: str) -> None:
        """Forget the container, killing what is left of it; not an error when it is unknown."""
        with contextlib.suppress(CommandFailed):  # removal goes on with what can be seen: cgroups, mounts, processes
            await command.run([*self.argv, "delete", "--force", container], timeout_s=COMMAND_LIMIT_S)


def _release(fifo: Path) -> bool:
    """Read the byte init offers and remove the FIFO, as runc does (libcontainer, Container.Exec)."""
    try:
        fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(_RELEASE_LIMIT_MS) or not os.read(fd, 16):
            return False
        fifo.unlink()
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def candidates(layout: CgroupLayout) -> list[str]:
    """The runtimes to try, in order."""
    return ["crun", "runc"] if layout.pure_v2 else ["runc", "crun"]


async def choose(places: Places, facts: oci.HostFacts) -> tuple[OciRuntime | None, dict[str, str]]:
    """The first runtime that passes the self-test, and why each one before it did not."""
    refused: dict[str, str] = {}
    for name in candidates(places.layout):
        program = await asyncio.to_thread(shutil.which, name)
        if program is None:
            refused[name] = "not installed"
            continue
        runtime = OciRuntime(Path(program), places.runtime_state)
        known = await asyncio.to_thread(proof.recall, places.directory, runtime.program, facts)
        if known is not None:
            return replace(runtime, version=known.said, takes_pipe=known.takes_pipe), refused
        try:
            takes_pipe = name in _READ_ONCE and await _takes_pipe(runtime, places, facts)
            if not takes_pipe:
                await self_test(runtime, places, facts)
            said = await command.run([program, "--version"], timeout_s=COMMAND_LIMIT_S)
        except (ApplianceError, OSError) as error:
            refused[name] = str(error)
            continue
        runtime = replace(runtime, version=said.text.splitlines()[0], takes_pipe=takes_pipe)
        await asyncio.to_thread(
            proof.remember, places.directory, runtime.program, facts, said=runtime.version, takes_pipe=takes_pipe
        )
        return runtime, refused
    return None, refused


async def _takes_pipe(runtime: OciRuntime, places: Places, facts: oci.HostFacts) -> bool:
    """Whether it passes the self-test with its configuration in a pipe. It may fail of anything: then it is tried again
    with a file, and that decides."""
    try:
        await self_test(replace(runtime, takes_pipe=True), places, facts)
    except (ApplianceError, OSError) as error:
        log.info("%s: not started early: %s", runtime.name, error)
        return False
    return True


async def self_test(runtime: OciRuntime, places: Places, facts: oci.HostFacts) -> None:
    """Create (not start) a container with everything a real one has, and delete it. Raises what went wrong."""
    bundle = places.directory / f".{_TEST_ID}"
    cgroup = Cgroup(places.layout, places.cgroup_parent.name, _TEST_ID)
    try:
        with places.cgroup_parent.hold(), contextlib.ExitStack() as held:
            await asyncio.to_thread(places.cgroup_parent.settle)
            await to_the_end(_write_test_bundle, bundle, facts, cgroup, held)
            argv = [
                *runtime.argv,
                "create",
                "--bundle",
                str(bundle),
                _TEST_ID,
            ]  # its init keeps the output open: no pipes
            if runtime.takes_pipe:
                await _create_from_pipe(argv, bundle)
            else:
                await process.run(argv, timeout_s=TEST_LIMIT_S)
    finally:  # also when a start of the appliance fails meanwhile, which cancels this more than once
        await to_its_end(_undo(runtime, bundle, cgroup), name="removal of the runtime's self-test")


async def _undo(runtime: OciRuntime, bundle: Path, cgroup: Cgroup) -> None:
    try:
        await runtime.delete(_TEST_ID)
    finally:
        await to_the_end(_remove_test_bundle, bundle, cgroup)


async def _create_from_pipe(argv: Sequence[str], bundle: Path) -> None:
    """Its configuration comes last, as at a start."""

    def take() -> bytes:
        config = (bundle / config_pipe.NAME).read_bytes()
        (bundle / config_pipe.NAME).unlink()
        return config

    config = await to_the_end(take)
    pipe = config_pipe.ConfigPipe(bundle)
    running = asyncio.ensure_future(process.run(argv, timeout_s=TEST_LIMIT_S))
    try:
        await asyncio.sleep(0)
        pipe.write(config)
        await running
    finally:
        try:
            running.cancel()
            await to_its_end(asyncio.wait((running,)), name="end of the runtime's self-test")
        finally:
            await to_the_end(pipe.close)


def _write_test_bundle(bundle: Path, facts: oci.HostFacts, cgroup: Cgroup, held: contextlib.ExitStack) -> None:
    shutil.rmtree(bundle, ignore_errors=True)  # holds no mounts: the container's are in its own mount namespace
    root = bundle / "rootfs"
    (root / "sbin").mkdir(parents=True)
    (root / "sbin" / "init").touch(mode=0o755)  # looked up by create, run only by start
    spec = CtSpec(guest_id=GuestId(0), hostname=_TEST_ID, root=CtMount(slot="rootfs", volume="", path="/"))
    for path in (root, root / "sbin", root / "sbin" / "init"):
        shutil.chown(path, spec.id_base, spec.id_base)
    namespaces = ns.guest_namespaces(spec.id_base, spec.id_count)
    held.callback(namespaces.close)
    config = oci.container_config(spec, host=facts, bundle=bundle, cgroup=cgroup.path, joined=namespaces.paths)
    init = config["process"]
    assert isinstance(init, dict)
    init["terminal"] = False
    (bundle / "config.json").write_text(json.dumps(config))


def _remove_test_bundle(bundle: Path, cgroup: Cgroup) -> None:
    with contextlib.suppress(HostError):
        cgroup.kill()
    cgroup.remove()
    cgroup.remove_parent()
    shutil.rmtree(bundle, ignore_errors=True)
