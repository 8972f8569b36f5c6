"""Reading what a client sent: query, form, JSON, and multipart streams. Bounded in size, count and time; all hostile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from urllib.parse import parse_qsl

import aiohttp
import msgspec
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from appliance.errors import InvalidParameter, TimedOut, TooLarge, UserError
from appliance.web.registry import Method, Upload

PARAMETER_LIMIT = 1024
READ_TIMEOUT_S = 30.0
UPLOAD_IDLE_TIMEOUT_S = 60.0
UPLOAD_FIELDS_LIMIT_BYTES = 64 << 10
CHUNK_BYTES = 1 << 20

_CUT_OFF = (aiohttp.ClientError, HttpProcessingError, ConnectionError, EOFError, ValueError, AssertionError)
"""What aiohttp raises, by the moment, when a multipart stream ends before its last boundary."""


async def read_parameters(request: web.Request, method: Method) -> tuple[dict[str, object], Upload | None]:
    """All parameters of a request, raw, and the file part if `method` takes one.

    Raises `InvalidParameter`, `TooLarge`, `TimedOut`.
    """
    pairs: list[tuple[str, object]] = [*_parse_form(request.rel_url.raw_query_string)]
    upload: Upload | None = None
    if request.body_exists:
        limit = method.body_limit_bytes
        match request.content_type:
            case "multipart/form-data" if method.upload:
                fields, upload = await _read_upload(request, method.upload)
                pairs += fields
            case "multipart/form-data":
                pairs += await _read_multipart(request, limit)
            case "application/json":
                pairs += _parse_json(await _read_body(request, limit))
            case _:
                # PVE's own reading of a body: a form, whatever it calls itself
                pairs += _parse_form(_as_text(await _read_body(request, limit)))
    return _merge(pairs), upload


def _merge(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """One value a name; a repeated name makes a list, which only list parameters accept."""
    merged: dict[str, object] = {}
    for number, (name, value) in enumerate(pairs, 1):
        if number > PARAMETER_LIMIT:
            raise TooLarge(f"more than {PARAMETER_LIMIT} parameters")
        if name not in merged:
            merged[name] = value
            continue
        before = merged[name]
        merged[name] = [*before, value] if isinstance(before, list) else [before, value]
    return merged


def _parse_form(text: str) -> list[tuple[str, object]]:
    try:
        return [*parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=PARAMETER_LIMIT)]
    except UnicodeDecodeError as error:
        raise InvalidParameter({"body": "a value is not UTF-8"}) from error
    except ValueError as error:
        raise TooLarge(f"more than {PARAMETER_LIMIT} parameters") from error


def _parse_json(body: bytes) -> list[tuple[str, object]]:
    if not body.strip():
        return []
    try:
        decoded: object = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:  # msgspec's DecodeError, or text that is not UTF-8
        raise InvalidParameter({"body": f"not valid JSON: {error}"}) from error
    if not isinstance(decoded, dict):
        raise InvalidParameter({"body": "a JSON object is expected"})
    return list(decoded.items())


def _as_text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise InvalidParameter({"body": "not UTF-8"}) from error


async def _read_body(request: web.Request, limit: int) -> bytes:
    if (request.content_length or 0) > limit:
        raise TooLarge(f"the body is larger than {limit} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise TooLarge(f"the body is larger than {limit} bytes")
    except TimeoutError as error:
        raise TimedOut("request body", READ_TIMEOUT_S) from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise UserError("the body was cut off") from error
    return bytes(body)


async def _read_multipart(request: web.Request, limit: int) -> list[tuple[str, object]]:
    fields, upload = await _read_fields(request, limit, None)
    if upload is not None:
        raise InvalidParameter({upload[0]: "a file is not expected here"})
    return fields


async def _read_upload(request: web.Request, name: str) -> tuple[list[tuple[str, object]], Upload | None]:
    fields, upload = await _read_fields(request, UPLOAD_FIELDS_LIMIT_BYTES, name)
    if upload is None:
        return fields, None
    part = upload[1]
    filename = part.filename or ""
    return fields, Upload(filename=filename, chunks=_chunks(part, filename))


async def _read_fields(
    request: web.Request, limit: int, file_part: str | None
) -> tuple[list[tuple[str, object]], tuple[str, BodyPartReader] | None]:
    """Text parts up to the first file part, which is returned unread."""
    fields: list[tuple[str, object]] = []
    size = 0
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            reader = await request.multipart()
            while (part := await reader.next()) is not None:
                if not isinstance(part, BodyPartReader):
                    raise InvalidParameter({"body": "nested multipart is not accepted"})
                name = part.name or ""
                if part.filename is not None or name == file_part:
                    return fields, (name, part)
                value = await _read_part(part, limit - size)
                size += len(value)
                fields.append((name, _as_text(value)))
                if len(fields) > PARAMETER_LIMIT:
                    raise TooLarge(f"more than {PARAMETER_LIMIT} parameters")
    except TimeoutError as error:
        raise TimedOut("multipart fields", READ_TIMEOUT_S) from error
    except _CUT_OFF as error:
        raise UserError(f"the multipart body is malformed or was cut off: {error}") from error
    return fields, None


async def _read_part(part: BodyPartReader, limit: int) -> bytes:
    value = bytearray()
    while not part.at_eof():
        value += await _read_chunk(part)
        if len(value) > limit:
            raise TooLarge("the form's fields are too large")
    return bytes(value)


async def _read_chunk(part: BodyPartReader) -> bytes:
    """Raises `EOFError` when the stream ends before the part's boundary, which aiohttp takes for the part's end."""
    chunk = await part.read_chunk(CHUNK_BYTES)
    if not chunk and not part.at_eof():
        raise EOFError("no boundary at the end")
    return chunk


async def _chunks(part: BodyPartReader, filename: str) -> AsyncIterator[bytes]:
    while not part.at_eof():
        try:
            async with asyncio.timeout(UPLOAD_IDLE_TIMEOUT_S):
                chunk = await _read_chunk(part)
        except TimeoutError as error:
            raise TimedOut(f"upload {filename}", UPLOAD_IDLE_TIMEOUT_S) from error
        except _CUT_OFF as error:
            raise UserError(f"upload {filename}: cut off before its end") from error
        if chunk:
            yield chunk
