"""The habits that tests/conftest.py enforces are enforced: each bad test fails, with the reason named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD = "import asyncio, os, subprocess, threading, time, pytest\nfrom appliance.files import write_atomic\n"


def outcome(directory: Path, test: str) -> tuple[int, str]:
    """(pytest's status, its output) for a file with one test, under this suite's configuration and conftest."""
    path = directory / "test_it.py"
    path.write_text(HEAD + test)
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "tests.conftest", "-o", "settle_s=0.5"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, path], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    return done.returncode, done.stdout + done.stderr


BAD = {
    "a task": (
        "async def test_it():\n    global task\n    task = asyncio.create_task(asyncio.sleep(60), name='forgotten')\n",
        "the test left tasks running: ['forgotten']",
    ),
    "a thread": (
        "def test_it():\n    threading.Thread(target=time.sleep, args=(12,), name='forgotten', daemon=True).start()\n",
        "thread forgotten",
    ),
    "a child": ("def test_it():\n    global child\n    child = subprocess.Popen(['sleep', '12'])\n", "child process"),
    "a descriptor": ("def test_it():\n    os.open('/etc/passwd', os.O_RDONLY)\n", "(/etc/passwd)"),
    "a warning": ("def test_it():\n    import warnings\n    warnings.warn('careless')\n", "UserWarning: careless"),
    "a blocked loop": (
        "async def test_it(tmp_path):\n    write_atomic(tmp_path / 'file', b'')\n",
        "BlockingError",
    ),
    "a loop that waits for ever": (
        "@pytest.mark.timeout(1)\nasync def test_it():\n    await asyncio.sleep(60)\n",
        "the test did not end within 1 s",
    ),
    "a call that waits for ever": ("@pytest.mark.timeout(1)\ndef test_it():\n    time.sleep(60)\n", "Timeout (>1.0s)"),
}


@pytest.mark.parametrize("habit", BAD)
def test_a_bad_habit_fails_its_test(habit: str, tmp_path: Path) -> None:
    test, told = BAD[habit]
    status, output = outcome(tmp_path, test)
    assert status == 1, output
    assert told in output


def test_a_good_test_passes(tmp_path: Path) -> None:
    status, output = outcome(tmp_path, "async def test_it():\n    await asyncio.create_task(asyncio.sleep(0))\n")
    assert status == 0, output
