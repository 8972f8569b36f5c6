"""Hypothesis strategies that build valid values from the tables themselves, and hostile ones from anywhere."""

from __future__ import annotations

from hypothesis import strategies as st

from appliance.services.guest_config.property_string import PropertySchema
from appliance.services.guest_config.schema import ConfigKey
from appliance.services.guest_config.values import Value, ValueType

_EXAMPLES = {
    "dns_names": ["example.org", "a.b c.d"],
    "ip_addresses": ["1.1.1.1", "fd00::1 8.8.8.8"],
    "mac_address": ["BC:24:11:00:00:01", "bc:24:11:aa:bb:cc"],
    "ipv4": ["10.0.0.1"],
    "ipv6": ["fd00::1"],
    "ip_config": ["dhcp", "10.0.0.2/24"],
    "ip6_config": ["auto", "fd00::2/64"],
    "tags": ["a", "b;a;Z"],
    "url_encoded": ["ab%20c", "plain"],
    "ssh_keys": ["ssh-ed25519%20AAAAC3Nz%20me", ""],
    "uuid_text": ["3b5f0f6e-6f0e-4d43-9a6c-6f6a0c5d9f10"],
    "startup": ["order=1,up=30", "3"],
    "disk_size": ["32G", "528K", "1.5G"],
    "volume_id": ["local:100/vm-100-disk-0.qcow2", "lvm:vm-100-disk-1"],
    "mount_path": ["/data", "/srv//www/"],
    "mount_volume_text": ["local:8", "local:101/vm-101-disk-1.raw", "/srv/share", "tmpfs"],
    "mount_options": ["noexec", "nosuid;noatime"],
    "device_path": ["/dev/kvm", "/dev/net/tun"],
    "octal_mode": ["0660", "666"],
    "time_zone": ["host", "Europe/Berlin", "America/Argentina/Ushuaia"],
    "snippet": ["local:snippets/hook.sh"],
    "capabilities": ["NET_RAW", "mknod;CAP_SYS_PTRACE"],
    "volume_text": ["local:8", "local:100/vm-100-disk-0.qcow2", "local:0.5"],
    "import_source": ["local:import/x.qcow2"],
    "boot_text": ["order=scsi0;net0", "cdn"],
    "dns_name": ["web", "web1.example.org"],
    "user": ["app", "1000:1000"],
    "working_directory": ["/srv"],
    "stop_signal": ["SIGUSR1", "15", "SIGRTMIN+3"],
    "publish": ["8080:80", "127.0.0.1:5353:53/udp,80:80/tcp"],
    "health": ["none", '{"command": "true"}'],
    "labels": ['{"a": "b"}'],
}
HOSTILE = [
    "\n", "\0", ",", "=", ",=,", "a\nb", "../..", "/etc/passwd", "local:../x", "%00", "%ff", "\u0663", "\uff11", "1e9",
    "nan", "-0", "", "x" * 9000, "\U0001f642", "\u2028", "\ud800", "1" * 5000, "on", "local:1/../../x", "a:b/c/d/e", "-1",
    "virtio=virtio=x",
]  # fmt: skip


def values(value: Value) -> st.SearchStrategy[str]:
    """Texts that `value` accepts."""
    if value.works:
        return st.sampled_from(value.works)
    if value.choices:
        return st.sampled_from(value.choices)
    if value.check is not None:
        return st.sampled_from(_EXAMPLES[value.check.__name__])
    if value.pattern:
        return st.from_regex(f"({value.pattern})", fullmatch=True).filter(
            lambda text: text.isascii() and len(text) <= value.max_length and "," not in text
        )
    low, high = int(value.minimum or 0), int(value.maximum or 1000)
    match value.type:
        case ValueType.BOOLEAN:
            return st.sampled_from(["0", "1", "on", "no", "True"])
        case ValueType.INTEGER:
            return st.integers(low, high).map(str)
        case ValueType.NUMBER:
            return st.decimals(low, high, places=2, allow_nan=False, allow_infinity=False).map(str)
        case ValueType.STRING:
            return st.text("abcXYZ019 _-./", min_size=1, max_size=20)


@st.composite
def property_values(draw: st.DrawFn, schema: PropertySchema) -> dict[str, str]:
    """Normalised values of a property string: the required keys and some of the others."""
    usable = sorted(key for key, value in schema.fields.items() if value.supported)
    optional = [key for key in usable if key not in schema.required]
    chosen = [*schema.required, *(draw(st.lists(st.sampled_from(optional), unique=True)) if optional else [])]
    return {key: schema.fields[key].normalise(draw(values(schema.fields[key]))) for key in chosen}


def texts(key: ConfigKey) -> st.SearchStrategy[str]:
    """Texts a configuration key accepts."""
    if isinstance(key.value, Value):
        return values(key.value)
    schema = key.value
    return property_values(schema).filter(bool).map(schema.print_)


HOSTILE_TEXT = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=40),
    st.text("=,;:/.%+-\n\0 019azvirtolcue", max_size=60),
)
