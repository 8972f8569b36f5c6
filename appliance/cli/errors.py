"""What the command line can end with. The numbers are promised to scripts."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit statuses of `appliance`."""

    OK = 0
    FAILED = 1  # the appliance or a task reported a failure
    USAGE = 2  # wrong arguments, or parameters the appliance refused
    DENIED = 3  # not logged in, or a privilege is missing
    NOT_FOUND = 4
    CONFLICT = 5  # exists already, wrong state, changed by others
    UNREACHABLE = 6  # no appliance there, or not the one with that certificate
    INTERRUPTED = 130  # Ctrl-C; a task that was waited for goes on


class CliError(Exception):
    """Ends the command with `status` after its text was shown."""

    def __init__(self, message: str, status: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


STATUS_OF_HTTP = {400: Exit.USAGE, 401: Exit.DENIED, 403: Exit.DENIED, 404: Exit.NOT_FOUND, 409: Exit.CONFLICT,
                  501: Exit.USAGE}  # fmt: skip
