"""PVE's terminal packets: however they are cut, they mean the same; hostile ones end the connection, never the process."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.web.ws.xterm import (
    DATA_LIMIT_BYTES,
    SIZE_LIMIT,
    FramingError,
    Packet,
    PacketParser,
    Ping,
    Resized,
    Typed,
)

_packets = st.lists(
    st.builds(Typed, st.binary(max_size=40))
    | st.builds(Resized, st.integers(1, SIZE_LIMIT), st.integers(1, SIZE_LIMIT))
    | st.just(Ping())
)


def encode(packet: Packet) -> bytes:
    match packet:
        case Typed(data):
            return b"0:%d:%s" % (len(data), data)
        case Resized(columns, rows):
            return b"1:%d:%d:" % (columns, rows)
        case Ping():
            return b"2"


@settings(deadline=None)
@given(_packets, st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_packets_survive_any_cutting(packets: list[Packet], cuts: list[int]) -> None:
    stream = b"".join(map(encode, packets))
    parser, got, position = PacketParser(), list[Packet](), 0
    while position < len(stream):
        size = cuts[position % len(cuts)]
        got += parser.feed(stream[position : position + size])
        position += size
    assert got == packets


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"0:5:", b"1:80:", b"0:", b"24:"]), max_size=6))
def test_any_bytes_are_packets_or_a_framing_error(chunks: list[bytes]) -> None:
    parser = PacketParser()
    try:
        for chunk in chunks:
            parser.feed(chunk)
    except FramingError:
        pass


@pytest.mark.parametrize(
    "stream",
    [b"3", b"0:-1:", b"0:99999999:", b"0:%d:" % (DATA_LIMIT_BYTES + 1), b"0:1x:", b"1:80:5000:", b"1:80:+1:",
     b"0" * 30, b"0x", b"1:80:\xd9\xa3:", b"0:" + b"9" * 30 + b":", b"0::", b"0: 1:"],
)  # fmt: skip
def test_hostile_framing_is_refused(stream: bytes) -> None:
    with pytest.raises(FramingError):
        PacketParser().feed(stream)


def test_a_terminal_without_a_size_says_nothing() -> None:
    assert PacketParser().feed(b"1:0:0:1:80:24:") == [Ping(), Resized(80, 24)]


def test_an_incomplete_packet_is_bounded() -> None:
    parser = PacketParser()
    assert parser.feed(b"0:%d:" % DATA_LIMIT_BYTES) == []
    (packet,) = parser.feed(b"x" * DATA_LIMIT_BYTES)
    assert packet == Typed(b"x" * DATA_LIMIT_BYTES)
