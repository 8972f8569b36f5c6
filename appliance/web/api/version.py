"""/version: what every client asks first."""

from __future__ import annotations

import hashlib

import msgspec

from appliance.version import PVE_API_RELEASE, PVE_API_VERSION, VERSION
from appliance.web.registry import LOGGED_IN, Call, Resource

api = Resource()


class Version(msgspec.Struct, kw_only=True):
    """`version` and `release` are the API level clients compare with Proxmox VE's; `appliance` is our own version."""

    version: str
    release: str
    repoid: str
    console: str = "xtermjs"
    appliance: str = VERSION


VERSION_REPLY = Version(
    version=PVE_API_VERSION,
    release=PVE_API_RELEASE,
    repoid=hashlib.sha256(VERSION.encode()).hexdigest()[:16],
)


@api.get("/version", summary="Version of the API and of the appliance", allow=LOGGED_IN, returns=Version)
async def read_version(call: Call) -> Version:
    """The API level is the one of Proxmox VE this appliance speaks."""
    return VERSION_REPLY
