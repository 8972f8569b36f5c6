from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import NotAuthenticated
from appliance.services.tickets import LOGIN_LIFE_S, Kind, Signer, parse

KEY = bytes(range(32))
NOW = 1_700_000_000.0
signer = Signer(KEY)


def accepts(
    ticket: str, *, kind: Kind = Kind.LOGIN, bound_to: str = "s", now: float = NOW, by: Signer = signer
) -> bool:
    parsed = parse(ticket)
    return parsed is not None and by.verify(kind, parsed, now=now, life_s=LOGIN_LIFE_S, bound_to=bound_to)


def test_a_ticket_has_the_shape_clients_know() -> None:
    ticket = signer.sign(Kind.LOGIN, "admin@pve", now=NOW, bound_to="s")
    assert re.fullmatch(r"PVE:admin@pve:6553F100::[A-Za-z0-9+/]+=*", ticket)
    assert accepts(ticket)


@pytest.mark.parametrize(
    ("age_s", "good"), [(0, True), (7200, True), (7201, False), (-300, True), (-301, False), (10**9, False)]
)
def test_a_ticket_lives_two_hours_and_may_come_from_a_clock_a_little_ahead(age_s: float, good: bool) -> None:
    assert accepts(signer.sign(Kind.LOGIN, "a@pve", now=NOW, bound_to="s"), now=NOW + age_s) is good


def test_a_ticket_is_worth_nothing_for_another_kind_binding_or_key() -> None:
    ticket = signer.sign(Kind.LOGIN, "a@pve", now=NOW, bound_to="s")
    assert not accepts(ticket, kind=Kind.CHALLENGE)
    assert not accepts(ticket, bound_to="t")
    assert not accepts(ticket, by=Signer(bytes(32)))


def test_no_character_of_a_ticket_can_be_changed() -> None:
    ticket = signer.sign(Kind.LOGIN, "joe@pve", now=NOW, bound_to="s")
    for place, character in enumerate(ticket):
        for other in ("A", "b", "0"):
            if other != character:
                assert not accepts(ticket[:place] + other + ticket[place + 1 :]), (place, other)


@given(left=st.text(max_size=8), right=st.text(max_size=8), data=st.from_regex(r"[a-z]{1,8}@pve", fullmatch=True))
def test_no_two_meanings_share_a_signature(left: str, right: str, data: str) -> None:
    same = signer.sign(Kind.LOGIN, data, now=NOW, bound_to=left) == signer.sign(
        Kind.LOGIN, data, now=NOW, bound_to=right
    )
    assert same == (left.encode(errors="replace") == right.encode(errors="replace"))


@pytest.mark.parametrize(
    "text", ["", "PVE", "PVE:a@pve:123::x", "PVE:a@pve:6553F100::", "PBS:a@pve:6553F100::AAAA", "PVE:a b:6553F100::AAAA",
             "PVE:" + "a" * 5000 + ":6553F100::AAAA", "PVE:a@pve:6553f100::AAAA", "PVE:a@pve:6553F100::AA\n", "\ud800"],
)  # fmt: skip
def test_what_has_no_tickets_shape_is_no_ticket(text: str) -> None:
    assert parse(text) is None


def test_a_csrf_token_belongs_to_one_ticket() -> None:
    one, two = (signer.sign(Kind.LOGIN, name, now=NOW, bound_to="s") for name in ("a@pve", "b@pve"))
    signer.verify_csrf(one, signer.csrf_token(one))
    for wrong in (signer.csrf_token(two), "", "6553F100:", "x" * 10_000, "\ud800", signer.csrf_token(one) + "x"):
        with pytest.raises(NotAuthenticated):
            signer.verify_csrf(one, wrong)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        Signer(b"short")
