from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import InvalidParameter, NotAuthenticated, PermissionDenied, TimedOut, TooManyRequests
from appliance.services import passwords
from appliance.services.passwords import Passwords, _Places, check_new_password, default_cost, generate_password
from appliance.services.users import UserChange
from tests.fakes.access import ADMIN, open_realm


async def test_the_real_cost_makes_an_argon2id_hash_that_verifies() -> None:
    checker = Passwords(default_cost())
    try:
        stored = await checker.hash("a good password")
        assert stored.startswith("$argon2id$v=19$m=32768,t=3,p=1$")
        assert await checker.matches(stored, "a good password")
        assert not await checker.matches(stored, "a bad password")
        assert not await checker.matches(None, "a good password")
        assert not await checker.matches("damaged hash", "a good password")
    finally:
        checker.close()


async def test_a_call_that_hangs_keeps_its_place_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "PLACE_TIMEOUT_S", 0.05)
    places, hung = _Places("PAM", 1), threading.Event()
    with pytest.raises(TimedOut, match="PAM"):
        await places.run(lambda: hung.wait(10), timeout_s=0.05)
    with pytest.raises(TooManyRequests):
        await places.run(lambda: True, timeout_s=1)
    hung.set()
    monkeypatch.setattr(passwords, "PLACE_TIMEOUT_S", 10)
    assert await places.run(lambda: True, timeout_s=5)
    places.close()


async def test_a_cancelled_login_gives_its_place_back() -> None:
    places, hung = _Places("PAM", 1), threading.Event()
    task = asyncio.get_running_loop().create_task(places.run(lambda: hung.wait(10), timeout_s=20))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hung.set()
    assert await places.run(lambda: True, timeout_s=5)
    places.close()


@pytest.mark.parametrize("password", ["", "short", "x" * 65, "with\nnewline", "with\0nul here", "tab\there now"])
def test_a_password_that_may_not_be_set_is_refused(password: str) -> None:
    with pytest.raises(InvalidParameter, match="password"):
        check_new_password(password)


def test_a_generated_password_may_be_set_and_is_new_each_time() -> None:
    assert check_new_password(generate_password()) != generate_password()


@pytest.fixture
def account() -> Iterator[str]:
    """A throw-away account of the host with the password "a good password"."""
    name = f"appl-test-{os.getpid()}"
    subprocess.run(["useradd", "--no-create-home", "--shell", "/usr/sbin/nologin", name], check=True)
    try:
        subprocess.run(["chpasswd"], input=f"{name}:a good password\n".encode(), check=True)
        yield name
    finally:
        subprocess.run(["userdel", name], check=True, capture_output=True)


@pytest.mark.host
async def test_accounts_of_the_host_log_in_by_pam_once_they_are_users(account: str, tmp_path: Path) -> None:
    user_id = f"{account}@pam"
    async with open_realm(tmp_path) as realm:
        with pytest.raises(NotAuthenticated):
            await realm.log_in(user_id, "a good password")
        user = await realm.add_user(user_id, password=None)
        assert realm.access.verify_ticket(await realm.log_in(user_id, "a good password")) == user
        with pytest.raises(NotAuthenticated):
            await realm.log_in(user_id, "a bad password")
        await realm.access.users.set_password(user, user_id, "a new password", confirmation="a good password")
        await realm.log_in(user_id, "a new password")
        boss = await realm.add_user("boss@pve")
        await realm.access.groups.create(ADMIN, "hosts")
        await realm.access.users.update(ADMIN, user_id, UserChange(), groups=["hosts"])
        with pytest.raises(PermissionDenied):
            await realm.access.users.set_password(boss, user_id, "another password", confirmation="a good password")
        await asyncio.to_thread(subprocess.run, ["chage", "-E", "0", account], check=True)
        with pytest.raises(NotAuthenticated):
            await realm.log_in(user_id, "a new password")
