from __future__ import annotations

import pyotp
import pytest

from appliance.errors import InvalidParameter
from appliance.services import totp
from appliance.services.directory import Totp, User

NOW = 1_700_000_010.0
SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
GENERATOR = pyotp.TOTP(SECRET)
USER = User(totp={"t": Totp(secret=SECRET)})


def test_rfc_6238_appendix_b_vectors_are_accepted() -> None:
    secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    entry = Totp(secret=secret, digits=8)
    for now, code in ((59, "94287082"), (1111111109, "07081804"), (20000000000, "65353130")):
        assert totp.matching_counter(entry, code, now) == now // 30


def test_a_code_is_good_once() -> None:
    code = GENERATOR.at(int(NOW))
    right, used = totp.answer(USER, f"totp:{code}", NOW)
    assert right
    assert not totp.answer(used, code, NOW)[0]
    assert not totp.answer(used, code, NOW + 25)[0]
    assert totp.answer(used, GENERATOR.at(int(NOW) + 30), NOW + 30)[0]


def test_an_older_code_than_the_one_used_is_refused() -> None:
    _, used = totp.answer(USER, GENERATOR.at(int(NOW)), NOW)
    assert not totp.answer(used, GENERATOR.at(int(NOW) - 30), NOW)[0]


@pytest.mark.parametrize(("shift_s", "good"), [(-60, False), (-30, True), (0, True), (30, True), (60, False)])
def test_clocks_may_differ_by_one_step(shift_s: int, good: bool) -> None:
    assert totp.answer(USER, GENERATOR.at(int(NOW) + shift_s), NOW)[0] is good


@pytest.mark.parametrize(
    "response", ["", "totp:", "123", "totp:12345a", "webauthn:x", "totp:" + "1" * 5000, "１２３４５６"]
)
def test_anything_else_is_a_failure_that_is_counted(response: str) -> None:
    right, after = totp.answer(USER, response, NOW)
    assert not right
    assert after.totp_failures == 1


def test_eight_wrong_codes_lock_codes_until_a_recovery_key_unlocks() -> None:
    recovery, keys = totp.new_recovery(NOW)
    user = User(totp=USER.totp, recovery=recovery)
    for _ in range(totp.FAILURE_LIMIT):
        _, user = totp.answer(user, "000000", NOW)
    assert totp.locked(user)
    assert not totp.answer(user, GENERATOR.at(int(NOW)), NOW)[0]
    right, user = totp.answer(user, f"recovery:{keys[3]}", NOW)
    assert right
    assert not totp.locked(user)


def test_a_recovery_key_is_good_once_and_not_kept_readable() -> None:
    recovery, keys = totp.new_recovery(NOW)
    user = User(totp=USER.totp, recovery=recovery)
    assert len(set(keys)) == totp.RECOVERY_KEYS
    assert not any(key in repr(recovery) for key in keys)
    right, used = totp.answer(user, f"recovery:{keys[0].upper()}", NOW)
    assert right
    assert not totp.answer(used, f"recovery:{keys[0]}", NOW)[0]
    assert totp.answer(used, f"recovery:{keys[1]}", NOW)[0]
    assert not totp.answer(used, "recovery:", NOW)[0]


def test_a_disabled_generator_neither_demands_nor_answers() -> None:
    user = User(totp={"t": Totp(secret=SECRET, enable=False)})
    assert not totp.required(user)
    assert not totp.answer(user, GENERATOR.at(int(NOW)), NOW)[0]


def test_the_challenge_says_what_can_answer_it() -> None:
    recovery, _ = totp.new_recovery(NOW)
    assert totp.challenge(User(totp=USER.totp, recovery=recovery)).startswith("!tfa!%7B%22totp%22%3Atrue")


def test_an_otpauth_uri_is_understood() -> None:
    entry = totp.parse_uri(GENERATOR.provisioning_uri(name="joe", issuer_name="me"), description="phone", now=NOW)
    assert (entry.secret, entry.digits, entry.period_s, entry.algorithm) == (SECRET, 6, 30, "SHA1")
    uri = f"otpauth://totp/x?secret={SECRET}&algorithm=SHA512&digits=8&period=60"
    assert totp.parse_uri(uri, description="", now=NOW).algorithm == "SHA512"


@pytest.mark.parametrize(
    "uri",
    ["", "http://x", f"otpauth://hotp/x?secret={SECRET}", "otpauth://totp/x", "otpauth://totp/x?secret=ABC",
     "otpauth://totp/x?secret=!!!!", f"otpauth://totp/x?secret={SECRET}&digits=3",
     f"otpauth://totp/x?secret={SECRET}&period=1", f"otpauth://totp/x?secret={SECRET}&algorithm=MD5",
     f"otpauth://totp/x?secret={SECRET}&digits=x", f"otpauth://totp/x?secret={'A' * 4000}", "otpauth://totp/x?secret=é"],
)  # fmt: skip
def test_a_weak_or_broken_uri_is_refused(uri: str) -> None:
    with pytest.raises(InvalidParameter):
        totp.parse_uri(uri, description="", now=NOW)
