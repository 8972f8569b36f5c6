"""Application containers on the real runtime: an overlay over shared layers, the image's program, its end, its log."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.ct import applog
from appliance.ct.applog import LogReader
from appliance.errors import InvalidParameter
from appliance.kernel import mount
from appliance.model.application import Application
from appliance.model.guest import CtMount, CtSpec, GuestId
from appliance.model.volume import OpenedVolume, OverlayLayers, VolumeFormat
from tests.ct.conftest import APPLETS, BUSYBOX, Host

pytestmark = pytest.mark.host

APP = CtSpec(
    guest_id=GuestId(102),
    hostname="app",
    root=CtMount(slot="rootfs", volume="local:102/root", path="/"),
    memory_mib=64,
    swap_mib=0,
    application=Application(image="test@sha256:0"),
)


def shell(script: str, **fields: object) -> CtSpec:
    made_of = replace(Application(image="test@sha256:0"), **fields)  # type: ignore[arg-type]  # fields of Application
    return replace(APP, command=("/bin/sh", "-c", script), application=made_of)


@pytest.fixture
def image_root(tmp_path: Path) -> Callable[[str], OpenedVolume]:
    """Makes directory volumes over the same two layers: busybox, and accounts; a third hides a file."""
    layers = tmp_path / "layers"
    base, accounts = layers / "sha256-base/fs", layers / "sha256-accounts/fs"
    for directory in ("bin", "tmp", "etc", "srv"):
        (base / directory).mkdir(parents=True)
    (base / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, base / "bin/busybox")
    for applet in (*APPLETS, "wc", "env", "hostname", "kill", "stat", "whoami", "trap"):
        (base / "bin" / applet).symlink_to("busybox")
    (base / "etc/hidden").write_text("below\n")
    (accounts / "etc").mkdir(parents=True)
    (accounts / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv:/bin/sh\n")
    (accounts / "etc/group").write_text("root:x:0:\napp:x:1001:\nextra:x:1002:app\n")
    os.mknod(accounts / "etc/hidden", stat.S_IFCHR, 0)

    def make(name: str) -> OpenedVolume:
        place = tmp_path / name
        for directory in ("upper", "work"):
            (place / directory).mkdir(parents=True)
        return OpenedVolume(
            volume_id=None,
            path=place,
            format=VolumeFormat.SUBVOL,
            size_bytes=0,
            layers=OverlayLayers(upper=place / "upper", work=place / "work", lowers=(accounts, base)),
        )

    return make


async def run(host: Host, spec: CtSpec, volume: OpenedVolume) -> tuple[int | None, list[tuple[str, str]]]:
    """The exit code, and what was said on which stream."""
    running = await host.start(spec, rootfs=volume)
    reason = await asyncio.wait_for(running.wait(), 20)
    return reason.exit_code, await said(host, spec.guest_id)


async def said(host: Host, guest_id: GuestId) -> list[tuple[str, str]]:
    def read() -> list[tuple[str, str]]:
        reader = LogReader(host.engine.logs.directory, guest_id)
        lines, begun = [], b""
        while some := reader.read():
            for line in some:
                begun += line.text
                if line.whole:
                    lines.append((line.stream, begun.decode()))
                    begun = b""
        reader.close()
        return lines

    return await asyncio.to_thread(read)


async def test_the_program_runs_as_its_user_in_its_directory_and_its_end_is_told(
    host: Host, image_root: Callable[[str], OpenedVolume]
) -> None:
    script = "id -u; id -g; id -G; echo $HOME $PWD $A; hostname; cat /etc/hostname; ls /etc; echo bad >&2; exit 7"
    spec = replace(shell(script, user="app", working_directory="/srv"), environment={"A": "b c"})
    code, lines = await run(host, spec, image_root("one"))
    assert code == 7
    assert ("stderr", "bad") in lines
    out = [text for stream, text in lines if stream == "stdout"]
    assert out[:6] == ["1000", "1001", "1001 1002", "/srv /srv b c", "app", "app"]
    assert "hidden" not in out
    assert {"passwd", "group", "hosts", "resolv.conf"} <= set(out)


async def test_containers_share_layers_and_keep_their_changes_apart(
    host: Host, image_root: Callable[[str], OpenedVolume], tmp_path: Path
) -> None:
    one, two = image_root("one"), image_root("two")
    write = "echo mine > /etc/mine; rm /etc/group; echo more >> /etc/passwd; stat -c %a /tmp; touch /tmp/x"
    assert (await run(host, shell(write), one))[1] == [("stdout", "1777")]
    look = "ls /etc; wc -l < /etc/passwd"
    lines = (await run(host, shell(look), two))[1]
    assert ("stdout", "mine") not in lines
    assert ("stdout", "group") in lines
    assert lines[-1] == ("stdout", "2")
    again = (await run(host, shell(look), one))[1]
    assert ("stdout", "mine") in again
    assert again[-1] == ("stdout", "3")
    assert (tmp_path / "one/upper/etc/mine").stat().st_uid == 0  # ids on a volume are the container's own
    assert sorted(path.name for path in (tmp_path / "layers/sha256-accounts/fs/etc").iterdir()) == [
        "group", "hidden", "passwd",
    ]  # fmt: skip


async def test_a_layer_cannot_be_written_through_and_the_host_is_not_in_reach(
    host: Host, image_root: Callable[[str], OpenedVolume]
) -> None:
    script = "mknod /dev/x b 8 0; echo $?; mount -t tmpfs x /tmp; echo $?; ls /proc/1/root/upper; echo $?"
    lines = (await run(host, shell(script), image_root("one")))[1]
    assert [text for stream, text in lines if stream == "stdout"] == ["1", "1", "1"]


async def test_layers_are_mounted_by_links_where_the_kernel_takes_no_list_of_them(
    host: Host, image_root: Callable[[str], OpenedVolume], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fs_type: str, *arguments: object, **options: object) -> int:
        raise OSError(errno.EINVAL, "no lowerdir+")

    monkeypatch.setattr(mount, "new_mount_of", refuse)
    script = "cat /etc/hidden || echo gone; echo x > /etc/new; ls /etc/new /bin/busybox"
    lines = (await run(host, shell(script), image_root("one")))[1]
    assert [text for stream, text in lines if stream == "stdout"] == ["gone", "/bin/busybox", "/etc/new"]
    assert not list(Path("/run").glob("appliance-overlay-*"))


async def test_its_stop_signal_asks_it_to_end(host: Host, image_root: Callable[[str], OpenedVolume]) -> None:
    script = "trap 'echo bye; exit 3' USR1; echo up; while true; do sleep 0.1; done"
    running = await host.start(shell(script, stop_signal="SIGUSR1"), rootfs=image_root("one"))
    while ("stdout", "up") not in await said(host, APP.guest_id):
        await asyncio.sleep(0.05)
    await running.shutdown()
    reason = await asyncio.wait_for(running.wait(), 20)
    assert (reason.kind, reason.exit_code) == ("shutdown", 3)
    assert ("stdout", "bye") in await said(host, APP.guest_id)


async def test_an_unknown_user_is_named_and_nothing_is_left(
    host: Host, image_root: Callable[[str], OpenedVolume]
) -> None:
    with pytest.raises(InvalidParameter, match="there is no user 'nobody-here' inside"):
        await host.start(shell("true", user="nobody-here"), rootfs=image_root("one"))


async def test_a_log_is_set_aside_while_the_container_writes_and_nothing_is_lost(
    host: Host, image_root: Callable[[str], OpenedVolume]
) -> None:
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; sleep 1; echo end"
    running = await host.start(shell(script), rootfs=image_root("one"))
    control = host.engine._places.bundle(APP.guest_id) / "ctl"
    while not await asyncio.to_thread(
        applog.rotate, host.engine.logs.directory, APP.guest_id, control, limit_bytes=20_000
    ):
        await asyncio.sleep(0.02)
    await asyncio.wait_for(running.wait(), 20)
    lines = [text for _, text in await said(host, APP.guest_id)]
    assert lines == [f"line {number}" for number in range(2000)] + ["end"]
