"""Judging qcow2 images by their bytes alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.storage import qcow2_header
from tests.fakes.storage import qcow2_header as image


def refusal(data: bytes, *, backing_allowed: bool = False) -> str | None:
    return qcow2_header.refusal(qcow2_header.parse(data), backing_allowed=backing_allowed)


def test_a_plain_image_is_accepted() -> None:
    assert refusal(image(size=5 << 30)) is None
    assert qcow2_header.parse(image(size=5 << 30)).size_bytes == 5 << 30


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (image(backing=b"/etc/shadow", backing_format=b"raw"), "backing file"),
        (image(backing=b'json:{"driver":"nbd"}', backing_format=b"raw"), "backing file"),
        (image(incompatible=4), "external file"),
        (image(data_file=b"/etc/shadow"), "external file"),
        (image(crypt=1), "encrypted"),
        (image(crypt=2), "encrypted"),
        (image(incompatible=2), "corrupt"),
        (image(size=1 << 60), "absurd"),
        (image(size=0), "absurd"),
    ],
)
def test_what_an_image_must_not_be(data: bytes, word: str) -> None:
    reason = refusal(data)
    assert reason is not None
    assert word in reason


@pytest.mark.parametrize(
    "data",
    [b"", b"QFI\xfb", image(version=9), image(cluster_bits=60), image(incompatible=1 << 40), image()[:80],
     image(backing=b"x")[:110].ljust(65536, b"\0")[:100]],
)  # fmt: skip
def test_a_broken_header_is_no_image(data: bytes) -> None:
    with pytest.raises(qcow2_header.BadImage):
        qcow2_header.parse(data)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_no_bytes_break_the_parser(head: bytes, tail: bytes) -> None:
    for data in (head + tail, b"QFI\xfb\0\0\0\x03" + head, image()[:104] + tail):
        try:
            qcow2_header.parse(data)
        except qcow2_header.BadImage:
            continue
