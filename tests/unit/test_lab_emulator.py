"""Which QEMU the lab's hosts run in."""

from __future__ import annotations

import pytest

from tests.lab.emulator_program import backports, major

HOST = """\
Types: deb
URIs: https://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://mirror.example/security
Suites: bookworm-security
Components: main
"""


@pytest.mark.parametrize(
    ("told", "number"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", 7),
        ("QEMU emulator version 10.0.2 (Debian)", 10),
        ("?", 0),
    ],
)
def test_its_version_is_read_from_what_it_says(told: str, number: int) -> None:
    assert major(told) == number


def test_backports_are_looked_for_where_the_release_itself_comes_from() -> None:
    assert backports(HOST, "bookworm") == (
        "Types: deb\nURIs: https://mirror.example/debian\nSuites: bookworm-backports\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )
