"""What is proved of the machine on any /dev/kvm holds on a processor that runs guests itself, with nested paging."""

from __future__ import annotations

import pytest

from tests.lab.host import LabHost
from tests.lab.recipe import SOURCE_DIR, VENV_DIR

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

LIMIT_S = 600.0


async def test_small_guests_do_there_what_they_do_elsewhere(vmm_host: LabHost) -> None:
    words = f"cd {SOURCE_DIR} && exec {VENV_DIR}/bin/python -m pytest -q -x -p no:cacheprovider tests/kvm"
    done = await vmm_host.run(["sh", "-c", words], timeout_s=LIMIT_S, check=False)
    assert done.returncode == 0, done.text[-6000:]
