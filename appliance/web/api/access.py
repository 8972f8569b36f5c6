"""All of /access, one file a noun; `pools.py` belongs to it too."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.web.api import acl, domains, groups, login, pools, tfa, users
from appliance.web.registry import Resource

RESOURCES: Sequence[Resource] = (login.api, users.api, groups.api, acl.api, domains.api, tfa.api, pools.api)
