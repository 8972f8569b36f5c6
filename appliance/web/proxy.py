"""A reverse proxy in front of the appliance: which prefix it publishes us under, and whom it speaks for.

`X-Forwarded-Prefix`, `X-Forwarded-Host` and `X-Forwarded-For` are believed only from the addresses of `--proxy`; from
anybody else they are noise. The proxy takes the prefix away before it passes a request on. `--base-path` states the
prefix for proxies that cannot send the header.
"""

from __future__ import annotations

from aiohttp import web

from appliance.config import check_base_path, plain_address
from appliance.errors import InvalidParameter
from appliance.web import keys

HEADERS_LIMIT = 16


def prefix(request: web.Request) -> str:
    """What stands before every address of ours in this reader's browser, "" for nothing."""
    config = request.app[keys.SERVICES].config
    told = request.headers.get("X-Forwarded-Prefix")
    if told is not None and _is_proxy(request):
        try:
            return check_base_path(told)
        except InvalidParameter:
            return config.base_path
    return config.base_path


def remote(request: web.Request) -> str | None:
    """The reader's address: the last one in `X-Forwarded-For` that is none of our proxies'."""
    peer = request.remote
    told = request.headers.getall("X-Forwarded-For", [])
    if not told or not _is_proxy(request):
        return peer
    proxies = request.app[keys.SERVICES].config.proxies
    for text in reversed(",".join(told).split(",")[-HEADERS_LIMIT:]):
        address = plain_address(text)
        if not address:
            return peer
        if address not in proxies:
            return address
    return peer


def hosts(request: web.Request) -> frozenset[str]:
    """The host names (with port) this request may have been meant for: an Origin must be one of them."""
    told = request.headers.get("X-Forwarded-Host")
    if told is not None and _is_proxy(request):
        return frozenset({request.host, told.split(",")[-1].strip()})
    return frozenset({request.host})


def _is_proxy(request: web.Request) -> bool:
    proxies = request.app[keys.SERVICES].config.proxies
    return bool(proxies) and request.remote is not None and plain_address(request.remote) in proxies
