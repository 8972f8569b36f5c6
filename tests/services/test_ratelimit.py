from __future__ import annotations

import pytest

from appliance.errors import TooManyRequests
from appliance.services.ratelimit import Acquaintances, FailureLimiter, remote_key


def test_after_the_burst_one_attempt_comes_back_at_a_time() -> None:
    limiter = FailureLimiter(burst=3, refill_s=10.0)
    for _ in range(3):
        assert limiter.wait_s("k", 0.0) == 0.0
        limiter.failed("k", 0.0)
    assert limiter.wait_s("k", 0.0) == pytest.approx(10.0)
    with pytest.raises(TooManyRequests) as caught:
        limiter.check("k", 4.0, "login")
    assert caught.value.retry_after_s == pytest.approx(6.0)
    limiter.check("k", 10.0, "login")
    limiter.failed("k", 10.0)
    assert limiter.wait_s("k", 10.0) > 0


def test_other_keys_are_not_affected_and_success_forgets() -> None:
    limiter = FailureLimiter(burst=1, refill_s=10.0)
    limiter.failed("k", 0.0)
    assert limiter.wait_s("other", 0.0) == 0.0
    limiter.succeeded("k")
    assert limiter.wait_s("k", 0.0) == 0.0


def test_a_refund_takes_back_one_failure_and_no_more() -> None:
    limiter = FailureLimiter(burst=2, refill_s=10.0)
    limiter.failed("k", 0.0)
    for _ in range(5):
        limiter.refund("k")
    limiter.failed("k", 0.0)
    limiter.failed("k", 0.0)
    assert limiter.wait_s("k", 0.0) > 0


def test_a_flood_of_keys_takes_bounded_memory() -> None:
    limiter = FailureLimiter(burst=1, refill_s=10.0, capacity=100)
    for number in range(10_000):
        limiter.failed(f"user{number}", 0.0)
    assert len(limiter) == 100
    friends = Acquaintances(capacity=2)
    for name in ("a", "b", "c"):
        friends.met(name, "here")
    assert not friends.known("a", "here")
    assert friends.known("c", "here")
    assert not friends.known("c", "there")


@pytest.mark.parametrize(
    ("remote", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("local", "local"),
        ("x" * 500, "x" * 64),
    ],
)
def test_addresses_an_attacker_can_choose_freely_share_a_key(remote: str, key: str) -> None:
    assert remote_key(remote) == key
