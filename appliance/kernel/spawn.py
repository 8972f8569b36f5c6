"""posix_spawn(3): a child without copying this process's page tables, which fork(2) does (0.6 ms against 3 and more).

Descriptors this process opened are close-on-exec. Those it inherited itself (a supervisor's pipes) may not be: a child
that lives for days would keep them open, so they are closed in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterable, Mapping, Sequence


def inheritable(*, above: int = 2) -> list[int]:
    """Blocking (procfs). Descriptors above that number which a child would inherit."""
    found: list[int] = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - Path.iterdir would hold a descriptor of its own meanwhile
        with contextlib.suppress(OSError):  # the descriptor of this listing is gone
            if int(name) > above and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def posix_spawn(
    argv: Sequence[str], environment: Mapping[str, str], descriptors: Mapping[int, int], *, unwanted: Iterable[int] = ()
) -> int:
    """Start `argv` in a session of its own; `descriptors` maps the child's numbers to ours, `unwanted` are closed in it.

    Returns the pid, which the caller reaps. Raises `OSError` naming the program (ENOENT when it is not installed).
    """
    # a source that has the number of an earlier target would be overwritten, one that has its own stays close-on-exec
    above = max(descriptors, default=0) + 1
    sources = {theirs: fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, above) for theirs, ours in descriptors.items()}
    actions = [
        *((os.POSIX_SPAWN_DUP2, source, theirs) for theirs, source in sources.items()),
        *((os.POSIX_SPAWN_CLOSE, fd) for fd in unwanted if fd not in descriptors),
    ]
    try:
        return os.posix_spawnp(argv[0], list(argv), environment, file_actions=actions, setsid=True)
    except OSError as error:
        raise OSError(error.errno, f"posix_spawn {argv[0]}: {error.strerror}") from error
    finally:
        for source in sources.values():
            os.close(source)


def watch_child(pid: int) -> int:
    """A pidfd of a child just spawned. Raises `OSError` (no descriptor is free); the child has been killed and reaped
    then, for nobody could watch it."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise OSError(error.errno, f"pidfd_open {pid}: {error.strerror}") from error
