"""A container whose root is layers: the same ids on disk whoever runs it, and nothing mounted once it has ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.kernel import mount
from appliance.model.volume import OpenedVolume, OverlayLayers, VolumeFormat
from tests.ct.conftest import SPEC, Host, leftovers

pytestmark = pytest.mark.host


@pytest.fixture
def layered(tmp_path: Path, make_root: Callable[[str], OpenedVolume]) -> OpenedVolume:
    """A busybox below, an empty layer above."""
    base = make_root("base").path
    (base / "etc/owned").write_text("by the container's daemon")
    os.chown(base / "etc/owned", 1, 1)
    volume = tmp_path / "volume"
    for name in ("upper", "work"):
        (volume / name).mkdir(parents=True)
    layers = OverlayLayers(upper=volume / "upper", work=volume / "work", lowers=(base,))
    return OpenedVolume(volume_id=None, path=volume, format=VolumeFormat.SUBVOL, size_bytes=0, layers=layers)


@pytest.mark.parametrize("id_base", [100_000, 0])
async def test_ids_on_the_layers_are_the_containers_own(
    host: Host, layered: OpenedVolume, run_dir: Path, id_base: int
) -> None:
    script = "echo x >/made; chown 5:6 /made; echo y >>/etc/owned; stat -c %u:%g /etc/owned /made; rm /tmp -r"
    guest = await host.start(replace(SPEC, id_base=id_base), rootfs=layered)
    said = await guest.execute(["/bin/sh", "-c", script], timeout_s=20)
    assert said.text.split() == ["1:1", "5:6"], said.stderr
    assert layered.layers is not None
    upper = layered.path / "upper"
    assert [(upper / name).lstat().st_uid for name in ("made", "etc/owned")] == [5, 1]
    assert (layered.layers.lowers[0] / "etc/owned").read_text() == "by the container's daemon"
    assert (layered.layers.lowers[0] / "tmp").is_dir()
    await guest.stop()
    assert await leftovers(run_dir) == []
    assert await asyncio.to_thread(mount.mounts_under, layered.path) == []


async def test_it_keeps_what_it_wrote_under_other_ids(host: Host, layered: OpenedVolume) -> None:
    guest = await host.start(rootfs=layered)
    await guest.execute(["/bin/sh", "-c", "echo kept >/made; chown 7 /made"], timeout_s=20)
    await guest.stop()
    again = await host.start(replace(SPEC, id_base=300_000), rootfs=layered)
    said = await again.execute(["/bin/sh", "-c", "cat /made; stat -c %u /made; echo more >>/made"], timeout_s=20)
    assert said.text.split() == ["kept", "7"]
    await again.stop()
