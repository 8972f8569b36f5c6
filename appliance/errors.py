"""The exceptions every layer speaks. Translated to HTTP in one place, `web/middleware.py`.

    ApplianceError
    ├── UserError                what was asked cannot be done as asked; nothing has changed     (4xx)
    │   ├── InvalidParameter     400  names each wrong parameter in `errors`
    │   ├── NotAuthenticated     401
    │   ├── PermissionDenied     403  names the path and the missing privilege
    │   ├── NotFound             404  text always contains "does not exist" (clients look for it)
    │   ├── Conflict             409  exists already, wrong state, stale digest
    │   ├── TooLarge             413
    │   ├── TooManyRequests      429  `retry_after_s`
    │   └── Unsupported          501  this host or this engine cannot; says which and why
    ├── GuestFault               a guest, container or its agent misbehaved; only that guest is affected
    └── HostError                the host failed us                                               (500)
        ├── CommandFailed        a helper program exited non-zero; argv, status, tail of stderr
        ├── TimedOut             a named wait passed its limit                                     (504)
        ├── NoSpace              a file system is full                                             (507)
        └── ServiceStopping      the appliance is going down                                       (503)

Messages name the object first: `vm 101: ...`, `volume local:iso/x.iso: ...`. `CancelledError` is never wrapped.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from http import HTTPStatus


class ApplianceError(Exception):
    """Root of all errors raised on purpose. `status` is the HTTP status of its family."""

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UserError(ApplianceError):
    """The request cannot be fulfilled as it was made; nothing has changed."""

    status = HTTPStatus.BAD_REQUEST


class InvalidParameter(UserError):
    """One or more parameters are wrong. `errors` maps the parameter's name to what is wrong with it."""

    def __init__(self, errors: Mapping[str, str], message: str = "Parameter verification failed.") -> None:
        super().__init__(message)
        self.errors = dict(errors)

    def __str__(self) -> str:
        return f"{self.message} " + "; ".join(f"{name}: {text}" for name, text in self.errors.items())


class NotAuthenticated(UserError):
    """No valid ticket or token. The text never says which half of the credentials was wrong."""

    status = HTTPStatus.UNAUTHORIZED


class PermissionDenied(UserError):
    """The caller is known but lacks a privilege."""

    status = HTTPStatus.FORBIDDEN


class NotFound(UserError):
    """`what` names the object: raised as "WHAT does not exist"."""

    status = HTTPStatus.NOT_FOUND

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} does not exist")


class Conflict(UserError):
    """The object exists already, is in the wrong state, or has changed since it was read."""

    status = HTTPStatus.CONFLICT


class TooLarge(UserError):
    """An upload or a body is over its limit."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class TooManyRequests(UserError):
    """A rate limit was reached."""

    status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unsupported(UserError):
    """This host, kernel or engine cannot do it. The text says which feature is missing."""

    status = HTTPStatus.NOT_IMPLEMENTED


class GuestFault(ApplianceError):
    """A guest or container did something it must not. Only that guest is affected."""


class HostError(ApplianceError):
    """The host failed us. Built from an `OSError` by `from_os_error`, which names syscall and object."""

    @staticmethod
    def from_os_error(error: OSError, doing: str) -> HostError:
        """Wrap `error` met while `doing` ("open /var/lib/x"); a full disk becomes `NoSpace`. Use with `raise ... from`."""
        text = f"{doing}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return NoSpace(text)
        return HostError(text)


class CommandFailed(HostError):
    """A helper program exited non-zero, was killed, or was not found."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str) -> None:
        last_lines = " / ".join(line.strip() for line in stderr.strip().splitlines()[-3:])
        super().__init__(f"{argv[0]} exited with status {returncode}: {last_lines or 'no message'}")
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr


class TimedOut(HostError):
    """A named wait passed its limit."""

    status = HTTPStatus.GATEWAY_TIMEOUT

    def __init__(self, waiting_for: str, timeout_s: float) -> None:
        super().__init__(f"{waiting_for}: nothing within {timeout_s:g} s")
        self.timeout_s = timeout_s


class NoSpace(HostError):
    """A file system is full."""

    status = HTTPStatus.INSUFFICIENT_STORAGE


class ServiceStopping(HostError):
    """The appliance is shutting down and takes no new work."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
