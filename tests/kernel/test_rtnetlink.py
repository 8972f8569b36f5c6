"""Rules of the netlink client that the kernel keeps only when it is busy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.kernel.rtnetlink import NLM_F_DUMP_INTR, NLMSG_DONE, RTM_GETLINK, RTM_NEWLINK, RouteSocket

Message = tuple[int, int, bytes]
TORN: list[Message] = [(RTM_NEWLINK, NLM_F_DUMP_INTR, b"a"), (NLMSG_DONE, NLM_F_DUMP_INTR, b"")]
WHOLE: list[Message] = [(RTM_NEWLINK, 0, b"a"), (RTM_NEWLINK, 0, b"b"), (NLMSG_DONE, 0, b"")]


class BusyKernel(RouteSocket):
    """Answers dumps from a list; the last answer for ever."""

    def __init__(self, *answers: list[Message]) -> None:
        super().__init__()
        self._answers = list(answers)

    def _messages(self) -> Iterator[Message]:
        yield from self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def test_a_list_that_changed_while_it_was_read_is_asked_for_again() -> None:
    kernel = BusyKernel(TORN, TORN, WHOLE)
    try:
        assert kernel.dump(RTM_GETLINK, b"") == [b"a", b"b"]
    finally:
        kernel.close()


def test_a_list_that_changes_all_the_time_is_an_error() -> None:
    kernel = BusyKernel(TORN)
    try:
        with pytest.raises(OSError, match="all the time"):
            kernel.dump(RTM_GETLINK, b"")
    finally:
        kernel.close()
