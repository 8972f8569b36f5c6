"""Programs and files inside a guest, in real Chromium over guests whose interior is a fake."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from appliance.events import GuestStateChanged
from appliance.model.guest import GuestId, GuestKind, GuestState
from tests.browser.fake_site import FakeSite
from tests.fakes.inside import InsideCt, InsideVm, Interior
from tests.fakes.office import Office

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

Place = tuple[FakeSite, Office]
HOSTILE = "<b>bold</b> \x1b[31mred\x1b[0m \u202etxt.exe\u202c\r\n"
HOSTS = b"127.0.0.1 localhost\n127.0.1.1 dns\n"
SPLIT = "(line) => import('/static/js/shell_words.js').then((module) => module.split(line))"


def furnish(office: Office) -> tuple[InsideVm, InsideCt]:
    """The guests 100 and 101 with something in them."""
    interior = Interior(
        contents={
            "/etc/hosts": HOSTS, "/etc/hostname": b"dns\n", "/etc/nginx/nginx.conf": b"user www-data;\r\nworkers 2;\r\n",
            "/srv/data.bin": b"\x00\xff" * 40, "/srv/mixed": b"one\r\ntwo\n", "/srv/<b>odd\u202ename": b"x",
            "/srv/large": b"x" * (2 << 20), "/run/resolv.conf": b"nameserver 10.64.0.1\n",
        },
        links={"/etc/resolv.conf": "/run/resolv.conf"},
        programs={
            "uname -a": ([(1, b"Linux dns 6.1.0 x86_64 GNU/Linux\n")], 0),
            "show 'it'": ([(1, HOSTILE.encode()), (2, b"warning: nothing\n"), (1, b"more\n")], 3),
            "/bin/sh -c echo $HOME | wc -c": ([(1, b"6\n")], 0),
            "loud": ([(1, b"first line\n"), *[(1, b"y" * 65_536)] * 9, (1, b"the end\n")], 0),
        },
    )  # fmt: skip
    vm, ct = InsideVm(100, interior), InsideCt(101, interior)
    vm.answers = {
        "get-osinfo": [{"pretty-name": "Debian GNU/Linux 12 (bookworm)", "kernel-release": "6.1.0-32-amd64"}],
        "get-host-name": [{"host-name": "shop"}], "get-timezone": [{"zone": "Europe/Berlin"}],
        "get-users": [[{"user": "ada"}]], "info": [{"version": "8.2.1"}],
    }  # fmt: skip
    office.guests.guests[100].running, office.guests.guests[101].running = vm, ct
    return vm, ct


async def run(page: Page, line: str) -> None:
    await page.fill("#f-line", line)
    await page.keyboard.press("Enter")


async def open_path(page: Page, path: str) -> None:
    await page.fill("#f-path", path)
    await page.keyboard.press("Enter")


@pytest.mark.parametrize(("size", "scheme"), [("phone", "dark"), ("tablet", "light"), ("wide", "light")])
async def test_every_state_of_the_tab_fits_and_is_accessible(place: Place, size: str, scheme: str) -> None:
    site, office = place
    vm, _ = furnish(office)
    async with site.page(size, "dark" if scheme == "dark" else "light", quiet=True) as page:
        await site.visit(page, "/guests/101/inside?path=/etc")
        await expect(page.locator("[data-directory] tbody tr")).to_have_count(4)
        await run(page, "show \"'it'\"")
        await expect(page.locator("[data-run-state]")).to_have_text("Exit code 3")
        await site.look(page, f"inside-ct-{size}")
        await page.click("[data-program] summary >> nth=0")
        await page.click("[data-program] .equivalent summary")
        await site.look(page, f"inside-ct-program-{size}")
        await page.click("[data-program] .equivalent summary")
        await open_path(page, "/etc/hosts")
        await expect(page.locator("#f-text")).to_have_value(HOSTS.decode())
        await page.locator("#save").scroll_into_view_if_needed()
        await site.look(page, f"inside-ct-file-{size}")
        for path in ("/srv/data.bin", "/etc/resolv.conf", "/srv/mixed", "/srv/large", "/etc/new"):
            await open_path(page, path)
            await expect(page.locator("[data-file-name]")).to_have_text(path)
            await site.look(page, f"inside-ct-file{path.replace('/', '-')}-{size}")
        await page.click("#upload")
        await page.set_input_files("#f-file", {"name": "hosts", "mimeType": "text/plain", "buffer": b"new\n"})
        await page.click("#confirm")
        await expect(page.locator("[data-replaces]")).to_contain_text("/etc/hosts (34 B, 0644")
        await site.look(page, f"inside-upload-{size}")
        await site.visit(page, "/guests/100/inside")
        await expect(page.locator("#guest-agent")).to_contain_text("Debian GNU/Linux 12")
        await site.look(page, f"inside-vm-{size}")
        await page.click("[data-agent=freeze]")
        await page.wait_for_selector("#dialog[open] #dialog-title")
        await site.look(page, f"inside-freeze-{size}")
        await page.click("#confirm")
        await expect(page.locator("#guest-agent .notice")).to_contain_text("Its file systems are frozen")
        await page.evaluate("window.scrollTo(0, 0)")
        await site.look(page, f"inside-vm-frozen-{size}")
        await page.click("[data-agent=thaw]")
        await page.click("#confirm")
        await expect(page.locator("#guest-agent")).to_contain_text("File systems thawed")
        vm.silent = True
        await site.visit(page, "/guests/100/inside")
        await expect(page.locator("[data-reach=silent]")).to_be_visible()
        await site.look(page, f"inside-vm-silent-{size}")
        office.guests.guests[100].config["agent"] = "0"
        for guest_id, reach in ((100, "off"), (103, "stopped")):
            await site.visit(page, f"/guests/{guest_id}/inside")
            await expect(page.locator(f"[data-reach={reach}]")).to_be_visible()
            await site.look(page, f"inside-{reach}-{size}")


async def test_what_a_program_says_is_text_told_apart_by_stream_with_its_exit_code(place: Place) -> None:
    site, office = place
    _, ct = furnish(office)
    async with site.page(quiet=True) as page:
        await site.visit(page, "/guests/101/inside?command=uname+-a")
        await expect(page.locator("#f-line")).to_have_value("uname -a")
        assert ct.asked == []  # a link runs nothing
        await page.click("#run")
        await expect(page.locator("[data-run-output]")).to_have_text("Linux dns 6.1.0 x86_64 GNU/Linux\n")
        await run(page, "show \"'it'\"")
        blocks = page.locator("[data-run-output] [data-stream]")
        await expect(blocks.nth(0)).to_have_text("<b>bold</b> ^[[31mred^[[0m ‹U+202E›txt.exe‹U+202C›\n")
        await expect(blocks.nth(1)).to_have_attribute("data-stream", "stderr")
        await expect(blocks.nth(2)).to_have_text("more\n")
        await expect(page.locator("[data-run-state]")).to_have_text("Exit code 3")
        await run(page, "loud")
        await expect(page.locator("[data-cut]")).to_be_visible()
        await expect(page.locator("[data-run-output]")).to_contain_text("the end")
        await expect(page.locator("[data-run-output]")).not_to_contain_text("first line")
        await run(page, "absent")
        await expect(page.locator("[data-run-output]")).to_contain_text("absent: No such file or directory")


async def test_a_shell_is_used_only_when_it_is_asked_for(place: Place) -> None:
    site, office = place
    _, ct = furnish(office)
    async with site.page() as page:
        await site.visit(page, "/guests/101/inside")
        await page.fill("#f-line", "echo $HOME | wc -c")
        await expect(page.locator("#h-line")).to_contain_text("$ is passed on as it is")
        await page.check("#f-shell")
        await expect(page.locator("#h-line")).to_contain_text("nothing is expanded")
        await page.click("text=Input, time limit")
        await page.fill("#f-env", "A=1\nB=2")
        await page.fill("#f-cwd", "/srv")
        await page.click("[data-program] .equivalent summary")
        await expect(page.locator("[data-program] [data-equivalent=cli]")).to_have_text(
            "appliance ct exec 101 --timeout 60 --cwd /srv --env A=1 --env B=2 -- /bin/sh -c 'echo $HOME | wc -c'"
        )
        await page.click("#run")
        await expect(page.locator("[data-run-output]")).to_have_text("6\n")
        (request,) = ct.asked
        assert (request.argv[2], request.cwd, request.environment) == (
            "echo $HOME | wc -c",
            "/srv",
            {"A": "1", "B": "2"},
        )
        await page.uncheck("#f-shell")
        await run(page, "echo 'not closed")
        await expect(page.locator("#e-line")).to_have_text("A quotation mark is not closed.")
        assert len(ct.asked) == 1


@pytest.mark.parametrize(
    ("line", "words", "operator"),
    [
        ("  ls   -l ", ["ls", "-l"], ""),
        ("a 'b c' \"d \\\" $e\" f\\ g '' x'y'\"z\"", ["a", "b c", 'd " $e', "f g", "", "xyz"], ""),
        ("echo 'a|b' > /x", ["echo", "a|b", ">", "/x"], ">"),
        ('printf "\\n"', ["printf", "\\n"], ""),
        ("", [], ""),
    ],
)
async def test_a_line_is_split_as_a_shell_does(place: Place, line: str, words: list[str], operator: str) -> None:
    site, _ = place
    async with site.page() as page:
        await page.goto("/guests/101/inside")
        assert await page.evaluate(SPLIT, line) == {"words": words, "operator": operator}


async def test_a_program_that_goes_on_is_stopped_in_a_container_and_left_to_a_vm(place: Place) -> None:
    site, office = place
    _, ct = furnish(office)
    async with site.page() as page:
        await site.visit(page, "/guests/101/inside")
        await run(page, "sleep 1000")
        await expect(page.locator("[data-run-state]")).to_have_text("Running…")
        await page.click("[data-run-stop]")
        await expect(page.locator("[data-run-state]")).to_have_text("Stopped")
        await expect(page.locator("#run")).to_have_attribute("aria-busy", "false")
        for _ in range(100):
            if ct.ended:
                break
            await page.wait_for_timeout(100)
        assert [request.argv for request in ct.ended] == [("sleep", "1000")]

        await site.visit(page, "/guests/100/inside")
        await run(page, "sleep 1000")
        await page.click("[data-run-stop]")
        await expect(page.locator("[data-run-output]")).to_have_text("It still runs in the guest, as process 1.")
        await run(page, "uname -a")
        await expect(page.locator("[data-run-output]")).to_have_text("Linux dns 6.1.0 x86_64 GNU/Linux\n")


async def test_a_file_is_found_edited_and_never_saved_over_what_others_wrote(place: Place) -> None:
    site, office = place
    _, ct = furnish(office)
    contents = ct.interior.contents
    async with site.page(quiet=True) as page:
        await site.visit(page, "/guests/101/inside?path=/")
        await page.click("[data-directory] >> text=etc")
        await page.click("[data-directory] >> text=hosts")
        await expect(page.locator("[data-file-facts]")).to_contain_text("34 B · 0644 0:0")
        assert page.url.endswith("/guests/101/inside?path=%2Fetc%2Fhosts")
        await page.fill("#f-text", "mine\n")
        await expect(page.locator("[data-file-state]")).to_have_text("Not saved yet")
        await page.keyboard.press("Control+s")
        await expect(page.locator("[data-file-state]")).to_have_text("Saved")
        assert contents["/etc/hosts"] == b"mine\n"
        contents["/etc/hosts"] = b"theirs\n"
        await page.fill("#f-text", "mine again\n")
        await page.click("#save")
        problem = page.locator("[data-file] [data-form-error]")
        await expect(problem).to_contain_text("Somebody else has changed this file meanwhile")
        assert contents["/etc/hosts"] == b"theirs\n"
        await open_path(page, "/etc/hostname")  # what was typed is not given up by the way
        await expect(page.locator("[data-open-file] [data-form-error]")).to_contain_text("/etc/hosts is not saved")
        await problem.locator("text=Save mine over it").click()
        await expect(page.locator("[data-file-state]")).to_have_text("Saved")
        assert contents["/etc/hosts"] == b"mine again\n"
        await page.go_back()
        await expect(page.locator("[data-directory]")).to_be_visible()


async def test_saving_keeps_line_ends_and_links_and_makes_new_files(place: Place) -> None:
    site, office = place
    _, ct = furnish(office)
    async with site.page(quiet=True) as page:
        await site.visit(page, "/guests/101/inside?path=/etc/nginx/nginx.conf")
        await page.fill("#f-text", "user www-data;\nworkers 4;\n")
        await page.click("#save")
        await expect(page.locator("[data-file-state]")).to_have_text("Saved")
        assert ct.interior.contents["/etc/nginx/nginx.conf"] == b"user www-data;\r\nworkers 4;\r\n"
        await open_path(page, "/srv/mixed")
        await expect(page.locator("[data-file-notes]")).to_contain_text("end in different ways")
        await expect(page.locator("#save")).to_be_hidden()
        await open_path(page, "/etc/resolv.conf")
        await expect(page.locator("#f-text")).not_to_be_editable()
        await page.click("[data-file-notes] a")
        await expect(page.locator("#f-text")).to_be_editable()
        await open_path(page, "/etc/motd")
        await expect(page.locator("[data-file-notes]")).to_contain_text("There is no such file yet")
        await page.fill("#f-text", "Hello.\n")
        ct.interior.contents["/etc/motd"] = b"theirs\n"  # somebody else makes it first
        await page.click("#save")
        await expect(page.locator("[data-file] [data-form-error]")).to_contain_text("there already")
        del ct.interior.contents["/etc/motd"]
        await page.click("#save")
        await expect(page.locator("[data-file-state]")).to_have_text("Saved")
        assert ct.interior.contents["/etc/motd"] == b"Hello.\n"


async def test_what_is_no_text_is_downloaded_byte_for_byte_from_both_kinds(place: Place) -> None:
    site, office = place
    _, ct = furnish(office)
    async with site.page() as page:
        for guest_id in (101, 100):
            for path in ("/srv/data.bin", "/srv/large"):
                await site.visit(page, f"/guests/{guest_id}/inside?path={path}")
                await expect(page.locator("#f-text")).to_be_hidden()
                async with page.expect_download() as waiting:
                    await page.click("[data-file-download]")
                download = await waiting.value
                assert download.suggested_filename == path.rpartition("/")[2]
                assert Path(await download.path()).read_bytes() == ct.interior.contents[path]


async def test_an_upload_says_what_it_replaces_before_it_does(place: Place) -> None:
    site, office = place
    _, ct = furnish(office)
    contents = ct.interior.contents
    async with site.page(quiet=True) as page:
        for guest_id, path in ((101, "/srv"), (100, "/srv/data.bin")):
            await site.visit(page, f"/guests/{guest_id}/inside?path={path}")
            await expect(page.locator("[data-directory], [data-file]").locator("visible=true").first).to_be_visible()
            await page.click("#upload")
            await page.set_input_files("#f-file", {"name": "up", "mimeType": "text/plain", "buffer": b"new\xff"})
            await expect(page.locator("#f-to")).to_have_value("/srv/up")
            await page.click("#confirm")
            await expect(page.locator("#dialog[open]")).to_have_count(0)
            assert contents.pop("/srv/up") == b"new\xff"
            await page.click("#upload")
            await page.set_input_files("#f-file", {"name": "data.bin", "mimeType": "text/plain", "buffer": b"new"})
            await page.click("#confirm")
            await expect(page.locator("[data-replaces]")).to_contain_text("/srv/data.bin")
            assert contents["/srv/data.bin"] == b"\x00\xff" * 40
            await expect(page.locator("#confirm")).to_have_text("Replace")
            await page.click("#confirm")
            await expect(page.locator("#dialog[open]")).to_have_count(0)
            assert contents["/srv/data.bin"] == b"new"
            contents["/srv/data.bin"] = b"\x00\xff" * 40


async def test_what_a_guest_agent_does_not_take_is_refused_with_the_limit(place: Place) -> None:
    site, office = place
    vm, _ = furnish(office)
    async with site.page(quiet=True) as page:
        await site.visit(page, "/guests/100/inside?path=/etc/hosts")
        await page.fill("#f-text", "x" * 61_441)
        await page.click("#save")
        await expect(page.locator("[data-file] [data-form-error]")).to_contain_text("at most 60.0 KiB")
        await page.fill("#f-text", "127.0.0.1 localhost\n")
        await page.click("[data-file] .equivalent summary")
        await expect(page.locator("[data-file] [data-equivalent=cli]")).to_have_text(
            "appliance vm push 100 FILE /etc/hosts"
        )
        await page.click("#save")
        await expect(page.locator("[data-file-state]")).to_have_text("Saved")
        assert vm.interior.contents["/etc/hosts"] == b"127.0.0.1 localhost\n"


async def test_the_forms_go_and_come_with_the_guest_and_keep_what_was_typed(place: Place) -> None:
    site, office = place
    furnish(office)
    guest = office.guests.guests[101]

    def becomes(state: GuestState) -> None:
        old, guest.state = guest.state, state
        office.guests.tell(GuestStateChanged(guest_id=GuestId(101), kind=GuestKind.LXC, old=old, new=state))

    async with site.page() as page:
        await site.visit(page, "/guests/101/inside")
        await page.fill("#f-line", "uname -a")
        becomes(GuestState.STOPPED)
        await expect(page.locator("[data-reach=stopped]")).to_be_visible()
        await expect(page.locator("#run")).to_be_hidden()
        becomes(GuestState.RUNNING)
        await expect(page.locator("#run")).to_be_visible()
        await expect(page.locator("#f-line")).to_have_value("uname -a")
        await page.click("#run")
        await expect(page.locator("[data-run-state]")).to_have_text("Exit code 0")
        becomes(GuestState.STOPPED)  # what it said stays to be read
        await expect(page.locator("[data-reach=stopped]")).to_be_visible()
        await expect(page.locator("[data-run-output]")).to_be_visible()
