"""`appliance upload FILE`: an image, ISO or template into a storage, streamed as multipart/form-data (RFC 7578)."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from appliance.cli.arguments import Arguments
from appliance.cli.client import Body
from appliance.cli.context import Context
from appliance.cli.errors import CliError, Exit

CHUNK_BYTES = 1 << 20
CONTENT_OF = {
    "iso": (".iso",),
    "import": (".qcow2", ".raw", ".img"),
    "vztmpl": (".tar.gz", ".tar.xz", ".tar.zst", ".tar"),
}


def run(context: Context, word: str, arguments: Arguments) -> None:
    """Send the file, and follow the task that puts it in its place."""
    if arguments.wants_help:
        from appliance.cli.help import UPLOAD

        print(UPLOAD, end="")
        return
    (name,) = arguments.take("file")
    path, params = Path(name), dict(arguments.params)
    storage = params.pop("storage", "local")
    sent_as = params.pop("filename", path.name)
    params.setdefault("content", content_of(sent_as))
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if sys.stderr.isatty():
                print(f"sending {size} bytes …", file=sys.stderr)
            body = multipart(params, sent_as, file, size)
            reply = context.api.send("POST", f"/api2/json/nodes/localhost/storage/{storage}/upload", body)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}", Exit.FAILED) from error
    context.finish(reply.get("data"))


def content_of(name: str) -> str:
    """What a file is by its name. Raises `CliError` when that does not tell."""
    for content, endings in CONTENT_OF.items():
        if name.lower().endswith(endings):
            return content
    raise CliError(f"{name}: say what it is with --content iso|vztmpl|import|snippets", Exit.USAGE)


def multipart(fields: dict[str, str], filename: str, file: BinaryIO, size: int) -> Body:
    """The request's body; the file comes last. `size` bytes of it are sent, whatever becomes of it meanwhile."""
    boundary = secrets.token_hex(16)
    quoted = filename.replace("\\", "\\\\").replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    head += f'--{boundary}\r\nContent-Disposition: form-data; name="filename"; filename="{quoted}"\r\n'
    begin = f"{head}Content-Type: application/octet-stream\r\n\r\n".encode()
    end = f"\r\n--{boundary}--\r\n".encode()

    def parts() -> Iterator[bytes]:
        yield begin
        left = size
        while left and (chunk := file.read(min(left, CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk
        if left:
            raise CliError(f"{filename}: became shorter while it was sent", Exit.FAILED)
        yield end

    return Body(parts(), len(begin) + size + len(end), f"multipart/form-data; boundary={boundary}")
