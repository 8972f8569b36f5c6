"""Password hashes of guests: libcrypt's, verified against those of another implementation."""

from __future__ import annotations

import pytest

from appliance.errors import HostError
from appliance.kernel import crypt

# made by `openssl passwd -6 -salt saltstring`, which does not use libcrypt
VECTOR = "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"


def test_a_hash_of_another_implementation_verifies() -> None:
    assert crypt.verify("Hello world!", VECTOR)
    assert not crypt.verify("Hello world?", VECTOR)


def test_two_hashes_of_one_password_differ_and_both_verify() -> None:
    first, second = crypt.sha512_crypt("päss"), crypt.sha512_crypt("päss")
    assert first != second
    assert crypt.verify("päss", first)
    assert crypt.verify("päss", second)


def test_a_password_over_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="511"):
        crypt.sha512_crypt("x" * 512)


def test_an_unknown_method_is_an_error_not_a_weak_hash() -> None:
    with pytest.raises(HostError):
        crypt.crypt_rn(b"x", b"$nope$salt")
    assert not crypt.verify("x", "*0")
