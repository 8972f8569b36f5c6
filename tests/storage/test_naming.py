"""Names of volumes: PVE's layout, and nothing that leaves it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InvalidParameter
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, VolumeFormat
from appliance.storage import naming


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("100/vm-100-disk-0.qcow2", "images/100/vm-100-disk-0.qcow2"),
        ("101/subvol-101-disk-1.subvol", "images/101/subvol-101-disk-1.subvol"),
        ("iso/x.iso", "template/iso/x.iso"),
        ("vztmpl/y_12_amd64.tar.zst", "template/cache/y_12_amd64.tar.zst"),
        ("import/z.qcow2", "import/z.qcow2"),
        ("snippets/user.yaml", "snippets/user.yaml"),
    ],
)
def test_a_name_lies_where_pve_puts_it(name: str, path: str) -> None:
    assert str(naming.locate(name).path) == path


@pytest.mark.parametrize(
    "name",
    [
        "iso/../x.iso", "iso/.hidden.iso", "iso/a/b.iso", "iso/x.txt", "100/vm-101-disk-0.raw", "100/vm-100-disk-0.vmdk",
        "images/x", "x", "", "/", "iso/", "../etc/passwd", "99/vm-99-disk-0.raw", "100/.tmp-1-vm-100-disk-0.raw",
        "iso/" + "a" * 250 + ".iso", "iso/x\n.iso", "iso/x.iso\n", "iso/-rf.iso",
    ],
)  # fmt: skip
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(InvalidParameter):
        naming.locate(name)


@given(st.text(max_size=60))
def test_no_text_leads_out_of_the_storage(name: str) -> None:
    try:
        place = naming.locate(name)
    except InvalidParameter:
        return
    assert not place.path.is_absolute()
    assert ".." not in place.path.parts


def test_numbers_are_shared_by_all_formats_of_a_guest() -> None:
    taken = {"100/vm-100-disk-0.raw", "100/subvol-100-disk-1.subvol", "100/vm-100-cloudinit-0.qcow2"}
    name = naming.free_disk_name(GuestId(100), "disk", VolumeFormat.QCOW2, taken=taken)
    assert name == "100/vm-100-disk-2.qcow2"


def test_templates_have_pves_short_formats() -> None:
    assert naming.file_format(ContentType.VZTMPL, "a.tar.zst") == "tzst"
    assert naming.file_format(ContentType.VZTMPL, "a.tar.gz") == "tgz"
