"""What must not be in a bug report: passwords, keys, tokens, sessions, and notes people wrote. Pure.

Two ways, one over the other: values by the name of their key where there is structure (`values`), patterns of secrets in
whatever is text (`text`). Secrets that are known (`known`) go wherever they stand. Names, addresses and user names stay:
without them a report says nothing, and `appliance doctor` tells that they are in it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

REMOVED = "(removed)"

_SECRET_KEY = re.compile(
    r"pass(word|wd|phrase)|secret|token|ticket|cookie|csrf|credential|private|authorization|sshkeys|otp|recovery|"
    r"api_?key|^key$|^keys$|challenge|signature|fingerprint_key|args|cicustom|description|comment|notes",
    re.I,
)
_SHORT = 6
"""A known secret shorter than this is not looked for: it would be found everywhere."""

_PATTERNS = (
    (re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(-----END \1-----|\Z)", re.S), REMOVED),
    (re.compile(r"PVEAPIToken[= ]\S+"), f"PVEAPIToken={REMOVED}"),
    (re.compile(r"\bPVE[A-Z]*:[^\s:]+:[0-9A-F]{6,}::[A-Za-z0-9+/=]+"), f"PVE:{REMOVED}"),
    (re.compile(r"\b[0-9A-F]{8}:[A-Za-z0-9+/]{27,}=*"), REMOVED),  # CSRFPreventionToken
    (re.compile(r"\$(argon2\w*|[0-9a-z]{1,3}|2[abxy])\$[A-Za-z0-9./+$,=]{8,}"), REMOVED),  # crypt(5), PHC strings
    (re.compile(r"(?i)\b(https?|ftp|rbd|nfs|smb)://[^\s/@:]+:[^\s/@]+@"), rf"\1://{REMOVED}@"),
    (re.compile(r"(?im)^(\s*(?:authorization|cookie|set-cookie|csrfpreventiontoken)\s*:).*$"), rf"\1 {REMOVED}"),
    (
        re.compile(
            r"(?i)(?<![a-z])((?:ci|admin[-_ ]?)?pass(?:word|wd|phrase)|secret|(?:api|auth|access)?[-_]?token|ticket|"
            r"sshkeys|api[-_]?key|cookie|otp)([\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;&\"']+)"
        ),
        rf"\1\2{REMOVED}",
    ),
    (re.compile(r"\b(ssh-(?:rsa|ed25519|dss)|ecdsa-sha2-\S+)\s+[A-Za-z0-9+/=]{20,}( \S+)?"), rf"\1 {REMOVED}"),
)


def text(value: str, known: Collection[str] = ()) -> str:
    """`value` without what looks like a secret, or is one."""
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= _SHORT:
            value = value.replace(secret, REMOVED)
    for pattern, replacement in _PATTERNS:
        value = pattern.sub(replacement, value)
    return value


def values(value: Any, known: Collection[str] = ()) -> Any:
    """The same for what JSON can say; keys stay, so that a report shows that there was something."""
    if isinstance(value, Mapping):
        return {
            key: REMOVED if _SECRET_KEY.search(str(key)) and entry not in (None, "", 0, 1) else values(entry, known)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [values(entry, known) for entry in value]
    return text(value, known) if isinstance(value, str) else value
