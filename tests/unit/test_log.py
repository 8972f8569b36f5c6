"""What the network sends must not fill the log."""

from __future__ import annotations

import logging

import pytest
from aiohttp.http_exceptions import LineTooLong

from appliance.log import MALFORMED_QUIET_S, MalformedRequests


def record_of(error: Exception, *, at_s: float) -> logging.LogRecord:
    record = logging.LogRecord(
        "aiohttp.server",
        logging.ERROR,
        "x.py",
        1,
        "Error handling request from %s",
        ("10.0.0.9",),
        (type(error), error, None),
    )
    record.created = at_s
    return record


def test_a_malformed_request_is_one_line_without_a_traceback() -> None:
    record = record_of(LineTooLong(b"a" * 9000, 8190), at_s=0.0)
    assert MalformedRequests().filter(record)
    assert record.exc_info is None
    assert record.levelno == logging.WARNING
    assert "10.0.0.9" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 300


def test_many_malformed_requests_are_one_line_and_a_count() -> None:
    quiet = MalformedRequests()
    assert quiet.filter(record_of(LineTooLong(b"a", 1), at_s=0.0))
    assert not any(quiet.filter(record_of(LineTooLong(b"a", 1), at_s=1.0)) for _ in range(50))
    last = record_of(LineTooLong(b"a", 1), at_s=MALFORMED_QUIET_S + 1)
    assert quiet.filter(last)
    assert "50 more" in last.getMessage()


@pytest.mark.parametrize("error", [RuntimeError("ours"), OSError("host")])
def test_our_own_mistakes_keep_their_traceback(error: Exception) -> None:
    record = record_of(error, at_s=0.0)
    assert MalformedRequests().filter(record)
    assert record.exc_info is not None
    assert record.levelno == logging.ERROR
