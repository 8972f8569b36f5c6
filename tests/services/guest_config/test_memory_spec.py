"""Huge pages, NUMA nodes and shared directories of a VM's configuration."""

from __future__ import annotations

import pytest

from appliance.model.guest import MemoryBacking, NumaNode, VmShare
from tests.services.guest_config.test_vm_spec import refused, spec_of


def test_memory_is_ordinary_by_default() -> None:
    assert spec_of().memory_backing == MemoryBacking()
    assert spec_of(numa0="cpus=0,memory=7").memory_backing == MemoryBacking(), "without numa=1 the nodes have no effect"


def test_huge_pages_are_pves_words() -> None:
    backing = spec_of(memory="2048", hugepages="1024", keephugepages="1", prealloc="1").memory_backing
    assert backing == MemoryBacking(hugepages="1024", keep_hugepages=True, prealloc=True)
    assert list(refused(hugepages="4")) == ["hugepages"]


@pytest.mark.parametrize(("pages", "memory"), [("2", "513"), ("any", "513"), ("1024", "1536")])
def test_memory_that_is_no_whole_huge_pages_is_refused(pages: str, memory: str) -> None:
    assert list(refused(hugepages=pages, memory=memory)) == ["hugepages"]


def test_without_nodes_there_is_one_for_each_socket() -> None:
    nodes = spec_of(numa="1", sockets="2", cores="2", memory="1024").memory_backing.numa
    assert nodes == (NumaNode(index=0, cpus=(0, 1), memory_mib=512), NumaNode(index=1, cpus=(2, 3), memory_mib=512))


def test_a_node_says_its_processors_its_memory_and_where_it_is() -> None:
    nodes = spec_of(
        numa="1", cores="4", memory="1024", numa0="cpus=0-1;3,memory=768,hostnodes=0-1,policy=interleave",
        numa1="cpus=2,memory=256",
    ).memory_backing.numa  # fmt: skip
    first = NumaNode(index=0, cpus=(0, 1, 3), memory_mib=768, host_nodes=(0, 1), policy="interleave")
    assert nodes == (first, NumaNode(index=1, cpus=(2,), memory_mib=256))


@pytest.mark.parametrize(
    ("slot", "nodes"),
    [
        ("numa0", {"numa0": "cpus=0,memory=256"}),  # less than the machine has
        ("numa0", {"numa0": "cpus=0"}),
        ("numa0", {"numa0": "memory=512"}),
        ("numa0", {"numa0": "cpus=0-9,memory=512"}),
        ("numa0", {"numa0": "cpus=1-0,memory=512"}),
        ("numa1", {"numa0": "cpus=0,memory=256", "numa1": "cpus=0,memory=256"}),
        ("numa1", {"numa1": "cpus=0,memory=512"}),
        ("numa0", {"numa0": "cpus=0,memory=512,hostnodes=0"}),
        ("numa0", {"numa0": "cpus=0,memory=512,policy=bind"}),
        ("numa0", {"numa0": "cpus=0,memory=512,hostnodes=0-1,policy=preferred"}),
        ("numa0", {"numa0": "cpus=0,memory=511.5"}),
        ("numa1", {"hugepages": "2", "numa0": "cpus=0,memory=255", "numa1": "cpus=1,memory=257"}),
    ],
)
def test_nodes_that_do_not_fit_together_are_refused_by_name(slot: str, nodes: dict[str, str]) -> None:
    errors = refused(numa="1", cores="2", memory="512", **nodes)
    assert list(errors) in ([slot], ["numa0"])


def test_a_shared_directory_is_named_by_its_mapping() -> None:
    (share, plain) = spec_of(virtiofs3="plain", virtiofs0="dirid=home,cache=never,direct-io=1,expose-acl=1").shares[
        ::-1
    ]
    assert share == VmShare(slot="virtiofs3", mapping="plain")
    assert plain == VmShare(slot="virtiofs0", mapping="home", cache="never", direct_io=True, acl=True, xattr=True)


def test_two_shares_of_one_mapping_are_refused_as_the_guest_mounts_by_its_name() -> None:
    assert list(refused(virtiofs0="home", virtiofs1="home")) == ["virtiofs1"]


@pytest.mark.parametrize("text", ["cache=auto", "dirid=../x", "home,cache=none", "home,path=/etc", "dirid=" + "x" * 37])
def test_a_share_that_makes_no_sense_is_refused(text: str) -> None:
    assert list(refused(virtiofs0=text)) == ["virtiofs0"]
