"""The settings of the cluster as people read them: one entry an option of PUT /cluster/options. Plain data."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One option of the cluster. `hint` says what it does; `choices` are its values where there are few."""

    name: str
    word: str
    hint: str
    group: str
    choices: Sequence[str] = ()
    is_long: bool = False
    has_effect: bool = True


SETTINGS: Final = (
    Setting(name="description", word="Notes", hint="For whoever looks after this appliance.", group="General", is_long=True),
    Setting(name="consent-text", word="Consent text", hint="Shown before logging in.", group="General", is_long=True,
            has_effect=False),
    Setting(name="language", word="Language", hint="Default language of other clients.", group="General", has_effect=False),
    Setting(name="keyboard", word="Keyboard layout", hint="Of displays: en-us, de, fr …", group="General", has_effect=False),
    Setting(name="console", word="Console", hint="What other clients open first.", group="General",
            choices=("xtermjs", "html5", "vv", "applet"), has_effect=False),
    Setting(name="next-id", word="Ids of new guests", hint="lower=100,upper=1000000; the upper one is exclusive.",
            group="Guests"),
    Setting(name="mac_prefix", word="Prefix of MAC addresses", hint="Three bytes at most, such as BC:24:11.", group="Guests"),
    Setting(name="tag-style", word="Colours of tags",
            hint="color-map=web:1d6fa5;db:7a1f7a:ffffff – background and text of each tag.", group="Guests"),
    Setting(name="registered-tags", word="Registered tags", hint="Tags only administrators may set, separated by semicolons.",
            group="Guests", has_effect=False),
    Setting(name="user-tag-access", word="Who may set tags", hint="user-allow=free, list, existing or none.", group="Guests",
            has_effect=False),
    Setting(name="email_from", word="Sender of mails", hint="An address.", group="Network and mail", has_effect=False),
    Setting(name="http_proxy", word="HTTP proxy", hint="http://proxy:3128", group="Network and mail", has_effect=False),
    Setting(name="migration", word="Migration", hint="type=secure,network=10.0.0.0/24", group="Limits", has_effect=False),
    Setting(name="bwlimit", word="Bandwidth limits", hint="clone=…,migration=…,restore=… in KiB/s.", group="Limits",
            has_effect=False),
    Setting(name="max_workers", word="Workers", hint="Parallel jobs of bulk actions.", group="Limits", has_effect=False),
    Setting(name="ha", word="High availability", hint="shutdown_policy=migrate …", group="Limits", has_effect=False),
    Setting(name="crs", word="Scheduling", hint="ha=basic or static.", group="Limits", has_effect=False),
    Setting(name="notify", word="Notifications", hint="target-… as Proxmox VE has them.", group="Limits", has_effect=False),
)  # fmt: skip
"""Every option PUT /cluster/options takes. Proved complete by a test."""


@functools.cache
def by_name() -> Mapping[str, Setting]:
    """The settings by their names."""
    return {setting.name: setting for setting in SETTINGS}
