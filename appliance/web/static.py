"""Static files: a fixed set found at start, each with the hash of its content, so that browsers keep them for ever.

`url("app.css")` gives `/static/app.css?v=HASH`. A request with the right hash may be cached for a year; one without
must ask again each time. Only files of the set are served: no path of a request ever reaches the file system.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from appliance.errors import NotFound

PREFIX = "/static/"
FOREVER = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"
HASH_LENGTH = 12
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".woff2": "font/woff2", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class StaticFiles:
    """The files under `root` as they were when scanned."""

    root: Path
    hashes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def scan(cls, root: Path) -> StaticFiles:
        """Read every file once (blocks: call it in a thread). A missing directory has no files."""
        hashes: dict[str, str] = {}
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                hashes[str(path.relative_to(root))] = digest[:HASH_LENGTH]
        return cls(root, hashes)

    def url(self, name: str) -> str:
        """The address of a file for templates. Raises `NotFound`, so that a typing error is seen at once."""
        if name not in self.hashes:
            raise NotFound(f"static file {name}")
        return f"{PREFIX}{name}?v={self.hashes[name]}"

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """The handler of GET /static/{name}."""
        name = request.match_info["name"]
        known = self.hashes.get(name)
        if known is None:
            raise NotFound(f"static file {name}")
        path = self.root / name
        response = web.FileResponse(path)
        response.headers["Cache-Control"] = FOREVER if request.query.get("v") == known else ASK_AGAIN
        if path.suffix in _TYPES:
            response.content_type = _TYPES[path.suffix]
        return response
