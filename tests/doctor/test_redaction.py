"""No secret gets into a bug report, whichever way it would come."""

from __future__ import annotations

import pytest

from appliance.doctor import redaction

TICKET = "PVE:admin@pve:6565F0A1::c2lnbmF0dXJlLW9mLWEtdGlja2V0+/=="
UUID = "0c9f2a5e-7e6b-4c11-9f7d-2d1b8a1e77aa"


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("admin password: Hunter2-of-the-north", "Hunter2-of-the-north"),
        ("cipassword=geheim12", "geheim12"),
        ("{'password': 'ge heim'}", "ge heim"),
        ('"secret": "s3cr3t,with=all"', "s3cr3t,with=all"),
        (f"Authorization: PVEAPIToken=root@pam!job={UUID}", UUID),
        (f"called with PVEAPIToken=root@pam!job={UUID} by", UUID),
        (f"Cookie: PVEAuthCookie={TICKET}", "c2lnbmF0dXJl"),
        (f"GET /?x={TICKET} HTTP", "c2lnbmF0dXJl"),
        (f"vncticket PVEVNC:6565F0A1::{'A' * 40}; ticket={TICKET}", "c2lnbmF0dXJl"),
        ("CSRFPreventionToken: 6565F0A1:abcdefghijklmnopqrstuvwxyz0123456", "abcdefghijkl"),
        ("csrf 6565F0A1:abcdefghijklmnopqrstuvwxyz01234567+/ given", "abcdefghijkl"),
        ("root:$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.:19000", "F5Jx5fExrKuPp53xLKQ"),
        ("hash $argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub", "RdescudvJCsgt3ub"),
        ("download https://user:p4ss-w0rd@mirror/x.iso", "p4ss-w0rd"),
        ("key ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk me@home", "AAAAC3NzaC1lZDI1NTE5"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----", "MIIEvQ"),
        ("-----BEGIN EC PRIVATE KEY-----\nMIIEvQIBADANBg\n(cut off", "MIIEvQ"),
    ],
)
def test_what_looks_like_a_secret_is_removed_from_text(line: str, secret: str) -> None:
    done = redaction.text(f"before\n{line}\nafter")
    assert secret not in done
    assert redaction.REMOVED in done
    assert done.startswith("before\n")


@pytest.mark.parametrize(
    "line",
    [
        "vm 101: starting → running",
        "access: the password of admin@pve is in /var/lib/appliance/admin-password",
        "UPID:lab1:0000A1B2:000C3D4E:6565F0A1:qmstart:101:admin@pve:",
        "net0: virtio=52:54:00:AA:BB:CC,bridge=vmbr0",
        "-----BEGIN CERTIFICATE-----",
    ],
)
def test_what_a_report_is_read_for_stays(line: str) -> None:
    assert redaction.text(line) == line


def test_known_secrets_go_wherever_they_stand() -> None:
    assert "correct horse" not in redaction.text("x'correct horse'y", known={"correct horse"})
    assert redaction.text("a short one: ab", known={"ab"}) == "a short one: ab", "it would be found everywhere"


def test_values_go_by_the_name_of_their_key_at_any_depth() -> None:
    value = {
        "name": "web",
        "cipassword": "geheim",
        "users": [{"userid": "a@pve", "tokens": ["x"], "keys": "yubi"}],
        "tokenid": 0,
        "nested": {"Ticket": TICKET, "note": f"uses PVEAPIToken=a@pve!b={UUID}"},
    }
    done = redaction.values(value)
    assert done["name"] == "web"
    assert done["users"][0]["userid"] == "a@pve"
    assert {done["cipassword"], done["users"][0]["tokens"], done["users"][0]["keys"]} == {redaction.REMOVED}
    assert UUID not in str(done)
    assert TICKET not in str(done)
