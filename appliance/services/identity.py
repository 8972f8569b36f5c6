"""Who somebody is: user ids (`name@realm`), token ids (`name@realm!token`), group names. Pure parsing.

The character rules are Proxmox VE's, less control characters and `!` in user names (it separates the token's name).
"""

from __future__ import annotations

import re

import msgspec

from appliance.errors import InvalidParameter

USER_ID_LIMIT = 64
_USER = re.compile(r"(?P<name>[^\s:/!\x00-\x1f\x7f]+)@(?P<realm>[A-Za-z][A-Za-z0-9._-]+)")
_TOKEN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{1,63}")
_GROUP = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Identity(msgspec.Struct, frozen=True):
    """An authenticated caller: a user, or one of a user's API tokens acting for them.

    A key of every permission that was looked up, hence a struct: its hash and equality are compiled.
    """

    user: str
    token: str | None = None

    @property
    def auth_id(self) -> str:
        """`user@realm` or `user@realm!token`, as ACLs and task ids write it."""
        return self.user if self.token is None else f"{self.user}!{self.token}"

    def owns(self, auth_id: str) -> bool:
        """Whether what `auth_id` has begun belongs to this caller: to a user also what their tokens began, not vice versa."""
        return self.auth_id in (auth_id, auth_id.partition("!")[0])


def split_user_id(text: str, *, parameter: str = "userid") -> tuple[str, str]:
    """(name, realm) of a user id. Raises `InvalidParameter` under the name `parameter`."""
    match = _USER.fullmatch(text) if len(text) <= USER_ID_LIMIT else None
    if match is None or not text.isprintable():
        raise InvalidParameter({parameter: f"{text[:USER_ID_LIMIT]!r} is not a user id (name@realm)"})
    return match["name"], match["realm"]


def check_user_id(text: str, *, parameter: str = "userid") -> str:
    """Return `text` if it is a user id. Raises `InvalidParameter`."""
    split_user_id(text, parameter=parameter)
    return text


def check_token_name(text: str) -> str:
    """Return `text` if it may name a token. Raises `InvalidParameter`."""
    if _TOKEN_NAME.fullmatch(text) is None:
        raise InvalidParameter(
            {"tokenid": f"{text[:64]!r} is not a token's name (a letter, then letters, digits, '.-_')"}
        )
    return text


def check_group_name(text: str) -> str:
    """Return `text` if it may name a group. Raises `InvalidParameter`."""
    if _GROUP.fullmatch(text) is None:
        raise InvalidParameter({"groupid": f"{text[:64]!r} is not a group's name (letters, digits, '.', '-', '_')"})
    return text


def parse_auth_id(text: str, *, parameter: str = "userid") -> Identity:
    """The identity that a user id or full token id names; it need not exist. Raises `InvalidParameter`."""
    user, separator, token = text.partition("!")
    check_user_id(user, parameter=parameter)
    if separator and _TOKEN_NAME.fullmatch(token) is None:
        raise InvalidParameter({parameter: f"{text[:130]!r} is not a token id (name@realm!token)"})
    return Identity(user, token if separator else None)
