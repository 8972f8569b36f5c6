"""Formats with a grammar of their own: each function returns the normal form or raises `ValueError` with one line."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import uuid
from urllib.parse import unquote

from appliance.errors import InvalidParameter
from appliance.model.volume import VolumeId
from appliance.services.guest_config.sizes import format_size, parse_size
from appliance.services.guest_config.values import shorten

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_DNS_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")
_TAG = re.compile(r"[a-z0-9_][a-z0-9_\-+.]*")
_URLENCODED = re.compile(r"(?:[-a-zA-Z0-9_.!~*'()+]|%[0-9a-fA-F]{2})*")
_SSH_KEY = re.compile(r"(?:[^\s]+ +)?(?:ssh-|ecdsa-|sk-)[a-z0-9@.-]+ +[A-Za-z0-9+/]+={0,3}(?: .*)?")
_SEPARATORS = re.compile(r"[,;\s]+")
_STARTUP = re.compile(r"(?:order=)?[0-9]{1,9}|up=[0-9]{1,9}|down=[0-9]{1,9}")
_PATH_SEGMENT = re.compile(r"[^/\x00-\x1f\x7f,;]+")
_KERNEL_TREES = ("proc", "sys", "dev")
MOUNT_OPTIONS = frozenset({"discard", "lazytime", "noatime", "nodev", "noexec", "nosuid"})
TAGS_LIMIT = 64
SSH_KEYS_LIMIT = 200


def dns_name(text: str) -> str:
    """A host name, at most 253 characters, labels of at most 63."""
    if len(text) > 253 or not _DNS_NAME.fullmatch(text):
        raise ValueError("invalid format - value does not look like a valid DNS name")
    return text


def dns_names(text: str) -> str:
    """Search domains, separated by spaces, commas or semicolons; stored with spaces."""
    return " ".join(dns_name(name) for name in split_list(text))


def ip_addresses(text: str) -> str:
    """Addresses of either family, separated by spaces, commas or semicolons; stored with spaces."""
    return " ".join(_address(part) for part in split_list(text))


def mac_address(text: str) -> str:
    """A unicast MAC address, stored in upper case."""
    if not _MAC.fullmatch(text):
        raise ValueError(f"value does not look like a valid unicast MAC address: '{shorten(text)}'")
    if int(text[:2], 16) & 1:
        raise ValueError(f"'{text}' is a multicast MAC address")
    return text.upper()


def ipv4(text: str) -> str:
    """An IPv4 address."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError as error:
        raise ValueError(f"value does not look like a valid IPv4 address: '{shorten(text)}'") from error


def ipv6(text: str) -> str:
    """An IPv6 address without a zone; the text is kept."""
    try:
        if "%" not in text:
            ipaddress.IPv6Address(text)
            return text
    except ValueError as error:
        raise ValueError(f"value does not look like a valid IPv6 address: '{shorten(text)}'") from error
    raise ValueError(f"an IPv6 address with a zone is of no use here: '{shorten(text)}'")


def ip_config(text: str) -> str:
    """`dhcp`, `manual` or an IPv4 address with its prefix length."""
    return text if text in ("dhcp", "manual") else _interface(text, 4)


def ip6_config(text: str) -> str:
    """`auto`, `dhcp`, `manual` or an IPv6 address with its prefix length."""
    return text if text in ("auto", "dhcp", "manual") else _interface(text, 6)


def tags(text: str) -> str:
    """Lower case, each once, sorted, joined by semicolons."""
    found = {tag.lower() for tag in split_list(text)}
    for tag in found:
        if len(tag) > 128 or not _TAG.fullmatch(tag):
            raise ValueError(f"invalid format - invalid characters in tag '{shorten(tag)}'")
    if len(found) > TAGS_LIMIT:
        raise ValueError(f"more than {TAGS_LIMIT} tags")
    return ";".join(sorted(found))


def url_encoded(text: str) -> str:
    """Percent-encoded UTF-8 without control characters; kept as it is."""
    if not _URLENCODED.fullmatch(text):
        raise ValueError(f"invalid format - invalid urlencoded string: '{shorten(text)}'")
    decoded = decode(text)
    if any(ord(char) < 32 or ord(char) == 127 for char in decoded):
        raise ValueError("invalid format - control characters in an urlencoded string")
    return text


def ssh_keys(text: str) -> str:
    """Percent-encoded OpenSSH public keys, one a line, as PVE stores them."""
    if not _URLENCODED.fullmatch(text):
        raise ValueError("invalid format - the keys must be urlencoded")
    ssh_key_lines(decode(text))
    return text


def ssh_key_lines(text: str) -> tuple[str, ...]:
    """The keys of an authorized_keys text, comments and empty lines dropped. Raises `ValueError` for a bad line."""
    lines = [line.strip() for line in text.split("\n")]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if len(keys) > SSH_KEYS_LIMIT:
        raise ValueError(f"more than {SSH_KEYS_LIMIT} SSH public keys")
    for key in keys:
        if not key.isprintable() or not _SSH_KEY.fullmatch(key):
            raise ValueError(f"SSH public key validation error: '{shorten(key)}'")
    return keys


def decode(text: str) -> str:
    """Undo percent encoding; `ValueError` when it is not UTF-8."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise ValueError("invalid format - urlencoded string is not UTF-8") from error


def uuid_text(text: str) -> str:
    """A UUID in its usual form, lower case."""
    try:
        value = uuid.UUID(text)
    except ValueError as error:
        raise ValueError(f"'{shorten(text)}' is not a UUID") from error
    if len(text) != 36:
        raise ValueError(f"'{shorten(text)}' is not a UUID")
    return str(value)


def base64_text(text: str) -> str:
    """Base64 of something; kept."""
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"'{shorten(text)}' is not base64") from error
    return text


def startup(text: str) -> str:
    """`[[order=]N][,up=SECONDS][,down=SECONDS]`, each at most once."""
    parts = text.split(",")
    names = [part.partition("=")[0] if "=" in part else "order" for part in parts]
    if not all(_STARTUP.fullmatch(part) for part in parts) or len(set(names)) != len(names):
        raise ValueError(f"unable to parse startup options: '{shorten(text)}'")
    return text


def disk_size(text: str) -> str:
    """A size in its shortest exact form."""
    return format_size(parse_size(text))


def volume_id(text: str) -> str:
    """`STORAGE:NAME` that cannot leave its storage."""
    try:
        return str(VolumeId.parse(text))
    except InvalidParameter as error:
        raise ValueError("; ".join(error.errors.values())) from error


def mount_path(text: str) -> str:
    """An absolute path inside a container: no `..`, not the root itself; repeated and trailing slashes dropped."""
    segments = [segment for segment in text.split("/") if segment]
    if not text.startswith("/") or not segments:
        raise ValueError(f"mp must be an absolute path below '/': '{shorten(text)}'")
    if any(segment in (".", "..") or not _PATH_SEGMENT.fullmatch(segment) for segment in segments):
        raise ValueError(f"mp contains a forbidden component: '{shorten(text)}'")
    return "/" + "/".join(segments)


def host_path(text: str) -> str:
    """An absolute path of the host that names one object: no `.`, `..`, no trees the kernel makes; not the root itself."""
    segments = [segment for segment in text.split("/") if segment]
    if not text.startswith("/") or not segments or any(segment in (".", "..") for segment in segments):
        raise ValueError(f"'{shorten(text)}' is not an absolute path below '/', without '.' and '..'")
    if segments[0] in _KERNEL_TREES:
        raise ValueError(f"'{shorten(text)}': /{segments[0]} is the host kernel's, no container gets a part of it")
    return "/" + "/".join(segments)


def device_path(text: str) -> str:
    """A device node of the host, below /dev."""
    segments = [segment for segment in text.split("/") if segment]
    if not text.startswith("/dev/") or len(segments) < 2 or any(part in (".", "..") for part in segments):
        raise ValueError(f"'{shorten(text)}' is not a device below /dev")
    return "/" + "/".join(segments)


def mount_options(text: str) -> str:
    """PVE's list of mount options, in a fixed order."""
    words = sorted(set(text.split(";")) - {""})
    if unknown := [word for word in words if word not in MOUNT_OPTIONS]:
        raise ValueError(f"'{shorten(unknown[0])}' is no mount option; there are {', '.join(sorted(MOUNT_OPTIONS))}")
    return ";".join(words)


def time_zone(text: str) -> str:
    """`host`, or a name of the time zone database."""
    if text == "host" or re.fullmatch(r"[A-Za-z0-9_+-]{1,30}(/[A-Za-z0-9_+-]{1,30}){0,2}", text):
        return text
    raise ValueError(f"'{shorten(text)}' is no time zone: Area/City, or host")


def capabilities(text: str) -> str:
    """Names of Linux capabilities, without their prefix, in a fixed order."""
    words = sorted({word.upper().removeprefix("CAP_") for word in split_list(text)})
    if unknown := [word for word in words if not re.fullmatch(r"[A-Z_]{3,24}", word)]:
        raise ValueError(f"'{shorten(unknown[0])}' is no capability")
    return ";".join(words)


def snippet(text: str) -> str:
    """A volume of content type snippets."""
    if not volume_id(text).partition(":")[2].startswith("snippets/"):
        raise ValueError(f"'{shorten(text)}' is no snippet: STORAGE:snippets/NAME")
    return text


def octal_mode(text: str) -> str:
    """Access bits of a device node."""
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError(f"'{shorten(text)}' is no octal access mode such as 0660")
    return text.zfill(4)


def split_list(text: str) -> list[str]:
    """PVE's lists: separated by commas, semicolons or white space."""
    return [part for part in _SEPARATORS.split(text) if part]


def _address(text: str) -> str:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError as error:
        raise ValueError(f"invalid format - value does not look like a valid IP address: '{shorten(text)}'") from error
    if "%" in text and not re.fullmatch(r"[^%]+%[a-zA-Z0-9_.-]{1,15}", text):
        raise ValueError(f"invalid format - bad zone in '{shorten(text)}'")
    return text


def _interface(text: str, version: int) -> str:
    address, slash, prefix = text.partition("/")
    try:
        parsed = ipaddress.ip_interface(text)
    except ValueError as error:
        raise ValueError(
            f"value does not look like a valid ipv{version} network configuration: '{shorten(text)}'"
        ) from error
    if parsed.version != version or not slash or not prefix.isdecimal() or not prefix.isascii() or "%" in address:
        raise ValueError(f"value does not look like a valid ipv{version} network configuration: '{shorten(text)}'")
    return text
