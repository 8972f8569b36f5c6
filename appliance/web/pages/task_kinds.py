"""Kinds of tasks by their words, for filters: "Start" is what starts a VM and what starts a container. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from appliance.web.pages.render import TASK_WORDS

if TYPE_CHECKING:
    from appliance.services.task_records import TaskInfo


def words() -> Sequence[str]:
    """Every kind, by the alphabet."""
    return sorted(set(TASK_WORDS.values()))


def words_of(tasks: Iterable[TaskInfo]) -> Sequence[str]:
    """The kinds of these tasks, by the alphabet."""
    return sorted({TASK_WORDS.get(task.type, task.type) for task in tasks})


def types_of(word: str) -> Sequence[str]:
    """The types a kind stands for; a type without a word is a kind of its own, "" is every kind."""
    if not word:
        return ()
    return [each for each, own in TASK_WORDS.items() if own == word] or [word]
