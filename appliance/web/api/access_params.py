"""Parameter types of /access, with the limits of Proxmox VE's schema. What a name may contain is checked by the services."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

UserId = Annotated[str, Meta(max_length=64, description="full user id, name@realm")]
TokenName = Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9.\-_]+$", description="the token's name")]
GroupName = Annotated[str, Meta(max_length=64, description="the group's name")]
RoleName = Annotated[str, Meta(max_length=64, description="the role's name")]
Comment = Annotated[str, Meta(max_length=2048)]
Expire = Annotated[int, Meta(ge=0, le=1 << 53, description="end of validity, seconds since the epoch; 0 means never")]
NewPassword = Annotated[str, Meta(min_length=8, max_length=64, description="the new password")]
OwnPassword = Annotated[str, Meta(max_length=64, description="the caller's own present password, as confirmation")]


class UserParams(msgspec.Struct, kw_only=True):
    """Names a user."""

    userid: UserId
