"""One host's whole life with the Debian package: installed, used, upgraded, restarted, cut off, removed, purged.

Each phase is a fixture of the module, made once and in the order of the file: what it saw is what the tests look at.
The host has no Python and no compiler; apt brings what the package depends on from an archive on the host itself.
"""

from __future__ import annotations

import json
import re
import tarfile
import time
from pathlib import Path
from typing import Final

import pytest
from proxmoxer import AuthenticationError

from tests.lab.package_life import (
    CT,
    GUESTS,
    LIST_FILES,
    MEMORY_MIB,
    NATIVE,
    QEMU,
    Life,
    bare_image,
    ct_init,
    cut,
    installed,
    life,
    package,
    purged,
    rebooted,
    removed,
    upgraded,
    used,
    wait_for_states,
)  # fmt: skip
from tests.lab.packaged import ADMIN, DATA_DIR, PackagedHost, guest_run, in_loop

__all__ = ["bare_image", "cut", "installed", "life", "package", "purged", "rebooted", "removed", "upgraded", "used"]
"""Fixtures: the phases."""
pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

NEW_PASSWORD: Final = "a-Second-password-7"
TOKEN_NAME: Final = "lab"

NOT_OURS = (
    "/var/log/", "/var/cache/", "/var/lib/apt/", "/var/lib/dpkg/", "/var/lib/systemd/", "/var/tmp/", "/tmp/", "/root/",
    "/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/subuid", "/etc/subgid", "/etc/mtab",
    "/etc/ld.so.cache", "/var/lib/lxcfs", "/etc/.pwd.lock", "/var/lib/dbus",
)  # fmt: skip
"""Files that dpkg, systemd and packages the appliance depends on write for themselves."""
# --- installed --------------------------------------------------------------------------------------------------------


def test_apt_installs_it_on_a_host_without_python(installed: Life) -> None:
    bare = installed.bare
    assert installed.seen["python"] == "", "the host was not bare"
    assert bare.sh("ls /usr/bin/python3* 2>/dev/null || true") == ""
    assert bare.sh("systemctl is-enabled appliance appliance-guests").split() == ["enabled"] * 2
    assert bare.sh("appliance --version") == f"appliance {installed.package.version}"
    for program in ("crun", "conmon", "dnsmasq"):
        bare.sh(f"command -v {program}")
    assert bare.sh("systemctl --failed --no-legend --plain") == ""


def test_dpkg_finds_every_file_as_it_was_packed(installed: Life) -> None:
    assert installed.bare.sh("dpkg --verify appliance || true") == ""


def test_the_banner_tells_where_the_pages_are(installed: Life) -> None:
    issue = installed.bare.sh("script --quiet --command 'agetty --show-issue' /dev/null")  # it wants a terminal
    assert "https://10.0.2.15:8006/" in issue


def test_the_first_password_is_roots_to_read_and_goes_when_it_is_changed(installed: Life) -> None:
    bare = installed.bare
    assert bare.sh(f"stat -c '%a %U' {DATA_DIR} {DATA_DIR}/admin-password") == "700 root\n600 root"
    api = bare.api()  # over TLS that is verified by the appliance's own authority
    assert [row["node"] for row in api.nodes.get()] == [bare.host.name]
    stranger = PackagedHost(bare.host)
    stranger.password = "not-the-password"
    with pytest.raises(AuthenticationError):
        stranger.api()
    api.access.password.put(userid=ADMIN, password=NEW_PASSWORD, **{"confirmation-password": bare.password})
    bare.password = NEW_PASSWORD
    bare.api()
    assert bare.status(f"test -e {DATA_DIR}/admin-password") == 1


def test_the_certificate_is_good_for_the_address_in_the_banner(installed: Life) -> None:
    script = (
        "import socket, ssl; c = ssl.create_default_context(cafile='/var/lib/appliance/pki/ca.pem');"
        "s = c.wrap_socket(socket.create_connection(('10.0.2.15', 8006)), server_hostname='10.0.2.15'); print(s.version())"
    )
    assert installed.bare.sh(f'/usr/lib/appliance/bin/python3.11 -I -S -B -c "{script}"').startswith("TLSv1.")


def test_the_process_is_watched_by_systemd(installed: Life) -> None:
    bare = installed.bare
    shown = bare.sh("systemctl show appliance -p WatchdogUSec -p WatchdogTimestampMonotonic -p StatusText -p NRestarts")
    values = dict(line.split("=", 1) for line in shown.splitlines())
    assert values["WatchdogUSec"] == "3min"
    assert int(values["WatchdogTimestampMonotonic"]) > 0, "it has not been heard"
    assert values["StatusText"].startswith("Serving https://")
    assert values["NRestarts"] == "0"


# --- used -------------------------------------------------------------------------------------------------------------


def test_a_container_runs_what_it_is_told(used: Life) -> None:
    api = used.bare.api()
    with used.bare.terminal(api, f"lxc/{CT}") as console:
        console.type("echo $((6 * 7))-from-$(hostname)\n")
        console.wait_for("42-from-ct", timeout_s=60)


@pytest.mark.parametrize("vmid", [NATIVE, QEMU])
def test_a_machine_boots_debians_kernel_with_kvm_and_runs_what_it_is_told(used: Life, vmid: int) -> None:
    bare = used.bare
    api = bare.api()
    with bare.terminal(api, f"qemu/{vmid}") as console:
        console.wait_for("@guest ready", timeout_s=240)
        assert guest_run(console, 1, "uname -s") == "Linux"
        guest_run(console, 2, "echo kept >/tmp/mark; while :; do sleep 1; date +%s >/tmp/now; done >/dev/null 2>&1 &")
    status = bare.state(api, f"qemu/{vmid}")
    assert (status["pid"] == bare.main_pid()) == (vmid == NATIVE), (
        "only the native one lives in the appliance's process"
    )


def test_a_machine_in_qemu_uses_kvm_too(used: Life) -> None:
    (line,) = used.bare.sh("pgrep -a -f '[q]emu-system-x86_64'").splitlines()
    assert re.search(r"accel[= ]kvm|-enable-kvm|kvm", line)


def test_guests_have_groups_of_their_own_with_their_limits(used: Life) -> None:
    bare, group = used.bare, "/sys/fs/cgroup/appliance"
    bare.sh("systemctl daemon-reload")  # systemd arranges controllers anew: it must leave ours alone
    assert bare.sh(f"cat {group}/ct-{CT}/memory.max") == str(MEMORY_MIB << 20)
    assert int(bare.sh(f"cat {group}/ct-{CT}/pids.max")) > 0
    assert bare.sh(f"cat {group}/ct-{CT}/cpu.max").split()[0] == bare.sh(f"cat {group}/ct-{CT}/cpu.max").split()[1]
    quota, period = map(int, bare.sh(f"cat {group}/vm-{QEMU}/cpu.max").split())
    assert quota * 2 == period
    members = bare.sh(f"cat $(find {group} -name cgroup.procs) | sort -n").split()
    assert str(bare.main_pid()) not in members


def test_a_container_that_takes_too_much_memory_is_stopped_and_nobody_else(used: Life) -> None:
    bare = used.bare
    api = bare.api()
    events = f"/sys/fs/cgroup/appliance/ct-{CT}/memory.events"
    before = bare.sh(f"grep ^oom_kill {events}").split()[1]
    with bare.terminal(api, f"lxc/{CT}") as console:
        console.type("tail /dev/zero; echo ended-$((1 + 1))\n")
        console.wait_for("ended-2", timeout_s=120)
    assert int(bare.sh(f"grep '^oom_kill ' {events}").split()[1]) > int(before)
    assert int(bare.sh(f"cat /sys/fs/cgroup/appliance/ct-{CT}/memory.peak || echo 0")) <= MEMORY_MIB << 20
    assert bare.state(api, f"lxc/{CT}")["status"] == "running"
    assert bare.sh("systemctl is-active appliance") == "active"


def test_a_machine_over_its_share_of_processor_time_is_throttled(used: Life) -> None:
    bare = used.bare
    stat = f"/sys/fs/cgroup/appliance/vm-{QEMU}/cpu.stat"
    with bare.terminal(bare.api(), f"qemu/{QEMU}") as console:
        before = int(bare.sh(f"grep nr_throttled {stat}").split()[1])
        guest_run(console, 10, "timeout 5 sh -c 'while :; do :; done'", timeout_s=120)
        assert int(bare.sh(f"grep nr_throttled {stat}").split()[1]) > before


def test_apparmor_is_there_and_containers_run_beside_it(used: Life) -> None:
    bare = used.bare
    assert bare.sh("cat /sys/module/apparmor/parameters/enabled") == "Y"
    assert "unconfined" in bare.sh(f"cat /proc/$(head -1 /sys/fs/cgroup/appliance/ct-{CT}/cgroup.procs)/attr/current")
    assert "apt install apparmor" in bare.sh("appliance doctor"), "this host has no tool to load profiles with"


def test_the_doctor_finds_nothing_broken_and_its_bundle_holds_no_secret(used: Life, tmp_path: Path) -> None:
    bare = used.bare
    api = bare.api()
    used.token = api.access.users(ADMIN).token(TOKEN_NAME).post(privsep=0)["value"]
    bare.node(api).qemu(QEMU).config.put(cipassword="cloud-Init-secret-1", description="note-with-a-secret-2")
    bare.sh("appliance doctor --bundle /root/report.tar.gz >/root/doctor.txt")
    in_loop(bare.host.get("/root/report.tar.gz", tmp_path))
    with tarfile.open(tmp_path / "report.tar.gz") as archive:
        parts = {member.name: archive.extractfile(member) for member in archive}
        text = {name: file.read().decode() for name, file in parts.items() if file is not None}
    config = json.loads(text[f"appliance-report/api/nodes-localhost-qemu-{QEMU}-config.json"])
    assert config["name"] == "qemu"
    assert "listens on https" in text["appliance-report/host/journal.txt"]
    everything = "\n".join(text.values())
    for secret in (used.token, NEW_PASSWORD, "cloud-Init-secret-1", "note-with-a-secret-2", "PRIVATE KEY-----\nM"):
        assert secret not in everything
    assert bare.sh("stat -c %a /root/report.tar.gz") == "600"


def test_the_journal_tells_of_the_guests(used: Life) -> None:
    journal = used.bare.journal()
    used.seen["journal"] = journal
    for name in (f"vm {NATIVE}", f"vm {QEMU}", f"ct {CT}"):
        assert re.search(rf"{name}: .*running", journal), journal


# --- upgraded ---------------------------------------------------------------------------------------------------------


def test_an_upgrade_is_a_new_process_with_the_old_state(upgraded: Life) -> None:
    bare = upgraded.bare
    assert bare.main_pid() != upgraded.seen["pid"]
    assert bare.sh("appliance --version") == f"appliance {upgraded.later.version}"
    api = bare.api()  # with the password that was set before, and the same certificate
    assert {f"{row['type']}/{row['vmid']}" for row in api.cluster.resources.get(type="vm")} == GUESTS
    assert [row["tokenid"] for row in api.access.users(ADMIN).token.get()] == [TOKEN_NAME]
    assert "--log-format plain" in bare.sh("cat /etc/default/appliance"), "a changed conffile is kept"
    assert bare.sh("systemctl --failed --no-legend --plain") == ""


def test_machines_in_qemu_and_containers_do_not_notice_an_upgrade(upgraded: Life) -> None:
    bare = upgraded.bare
    api = bare.api()
    now = bare.processes("[q]emu-system-x86_64"), bare.processes("[c]onmon"), ct_init(bare)
    assert now == upgraded.seen["outside"]
    assert len(now[0]) == 1
    for path in (f"qemu/{QEMU}", f"lxc/{CT}"):
        assert bare.state(api, path)["uptime"] > upgraded.seen["uptimes"][path]
    with bare.terminal(api, f"qemu/{QEMU}") as console:
        assert guest_run(console, 20, "cat /tmp/mark") == "kept"


def test_native_machines_are_saved_over_an_upgrade_and_go_on(upgraded: Life) -> None:
    bare = upgraded.bare
    api = bare.api()
    assert bare.state(api, f"qemu/{NATIVE}")["status"] == "running"
    with bare.terminal(api, f"qemu/{NATIVE}") as console:
        assert guest_run(console, 21, "cat /tmp/mark") == "kept"
        first = guest_run(console, 22, "cat /tmp/now")
        time.sleep(4)
        assert guest_run(console, 23, "cat /tmp/now") != first, "its processes do not go on"


def test_an_older_version_is_not_put_over_a_newer_data_directory(upgraded: Life) -> None:
    bare = upgraded.bare
    pid, kept = bare.main_pid(), bare.sh(f"cat {DATA_DIR}/format")
    bare.sh(f"printf '99\\nappliance 9.9\\n' >{DATA_DIR}/format")
    try:
        said = bare.sh(f"dpkg -i --force-downgrade /root/packages/{upgraded.package.path.name} 2>&1 || true")
        assert "format '99', written by appliance 9.9" in said
        assert bare.sh("dpkg-query -W -f '${Status} ${Version}' appliance") == (
            f"install ok installed {upgraded.later.version}"
        )
        assert bare.main_pid() == pid, "the newer one goes on running"
        assert bare.status("appliance serve --listen 127.0.0.1:9 --data-dir /var/lib/appliance") == 1  # in use
        bare.sh("mkdir -p /root/newer && cp /var/lib/appliance/format /root/newer/")
        refused = bare.sh("appliance serve --listen 127.0.0.1:9 --data-dir /root/newer 2>&1 || echo status $?")
        assert "written by appliance 9.9 (format 99)" in refused
        assert "status 1" in refused
        assert bare.sh("ls -A /root/newer | sort") == "format\nlock"
    finally:
        bare.sh(f"printf '%s\\n' '{kept}' >{DATA_DIR}/format; rm -rf /root/newer")


def test_a_process_whose_loop_hangs_is_replaced_and_guests_outside_of_it_go_on(upgraded: Life) -> None:
    bare = upgraded.bare
    drop_in = "/run/systemd/system/appliance.service.d"
    bare.sh(f"mkdir -p {drop_in}; printf '[Service]\\nWatchdogSec=20s\\n' >{drop_in}/lab.conf; systemctl daemon-reload")
    bare.sh("systemctl restart appliance", timeout_s=200)
    bare.wait_until_serving()
    outside, pid = (bare.processes("[q]emu-system-x86_64"), ct_init(bare)), bare.main_pid()
    bare.sh(f"kill -STOP {pid}")
    deadline = time.monotonic() + 150
    while bare.sh("systemctl show -p NRestarts --value appliance") == "0":
        assert time.monotonic() < deadline, bare.sh("systemctl status appliance || true")
        time.sleep(4)
    bare.sh(f"rm -r {drop_in}; systemctl daemon-reload")
    bare.wait_until_serving()
    assert bare.main_pid() != pid
    assert (bare.processes("[q]emu-system-x86_64"), ct_init(bare)) == outside
    assert bare.state(bare.api(), f"qemu/{QEMU}")["status"] == "running"
    assert "Watchdog timeout" in bare.sh("journalctl -u appliance --no-pager -o cat --grep 'Watchdog timeout'")


# --- switched off and on ----------------------------------------------------------------------------------------------


def test_a_shutdown_of_the_host_stops_guests_in_order_and_its_start_brings_back_those_with_onboot(
    rebooted: Life,
) -> None:
    bare = rebooted.bare
    api = bare.api()
    wait_for_states(bare, api, {f"qemu/{NATIVE}": "running", f"lxc/{CT}": "running", f"qemu/{QEMU}": "stopped"})
    for label in (f"vm {NATIVE}", f"vm {QEMU}", f"ct {CT}"):
        assert f"shutting {label} down" in rebooted.seen["last_boot"], rebooted.seen["last_boot"]
    stopped = bare.node(api).tasks.get(typefilter="stopall", source="all")
    assert [row["status"] for row in stopped] == ["OK"]
    assert bare.sh("systemctl --failed --no-legend --plain") == ""


def test_without_apparmor_containers_run_and_the_doctor_says_what_that_costs(rebooted: Life) -> None:
    bare = rebooted.bare
    assert bare.sh("cat /sys/module/apparmor/parameters/enabled 2>/dev/null || echo N") == "N"
    assert "lacks   AppArmor" in bare.sh("appliance doctor")
    with bare.terminal(bare.api(), f"lxc/{CT}") as console:
        console.type("echo alive-$((2 * 4))\n")
        console.wait_for("alive-8", timeout_s=60)


# --- a power cut ------------------------------------------------------------------------------------------------------


def test_every_acknowledged_write_is_there_after_a_power_cut(cut: Life) -> None:
    bare = cut.bare
    api = bare.api()
    for path, (acknowledged, sent) in cut.seen["writers"].items():
        assert acknowledged, f"{path}: nothing was written before the cut"
        assert bare.node(api)(path).config.get()["description"].strip() in (acknowledged, sent), path


def test_the_store_and_the_audit_log_are_whole_after_a_power_cut(cut: Life) -> None:
    bare = cut.bare
    ask = f"sqlite3.connect('file:{DATA_DIR}/state.db?mode=ro', uri=True).execute('PRAGMA integrity_check').fetchone()"
    script = f"import sqlite3; print(*{ask})"
    assert bare.sh(f'/usr/lib/appliance/bin/python3.11 -I -S -B -c "{script}"') == "ok"
    assert json.loads(bare.sh("appliance audit verify --output json"))["ok"] in (True, 1)
    assert bare.sh(f"find {DATA_DIR} -name '.tmp-*'") == ""


def test_guests_with_onboot_are_back_after_a_power_cut(cut: Life) -> None:
    bare = cut.bare
    wait_for_states(bare, bare.api(), {f"qemu/{NATIVE}": "running", f"lxc/{CT}": "running", f"qemu/{QEMU}": "stopped"})


# --- removed ----------------------------------------------------------------------------------------------------------


def test_a_removal_leaves_guests_and_data_alone_and_takes_the_program_away(removed: Life) -> None:
    bare = removed.bare
    assert (bare.processes("[q]emu-system-x86_64"), ct_init(bare)) == removed.seen["outside"]
    assert bare.status("command -v appliance") != 0
    assert bare.sh("ls /usr/lib/appliance /usr/lib/systemd/system/appliance* 2>/dev/null || true") == ""
    assert bare.status("systemctl is-active appliance") != 0
    assert bare.sh(f"ls {DATA_DIR}/state.db /etc/default/appliance").split()


def test_a_purge_does_not_take_disks_from_under_guests_that_run(removed: Life) -> None:
    bare = removed.bare
    said = bare.apt("purge appliance")
    assert "guests still run" in said
    assert bare.status(f"test -e {DATA_DIR}/state.db") == 0
    assert (bare.processes("[q]emu-system-x86_64"), ct_init(bare)) == removed.seen["outside"]


def test_an_installation_after_a_removal_finds_the_guests_that_ran_on(purged: Life) -> None:
    assert purged.seen["found_again"] == {
        f"qemu/{QEMU}": "running",
        f"lxc/{CT}": "running",
        f"qemu/{NATIVE}": "stopped",
    }
    assert purged.seen["still"] == purged.seen["outside"]


def test_a_purge_leaves_nothing_of_its_own(purged: Life) -> None:
    bare = purged.bare
    bare.apt("purge --auto-remove conmon crun dnsmasq-base nftables")
    left = set(bare.sh(LIST_FILES).splitlines()) - purged.files
    assert sorted(path for path in left if not path.startswith(NOT_OURS)) == []
    of_others = {"dnsmasq"}  # of dnsmasq-base, which keeps it
    users = {line.split(":")[0] for line in bare.sh("cat /etc/passwd").splitlines()}
    assert users - {line.split(":")[0] for line in purged.users.splitlines()} <= of_others
    assert bare.sh("ls /sys/class/net") == purged.links
    assert bare.sh("ls -d /sys/fs/cgroup/appliance* /run/appliance* 2>/dev/null || true") == ""
    assert bare.sh("systemctl list-unit-files 'appliance*' --no-legend || true") == ""
    assert bare.processes("[q]emu-system") == bare.processes("[c]onmon") == bare.processes("[d]nsmasq") == []
    assert bare.sh("cat /proc/sys/net/ipv4/ip_forward") == "0"
