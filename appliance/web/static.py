"""Static files: a fixed set found at start, each with the hash of its content, so that browsers keep them for ever.

`url("app.css")` gives `/static/@HASH/app.css`, where HASH is that of the whole set: what a file names beside it (a module's
imports, a style sheet's images) is found under the same hash. A request with the right hash may be cached for a year;
one without must ask again each time. Text goes out compressed, each file once for as long as the process lives.
Only files of the set are served: no path of a request ever reaches the file system.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import hdrs, web

from appliance.errors import NotFound

PREFIX = "/static/"
FOREVER = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"
HASH_LENGTH = 12
COMPRESSION_LEVEL = 7
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".woff2": "font/woff2", ".svg": "image/svg+xml"}
_TEXT = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class StaticFiles:
    """The files under `root` as they were when scanned."""

    root: Path
    hashes: Mapping[str, str] = field(default_factory=dict)
    whole: str = field(init=False)
    """The hash of the whole set."""
    _compressed: dict[str, bytes] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        text = "\n".join(f"{name} {digest}" for name, digest in sorted(self.hashes.items()))
        object.__setattr__(self, "whole", hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH])

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
        return f"{PREFIX}@{self.whole}/{name}"

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """The handler of GET /static/{name} and /static/@HASH/{name}."""
        name, wanted = request.match_info["name"], ""
        if name.startswith("@"):
            wanted, _, name = name[1:].partition("/")
        if name not in self.hashes:
            raise NotFound(f"static file {name}")
        path = self.root / name
        caching = FOREVER if wanted == self.whole else ASK_AGAIN
        if path.suffix in _TEXT and "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
            return await self._serve_compressed(request, name, caching)
        response = web.FileResponse(path)
        response.headers[hdrs.CACHE_CONTROL] = caching
        if path.suffix in _TYPES:
            response.content_type = _TYPES[path.suffix]
        return response

    async def _serve_compressed(self, request: web.Request, name: str, caching: str) -> web.Response:
        tag = f'"{self.hashes[name]}-gz"'
        headers = {hdrs.CACHE_CONTROL: caching, hdrs.ETAG: tag, hdrs.VARY: "Accept-Encoding"}
        if request.headers.get(hdrs.IF_NONE_MATCH) == tag:
            return web.Response(status=304, headers=headers)
        if name not in self._compressed:
            self._compressed[name] = await asyncio.to_thread(self._compress, name)
        headers[hdrs.CONTENT_ENCODING] = "gzip"
        kind = _TEXT[Path(name).suffix]
        return web.Response(body=self._compressed[name], content_type=kind, charset="utf-8", headers=headers)

    def _compress(self, name: str) -> bytes:
        return gzip.compress((self.root / name).read_bytes(), COMPRESSION_LEVEL, mtime=0)
