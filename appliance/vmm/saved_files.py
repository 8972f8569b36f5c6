"""The saved machines of this host between two lives of the appliance: which files there are, and who has one. Blocking.

ID.saved        may be taken up
ID.taken        is being taken up: whoever dies then has left nothing that could be used a second time
ID.saved.part   is being written
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from appliance.errors import HostError
from appliance.model.guest import GuestId

log = logging.getLogger(__name__)


class SavedFiles:
    """Those in `directory`, which need not be there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, guest_id: GuestId) -> Path:
        """Where this guest's is, or is to be."""
        return self._directory / f"{guest_id}.saved"

    def ids(self) -> list[GuestId]:
        """Whose may be taken up."""
        return [GuestId(int(path.stem)) for path in self._directory.glob("*.saved") if path.stem.isdecimal()]

    def take(self, guest_id: GuestId) -> Path | None:
        """Claim it: nobody else can, now or after a crash. None when there is none; what a crash left is removed.

        Raises `HostError`.
        """
        taken, path = self._taken(guest_id), self.path(guest_id)
        try:
            if taken.exists():
                log.error("vm %d: the appliance was killed as it was taking it up: it has ended", guest_id)
                taken.unlink()
            _part(path).unlink(missing_ok=True)
            return path.rename(taken)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HostError.from_os_error(error, f"vm {guest_id}: take {path}") from error

    def give_back(self, guest_id: GuestId) -> None:
        """It was not taken up after all; nothing when it has been discarded meanwhile."""
        with contextlib.suppress(FileNotFoundError):
            self._taken(guest_id).rename(self.path(guest_id))

    def discard(self, guest_id: GuestId) -> None:
        """What was taken goes on elsewhere, or never. Raises `HostError`."""
        _remove(self._taken(guest_id))

    def forget(self, guest_id: GuestId) -> None:
        """Everything of this guest. Raises `HostError`."""
        for path in (self.path(guest_id), _part(self.path(guest_id)), self._taken(guest_id)):
            _remove(path)

    def _taken(self, guest_id: GuestId) -> Path:
        return self._directory / f"{guest_id}.taken"


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise HostError.from_os_error(error, f"remove {path}") from error
