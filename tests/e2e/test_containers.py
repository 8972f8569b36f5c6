"""A system container through the public API, as clients and the command line use it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from proxmoxer import ResourceException

from tests.e2e.busybox import write_template
from tests.harness import ROOT, Appliance, TaskFailed

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]

CT = 731


@pytest.fixture(scope="module")
def api(appliance: Appliance) -> Any:
    return appliance.api()


@pytest.fixture(scope="module")
def template(appliance: Appliance, api: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """With ifupdown, as busybox has it."""
    path = tmp_path_factory.mktemp("template") / "busybox_2_amd64.tar.gz"
    return appliance.upload(api, write_template(path, sbin=("ifup", "ifdown", "run-parts")), "vztmpl", path.name)


@pytest.fixture(scope="module")
def container(appliance: Appliance, api: Any, template: str) -> Iterator[Any]:
    """A running container with a limit of everything."""
    node = appliance.node(api)
    net0 = f"name=eth0,bridge={appliance.bridge},ip=manual"
    appliance.finish(
        api, node.lxc.post(vmid=CT, hostname="inside", ostemplate=template, rootfs="local:0.1", memory=64, net0=net0)
    )
    appliance.finish(api, node.lxc(CT).status.start.post())
    yield node.lxc(CT)
    appliance.finish(api, node.lxc(CT).status.stop.post())
    appliance.finish(api, node.lxc(CT).delete())


def appliance_ct(
    appliance: Appliance, *words: object, stdin: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """`appliance ct …` in a process of its own."""
    argv = [sys.executable, "-m", "appliance", "ct", *map(str, words)]
    known = environment(appliance) | variables
    return subprocess.run(argv, cwd=ROOT, env=known, input=stdin, capture_output=True, timeout=30, check=False)


def environment(appliance: Appliance) -> dict[str, str]:
    return {**os.environ, "APPLIANCE_SOCKET": str(appliance.run_dir / "api.sock")}


# --- inside -----------------------------------------------------------------------------------------------------------


def test_a_programs_streams_and_status_are_those_of_the_command(appliance: Appliance, container: Any) -> None:
    script = "cat; echo to the log >&2; exit 9"
    done = appliance_ct(appliance, "exec", CT, "--env", "A=1", "--", "sh", "-c", script, stdin=b"\x00\xff binary\n")
    assert (done.returncode, done.stdout, done.stderr) == (9, b"\x00\xff binary\n", b"to the log\n")
    missing = appliance_ct(appliance, "exec", CT, "--", "/bin/absent")
    assert missing.returncode == 1
    assert b"ct 731: exec:" in missing.stderr
    late = appliance_ct(appliance, "exec", CT, "--timeout", 1, "--", "sleep", "100")
    assert (late.returncode, b"longer than 1 s" in late.stderr) == (1, True)


def test_files_are_pushed_pulled_and_edited(appliance: Appliance, container: Any, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "data").write_bytes(data)
    pushed = appliance_ct(appliance, "push", CT, tmp_path / "data", "/srv/new/data", "--parents", "--mode", "600")
    assert pushed.returncode == 0, pushed.stderr
    assert appliance_ct(appliance, "pull", CT, "/srv/new/data", tmp_path / "back").returncode == 0
    assert (tmp_path / "back").read_bytes() == data
    assert container.file.stat.get(path="/srv/new/data")["mode"] == 0o600
    assert [entry["name"] for entry in container.file.stat.get(path="/srv/new")["entries"]] == ["data"]
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho edited >>"$1"\n')
    editor.chmod(0o755)
    appliance_ct(appliance, "push", CT, "-", "/etc/motd", stdin=b"hello\n")
    assert appliance_ct(appliance, "edit", CT, "/etc/motd", EDITOR=str(editor)).returncode == 0
    assert appliance_ct(appliance, "pull", CT, "/etc/motd", "-").stdout == b"hello\nedited\n"
    assert appliance_ct(appliance, "pull", CT, "/absent", "-").returncode == 4


def test_a_shell_is_attached_beside_the_login_console(appliance: Appliance, api: Any, container: Any) -> None:
    ticket = container.termproxy.post(cmd="shell")
    assert ticket["port"] == 5912
    with subprocess.Popen(
        [sys.executable, "-m", "appliance", "ct", "enter", str(CT)], cwd=ROOT, env=environment(appliance),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as entered:  # fmt: skip
        assert entered.stdin is not None
        assert entered.stdout is not None
        entered.stdin.write(b"echo $((6*7))-shell; exit\n")
        entered.stdin.flush()
        assert b"42-shell" in entered.stdout.read()  # to its end, which the shell's is
    with appliance.terminal(api, f"lxc/{CT}") as console:
        console.type("echo $((6*7))-login\n")
        console.wait_for("42-login", timeout_s=20)


def test_a_container_whose_console_is_a_shell_needs_no_login(appliance: Appliance, api: Any, container: Any) -> None:
    container.config.put(cmode="shell")
    assert container.termproxy.post()["port"] == 5912
    with appliance.terminal(api, f"lxc/{CT}") as console:
        console.type("echo $((6*7))-at-once\n")
        console.wait_for("42-at-once", timeout_s=20)
    container.config.put(delete="cmode")
    assert container.termproxy.post()["port"] == 5910


def test_who_may_only_look_at_the_console_does_not_get_in(appliance: Appliance, api: Any, container: Any) -> None:
    api.access.users.post(userid="op@pve", password="correct horse battery")
    api.access.acl.put(path=f"/vms/{CT}", users="op@pve", roles="PVEVMUser")
    operator = appliance.log_in(user="op@pve", password="correct horse battery")
    mine = appliance.node(operator).lxc(CT)
    assert mine.termproxy.post()["port"] == 5910
    for resource, form in ((mine.termproxy, {"cmd": "shell"}), (mine.exec, {"command": "id"})):
        with pytest.raises(ResourceException) as caught:
            resource.post(**form)
        assert caught.value.status_code == 403
    api.access.acl.put(path=f"/vms/{CT}", users="op@pve", roles="PVEAuditor")
    api.access.acl.put(path=f"/vms/{CT}", users="op@pve", roles="PVEVMUser", delete=1)
    with pytest.raises(ResourceException) as caught:
        mine.file.stat.get(path="/etc")
    assert caught.value.status_code == 403


# --- while it runs ----------------------------------------------------------------------------------------------------


def test_limits_change_at_once_and_the_rest_is_pending(appliance: Appliance, container: Any) -> None:
    container.config.put(memory=96, cpulimit=0.5, hostname="renamed")
    group = next(Path("/sys/fs/cgroup").glob(f"**/ct-{CT}/memory.limit_in_bytes"), None) or next(
        Path("/sys/fs/cgroup").glob(f"**/ct-{CT}/memory.max")
    )
    assert group.read_text().strip() == str(96 << 20)
    waiting = {row["key"]: row for row in container.pending.get() if "pending" in row or "delete" in row}
    assert list(waiting) == ["hostname"]
    assert (waiting["hostname"]["value"], waiting["hostname"]["pending"]) == ("inside", "renamed")
    assert container.config.get(current=1)["hostname"] == "inside"
    container.config.put(revert="hostname")
    assert container.config.get()["hostname"] == "inside"
    container.config.put(memory=64)


def test_an_interface_comes_changes_and_goes_while_it_runs(appliance: Appliance, container: Any) -> None:
    net1 = f"name=eth1,bridge={appliance.bridge},hwaddr=BC:24:11:AA:00:31"
    container.config.put(net1=f"{net1},ip=10.99.0.2/24,rate=5,firewall=1")
    assert interfaces(container)["eth1"].get("inet") == "10.99.0.2/24", appliance.log_tail()
    container.config.put(net1=f"{net1},ip=10.99.0.3/24,rate=5,firewall=1")
    assert interfaces(container)["eth1"]["inet"] == "10.99.0.3/24"
    container.config.put(net1=f"{net1},ip=10.99.0.3/24,rate=5,firewall=1,link_down=1")
    assert b"NO-CARRIER" in appliance_ct(appliance, "exec", CT, "--", "ip", "link", "show", "eth1").stdout
    container.config.put(delete="net1")
    assert "eth1" not in interfaces(container)
    assert [row for row in container.pending.get() if "pending" in row or "delete" in row] == []


def test_an_interface_that_the_kernel_cannot_make_stays_pending_and_names_why(
    appliance: Appliance, container: Any
) -> None:
    net2 = f"name=eth2,bridge={appliance.bridge},hwaddr=BC:24:11:AA:00:32,tag=7"
    container.config.put(net2=net2)
    waiting = [row["key"] for row in container.pending.get() if "pending" in row]
    if waiting:  # this kernel has no VLAN filtering
        assert waiting == ["net2"]
        assert "VLAN tag 7" in appliance.log_tail()
    else:
        assert "eth2" in interfaces(container)
    container.config.put(delete="net2")


def interfaces(container: Any) -> dict[str, Any]:
    return {row["name"]: row for row in container.interfaces.get()}


def test_a_crash_and_a_lack_of_memory_are_told_and_it_starts_again(
    appliance: Appliance, api: Any, container: Any
) -> None:
    container.config.put(restart="on-failure")
    appliance_ct(appliance, "exec", CT, "--", "sh", "-c", "tail /dev/zero")
    wait_for(lambda: container.status.current.get().get("oomkills"), "the kill is counted")
    before = container.status.current.get()["pid"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: container.status.current.get().get("pid") not in (None, before), "it runs again")
    assert "signal 9" in container.status.current.get()["lastcrash"]
    told = {row["type"]: row["status"] for row in appliance.node(api).tasks.get(vmid=CT, errors=1)}
    assert "out of memory" in told["vzoom"]
    assert "has ended: init was killed by signal 9" in told["vzend"]
    container.config.put(delete="restart")


def test_a_hook_script_is_a_snippet_that_the_hosts_root_has_made_executable(
    appliance: Appliance, api: Any, container: Any, tmp_path: Path
) -> None:
    called = tmp_path / "called"
    (tmp_path / "hook.sh").write_text(f"#!/bin/sh\necho $2 >>{called}\necho hello from $2\n")
    volume = appliance.upload(api, tmp_path / "hook.sh", "snippets", "hook.sh")
    container.config.put(hookscript=volume)
    appliance.finish(api, container.status.stop.post())
    with pytest.raises(TaskFailed, match="not executable"):
        appliance.finish(api, container.status.start.post())
    next(appliance.data_dir.rglob("snippets/hook.sh")).chmod(0o755)
    upid = container.status.start.post()
    appliance.finish(api, upid)
    said = [row["t"] for row in appliance.node(api).tasks(upid).log.get()]
    assert "pre-start: hello from pre-start" in said
    appliance.finish(api, container.status.stop.post())
    wait_for(lambda: "post-stop" in called.read_text(), "the last phase")
    assert called.read_text().split() == ["pre-start", "post-start", "pre-stop", "post-stop"]
    container.config.put(delete="hookscript")
    appliance.finish(api, container.status.start.post())


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
