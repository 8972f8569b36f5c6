"""Token buckets against guessing: so many failures at once, then one more every so often. Bounded memory. Pure."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

from appliance.errors import TooManyRequests


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float


class FailureLimiter:
    """Counts failures by key (an address, a user).

    A key may fail `burst` times at once and regains one failure every `refill_s`. The `capacity` keys that failed
    last are remembered; an attacker who spreads over more keys meets the limit on what the keys share (the other
    limiter). Times are monotonic seconds.
    """

    def __init__(self, *, burst: int, refill_s: float, capacity: int = 4096) -> None:
        self._burst = burst
        self._refill_s = refill_s
        self._capacity = capacity
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_s(self, key: str, now: float) -> float:
        """How long `key` must wait before the next attempt; 0.0 when it may try."""
        bucket = self._buckets.get(key)
        if bucket is None:
            return 0.0
        level = self._level(bucket, now)
        return 0.0 if level >= 1.0 else (1.0 - level) * self._refill_s

    def check(self, key: str, now: float, what: str) -> None:
        """Raises `TooManyRequests` when `key` must wait."""
        if (wait_s := self.wait_s(key, now)) > 0:
            raise TooManyRequests(f"{what}: too many failures, try again in {wait_s:.0f} s", retry_after_s=wait_s)

    def failed(self, key: str, now: float) -> None:
        """`key` failed at `now`."""
        bucket = self._buckets.pop(key, None)
        level = self._level(bucket, now) if bucket is not None else float(self._burst)
        self._buckets[key] = _Bucket(max(0.0, level - 1.0), now)
        while len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)

    def refund(self, key: str) -> None:
        """The attempt counted as failed beforehand was none."""
        if (bucket := self._buckets.get(key)) is not None:
            bucket.level = min(float(self._burst), bucket.level + 1.0)

    def succeeded(self, key: str) -> None:
        """`key` has proved itself: forget its failures."""
        self._buckets.pop(key, None)

    def __len__(self) -> int:
        return len(self._buckets)

    def _level(self, bucket: _Bucket, now: float) -> float:
        return min(float(self._burst), bucket.level + max(0.0, now - bucket.at) / self._refill_s)


class Acquaintances:
    """Pairs of user and address that have logged in before, the newest `capacity` of them.

    Somebody who hammers on a user's password must not lock that user out of the place they always come from.
    """

    def __init__(self, *, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._pairs: OrderedDict[tuple[str, str], None] = OrderedDict()

    def met(self, user: str, remote: str) -> None:
        """`user` has logged in from `remote`."""
        self._pairs[user, remote] = None
        self._pairs.move_to_end((user, remote))
        while len(self._pairs) > self._capacity:
            self._pairs.popitem(last=False)

    def known(self, user: str, remote: str) -> bool:
        """Whether `user` has logged in from `remote` before."""
        return (user, remote) in self._pairs


def remote_key(remote: str) -> str:
    """What one attacker cannot change at will: an IPv4 address, the /64 network of an IPv6 address, else the text."""
    try:
        address = ipaddress.ip_address(remote.split("%")[0])
    except ValueError:
        return remote[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
