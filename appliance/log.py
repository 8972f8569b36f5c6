"""Logging of the process: plain lines for people, JSON lines for machines; the object comes first in every message."""

from __future__ import annotations

import json
import logging
import sys
import time

MALFORMED_QUIET_S = 10.0


class MalformedRequests(logging.Filter):
    """Of aiohttp's records on requests that are no HTTP: one line in `MALFORMED_QUIET_S`, without the traceback.

    Anyone on the network can send them, and they are the sender's mistake.
    """

    def __init__(self) -> None:
        super().__init__()
        self._quiet_until = 0.0
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written; it may have been shortened."""
        error = record.exc_info[1] if record.exc_info else None
        if type(error).__module__ != "aiohttp.http_exceptions":  # this module stays free of imports
            return True
        if record.created < self._quiet_until:
            self._left_out += 1
            return False
        self._quiet_until = record.created + MALFORMED_QUIET_S
        more = f" ({self._left_out} more were not logged)" if self._left_out else ""
        self._left_out = 0
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg = f"malformed request: {record.getMessage()}: {type(error).__name__}{more}"
        record.args, record.exc_info, record.exc_text = None, None, None
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, logger, message, and `error` with the traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        row = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            row["error"] = self.formatException(record.exc_info)
        return json.dumps(row, ensure_ascii=False)


def setup(log_format: str, *, level: int = logging.INFO) -> None:
    """Send everything to stderr in `plain` or `json`. Third-party chatter below a warning is dropped."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else plain)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("appliance").setLevel(level)
    logging.getLogger("aiohttp.server").addFilter(MalformedRequests())
