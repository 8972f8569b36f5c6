"""Declarations of the API's methods: one yields the REST route, the CLI verb, the API page's entry and the OpenAPI text.

    api = Resource()

    class StopParams(GuestParams):
        timeout: Annotated[int, Meta(ge=0, description="seconds to wait")] | None = None

    @api.post("/nodes/{node}/qemu/{vmid}/status/stop", summary="Stop by force", allow=Allow("/vms/{vmid}", "VM.PowerMgmt"))
    async def stop(call: Call, params: StopParams) -> str:
        return await call.services.guests.power.stop(GuestKind.QEMU, params.vmid, user=call.user, timeout_s=params.timeout)

What is declared here is executed by `dispatch.py`, converted by `parameters.py` and listed by `openapi.py`. A `Resource`
is a plain table: importing a resource module does nothing else. `application.py` collects the tables.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, Unpack

import msgspec

from appliance.errors import InvalidParameter, NotAuthenticated, PermissionDenied
from appliance.model.guest import GUEST_ID_MAX, GUEST_ID_MIN
from appliance.web.parameters import PveBool, PveList, Rest, fields_of

if TYPE_CHECKING:
    from aiohttp import web

    from appliance.services.identity import Identity
    from appliance.web.services import Services

__all__ = [
    "ANYONE", "LOGGED_IN", "Allow", "Call", "GuestParams", "Method", "NoParams", "NodeParams", "PveBool", "PveList",
    "Resource", "Rest", "Upload", "Vmid",
]  # fmt: skip

Handler = Callable[..., Awaitable[object]]
HandlerT = TypeVar("HandlerT", bound=Handler)
Check = Callable[["Call", Any], None]
"""A special permission check: gets the call and the parsed parameters, raises `PermissionDenied`."""

VERBS: Final = {"GET": "get", "POST": "create", "PUT": "set", "DELETE": "delete"}
DEFAULT_TIMEOUT_S = 60.0
BODY_LIMIT_BYTES = 1 << 20
_PART = re.compile(r"\{(\w+)(:path)?\}")

Vmid = Annotated[int, msgspec.Meta(ge=GUEST_ID_MIN, le=GUEST_ID_MAX, description="the guest's id")]


class NoParams(msgspec.Struct, kw_only=True):
    """For methods without parameters."""


class NodeParams(msgspec.Struct, kw_only=True):
    """Parameters of everything below /nodes/{node}. That the node exists has been checked before the handler runs."""

    node: Annotated[str, msgspec.Meta(description="the node's name", max_length=63)] = "localhost"


class GuestParams(NodeParams, kw_only=True):
    """Parameters of everything below /nodes/{node}/{qemu|lxc}/{vmid}."""

    vmid: Vmid


@dataclass(frozen=True, slots=True)
class Everyone:
    """Permission marker; use the constants `ANYONE` and `LOGGED_IN`."""

    must_log_in: bool


ANYONE: Final = Everyone(must_log_in=False)
LOGGED_IN: Final = Everyone(must_log_in=True)


class Allow:
    """The caller must hold `privileges` on `path` (all of them, or one when `any_of`).

    `path` may name parameters: `Allow("/vms/{vmid}", "VM.Audit")`; they must be declared in the params struct.
    """

    __slots__ = ("any_of", "path", "privileges")

    def __init__(self, path: str, *privileges: str, any_of: bool = False) -> None:
        self.path = path
        self.privileges = privileges
        self.any_of = any_of

    def object_path(self, params: msgspec.Struct) -> str:
        """The ACL path with the parameters' values; a value that would change the path's shape is refused."""
        fields = fields_of(type(params))

        def value(match: re.Match[str]) -> str:
            text = str(getattr(params, fields[match[1]].attribute))
            if not text or "/" in text or text in (".", ".."):
                raise InvalidParameter({match[1]: "invalid format - not a name"})
            return text

        return _PART.sub(value, self.path)

    def describe(self) -> str:
        """For people: "VM.Audit on /vms/{vmid}"."""
        return f"{(' or ' if self.any_of else ' and ').join(self.privileges)} on {self.path}"


Permission = Allow | Everyone | Check


@dataclass(slots=True)
class Upload:
    """The file part of a multipart request, read while it arrives. Valid until the handler returns."""

    filename: str
    chunks: AsyncIterator[bytes]
    """Pieces of at most 1 MiB. Raises `UserError` when the client goes away half-way."""


@dataclass(slots=True, kw_only=True)
class Call:
    """One request on its way through a handler."""

    services: Services
    request: web.Request
    method: Method
    request_id: str
    remote: str
    """The peer's address, or "local" for the UNIX socket."""
    identity_or_none: Identity | None
    upload_or_none: Upload | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Added to the reply's headers."""

    @property
    def identity(self) -> Identity:
        """Who calls. Raises `NotAuthenticated` (only possible where ANYONE is allowed)."""
        if self.identity_or_none is None:
            raise NotAuthenticated("no authentication given")
        return self.identity_or_none

    @property
    def user(self) -> str:
        """What tasks record as their user: "admin@pve" or "admin@pve!token"."""
        return self.identity.auth_id

    @property
    def node(self) -> str:
        """This node's name."""
        return self.services.config.node_name

    @property
    def upload(self) -> Upload:
        """The file being uploaded, for methods declared with `upload=`. Raises `InvalidParameter` when none came."""
        if self.upload_or_none is None:
            raise InvalidParameter({self.method.upload or "file": "a file part of multipart/form-data is needed"})
        return self.upload_or_none

    def check(self, path: str, *privileges: str, any_of: bool = False) -> None:
        """Raises `PermissionDenied` unless the caller holds `privileges` on the ACL path `path`."""
        self.services.access.check(self.identity, path, *privileges, require_all=not any_of)

    def has(self, path: str, privilege: str) -> bool:
        """Whether the caller holds `privilege` on `path`."""
        return self.services.access.has(self.identity, path, privilege)

    def check_any(self, *alternatives: tuple[str, str]) -> None:
        """Raises `PermissionDenied` unless one of the (path, privilege) pairs holds."""
        if not any(self.has(path, privilege) for path, privilege in alternatives):
            wanted = " or ".join(f"{path}, {privilege}" for path, privilege in alternatives)
            raise PermissionDenied(f"Permission check failed ({wanted})")


@dataclass(frozen=True, eq=False, kw_only=True)
class Method:
    """One declared method."""

    verb: str
    """The HTTP method."""
    path: str
    summary: str
    description: str
    allow: Permission
    handler: Handler
    returns: Any = None
    upload: str | None = None
    timeout_s: float | None = DEFAULT_TIMEOUT_S
    body_limit_bytes: int = BODY_LIMIT_BYTES
    rest_schema: Callable[[], Mapping[str, Mapping[str, object]]] | None = None
    audited_by_service: bool = False

    @functools.cached_property
    def params(self) -> type[msgspec.Struct]:
        """The struct of the handler's second argument; `NoParams` when it has none."""
        names = list(inspect.signature(self.handler).parameters)
        if len(names) < 2:
            return NoParams
        # TYPE_CHECKING-only names may stand in other annotations: resolve this one alone
        annotation = self.handler.__annotations__[names[1]]
        if isinstance(annotation, str):
            annotation = eval(annotation, vars(inspect.getmodule(self.handler)))  # noqa: S307  our own source text
        return typing.cast(type[msgspec.Struct], annotation)

    @functools.cached_property
    def takes_params(self) -> bool:
        """Whether the handler wants a second argument."""
        return len(inspect.signature(self.handler).parameters) > 1

    @functools.cached_property
    def rest_names(self) -> frozenset[str]:
        """What a `Rest` field takes; a family ("net[n]") by its stem."""
        return frozenset(name.removesuffix("[n]") for name in self.rest_schema()) if self.rest_schema else frozenset()

    @property
    def path_parts(self) -> Sequence[str]:
        """Names of the parameters in the path."""
        return [match[1] for match in _PART.finditer(self.path)]

    def problems(self) -> list[str]:
        """What is wrong with the declaration; empty when nothing. Proved for the whole table by a test."""
        declared = fields_of(self.params)
        found = [
            f"{{{part}}} is not a parameter" for part in self.path_parts if part not in declared and part != "node"
        ]
        if isinstance(self.allow, Allow):
            found += [
                f"allow names {{{match[1]}}}, which is not a parameter"
                for match in _PART.finditer(self.allow.path)
                if match[1] not in declared
            ]
        return [f"{self.verb} {self.path}: {text}" for text in found]


class Declaration(typing.TypedDict, total=False):
    """What a decorator of `Resource` takes beside the path."""

    summary: typing.Required[str]
    allow: typing.Required[Permission]
    returns: Any
    """The type of what is under "data", for the documents only."""
    upload: str
    """The name of the file part of a streamed multipart request (`Call.upload`); other parts must come before it."""
    timeout_s: float | None
    """None is for methods that stream."""
    body_limit_bytes: int
    rest_schema: Callable[[], Mapping[str, Mapping[str, object]]]
    """JSON schemas of what a `Rest` field takes ("net[n]"), for the documents."""
    audited_by_service: bool
    """The service behind it writes the audit log itself, and knows better what is worth a row."""


class Resource:
    """A table of methods, filled by its decorators.

    A handler may return a dataclass, Struct, mapping, list, text, None, `msgspec.Raw` (encoded JSON) or a whole
    `web.StreamResponse`. A returned UPID says that a task has begun. None values in mappings are left out of the reply,
    booleans become 0 and 1.
    """

    def __init__(self) -> None:
        self.methods: list[Method] = []

    def get(self, path: str, **declaration: Unpack[Declaration]) -> Callable[[HandlerT], HandlerT]:
        """Declare a reading method; its parameters come from the query."""
        return self._declare("GET", path, declaration)

    def post(self, path: str, **declaration: Unpack[Declaration]) -> Callable[[HandlerT], HandlerT]:
        """Declare a creating or acting method."""
        return self._declare("POST", path, declaration)

    def put(self, path: str, **declaration: Unpack[Declaration]) -> Callable[[HandlerT], HandlerT]:
        """Declare a changing method."""
        return self._declare("PUT", path, declaration)

    def delete(self, path: str, **declaration: Unpack[Declaration]) -> Callable[[HandlerT], HandlerT]:
        """Declare a deleting method; its parameters come from the query."""
        return self._declare("DELETE", path, declaration)

    def _declare(self, verb: str, path: str, declaration: Declaration) -> Callable[[HandlerT], HandlerT]:
        def register(handler: HandlerT) -> HandlerT:
            timeout_s = declaration.get("timeout_s", None if "upload" in declaration else DEFAULT_TIMEOUT_S)
            self.methods.append(
                Method(
                    verb=verb,
                    path=path,
                    summary=declaration["summary"],
                    description=inspect.getdoc(handler) or "",
                    allow=declaration["allow"],
                    handler=handler,
                    returns=declaration.get("returns"),
                    upload=declaration.get("upload"),
                    timeout_s=timeout_s,
                    body_limit_bytes=declaration.get("body_limit_bytes", BODY_LIMIT_BYTES),
                    rest_schema=declaration.get("rest_schema"),
                    audited_by_service=declaration.get("audited_by_service", False),
                )
            )
            return handler

        return register
