"""Directory mappings: which directories may be shared, and what a guest gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import Conflict, HostError, InvalidParameter, NotFound
from appliance.services.directory_mappings import DirectoryMappings, MappingChange, parse_rows
from tests.fakes.store import FakeStore

NODE = "a"


@pytest.fixture
def mappings(tmp_path: Path) -> DirectoryMappings:
    return DirectoryMappings(FakeStore(), node=NODE, data_dir=tmp_path / "data")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "home"
    directory.mkdir()
    return directory


async def test_a_guest_gets_the_directory_of_this_node(mappings: DirectoryMappings, shared: Path) -> None:
    await mappings.create("home", description="", paths={NODE: str(shared), "b": "/tank/home"})
    assert await mappings.directory("home") == shared
    assert (await mappings.get("home")).rows == [f"node=a,path={shared}", "node=b,path=/tank/home"]


async def test_what_cannot_be_used_here_says_why(mappings: DirectoryMappings, shared: Path) -> None:
    link = shared.with_name("link")
    link.symlink_to(shared)
    await mappings.create("elsewhere", description="", paths={"b": "/tank/home"})
    await mappings.create("missing", description="", paths={NODE: "/nowhere/at/all"})
    await mappings.create("led", description="", paths={NODE: str(link)})
    for name, reason in (
        ("elsewhere", "no directory for node a"),
        ("missing", "No such file"),
        ("led", "symbolic link"),
    ):
        with pytest.raises(HostError, match=reason):
            await mappings.directory(name)
    with pytest.raises(NotFound):
        await mappings.directory("none")


@pytest.mark.parametrize("path", ["/", "/etc", "/etc/ssh", "/proc", "home", "/srv/../etc", "/srv/a,b", "", "/x\n"])
async def test_directories_of_the_system_and_odd_paths_are_refused(mappings: DirectoryMappings, path: str) -> None:
    with pytest.raises(InvalidParameter):
        await mappings.create("x1", description="", paths={NODE: path})


async def test_the_appliances_own_data_is_not_shared(mappings: DirectoryMappings, tmp_path: Path) -> None:
    for path in (tmp_path / "data", tmp_path / "data" / "vmm", tmp_path):
        with pytest.raises(InvalidParameter, match="the appliance's own data"):
            await mappings.create("x1", description="", paths={NODE: str(path)})


@pytest.mark.parametrize("name", ["x", "1x", "a/b", "a b", "x" * 37, ""])
async def test_a_name_is_a_tag_the_guest_can_mount(mappings: DirectoryMappings, shared: Path, name: str) -> None:
    with pytest.raises(InvalidParameter):
        await mappings.create(name, description="", paths={NODE: str(shared)})


async def test_changes_are_refused_when_stale(mappings: DirectoryMappings, shared: Path) -> None:
    await mappings.create("home", description="old", paths={NODE: str(shared)})
    with pytest.raises(Conflict):
        await mappings.create("home", description="", paths={NODE: str(shared)})
    digest = (await mappings.get("home")).digest()
    await mappings.update("home", MappingChange(description="new"), digest=digest)
    with pytest.raises(Conflict, match="digest"):
        await mappings.update("home", MappingChange(description="newer"), digest=digest)
    await mappings.update("home", MappingChange(delete=("description",), paths={"b": "/srv"}))
    changed = await mappings.get("home")
    assert (changed.description, changed.paths) == ("", {"b": "/srv"})
    await mappings.delete("home")
    with pytest.raises(NotFound):
        await mappings.get("home")


def test_rows_that_came_as_one_string_are_told_apart() -> None:
    apart = {"a": "/x", "b": "/y"}
    assert parse_rows(["node=a,path=/x", "path=/y,node=b"]) == apart
    assert parse_rows(["node=a", "path=/x", "node=b", "path=/y"]) == apart
    for wrong in (["node=a"], ["a=/x"], ["node=a,path=/x", "node=a,path=/y"], ["/x"]):
        with pytest.raises(InvalidParameter):
            parse_rows(wrong)
