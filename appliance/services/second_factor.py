"""Second factors of users: what `/access/tfa` does. Every method checks its caller; the arithmetic is in `totp.py`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

import msgspec

from appliance.clock import Clock
from appliance.errors import Conflict, InvalidParameter, NotFound, Unsupported
from appliance.services import totp
from appliance.services.directory import Directory, Totp, User
from appliance.services.directory_store import DirectoryStore
from appliance.services.guard import Guard
from appliance.services.identity import Identity
from appliance.services.users import UserService

DESCRIPTION_LIMIT = 255

Reply = dict[str, object]


class SecondFactorService:
    """TOTP generators and recovery keys."""

    def __init__(self, store: DirectoryStore, guard: Guard, users: UserService, clock: Clock) -> None:
        self._store = store
        self._guard = guard
        self._users = users
        self._clock = clock

    def list_all(self, caller: Identity) -> list[Reply]:
        """The entries of every user the caller may see who has some."""
        visible = self._guard.users_with(caller, "User.Modify", "Sys.Audit")
        found: list[Reply] = []
        for user_id, user in sorted(self._store.directory.users.items()):
            entries = _entries(user)
            if entries and (visible is None or user_id in visible):
                row: Reply = {"userid": user_id, "entries": entries}
                found.append({**row, "totp-locked": True} if totp.locked(user) else row)
        return found

    def of_user(self, caller: Identity, user_id: str) -> list[Reply]:
        """One user's entries. Raises `NotFound`."""
        self._check_sees(caller, user_id)
        return _entries(self._store.directory.user(user_id))

    def get(self, caller: Identity, user_id: str, entry_id: str) -> Reply:
        """One entry. Raises `NotFound`."""
        for entry in self.of_user(caller, user_id):
            if entry["id"] == entry_id:
                return entry
        raise NotFound(f"second factor '{entry_id[:64]}' of '{user_id}'")

    def types(self, caller: Identity, user_id: str) -> Sequence[str]:
        """Which kinds of second factor the user has."""
        return sorted({str(entry["type"]) for entry in self.of_user(caller, user_id)})

    async def add(
        self,
        caller: Identity,
        user_id: str,
        kind: str,
        *,
        description: str = "",
        uri: str | None = None,
        value: str | None = None,
        password: str | None = None,
    ) -> Reply:
        """Add a TOTP generator (its `uri`, and as `value` a present code of it) or make recovery keys (told only now)."""
        if len(description) > DESCRIPTION_LIMIT:
            raise InvalidParameter({"description": f"longer than {DESCRIPTION_LIMIT} characters"})
        self._check_changes(caller, user_id)
        await self._users.confirm(caller, user_id, password, parameter="password")
        match kind:
            case "totp":
                return await self._add_totp(caller, user_id, description, uri, value)
            case "recovery":
                return await self._add_recovery(caller, user_id)
        raise Unsupported(f"second factors of type '{kind[:32]}' are not available: use totp or recovery")

    async def _add_totp(
        self, caller: Identity, user_id: str, description: str, uri: str | None, value: str | None
    ) -> Reply:
        if uri is None or value is None:
            missing = {"totp": uri, "value": value}
            raise InvalidParameter(
                {name: "is required for type totp" for name, given in missing.items() if given is None}
            )
        now = self._clock.now()
        entry = totp.parse_uri(uri, description=description, now=now)
        if (counter := totp.matching_counter(entry, value.strip(), now)) is None:
            raise InvalidParameter({"value": "is not the present code of this generator"})
        entry, entry_id = msgspec.structs.replace(entry, last_counter=counter), str(uuid.uuid4())

        def change(user: User) -> User:
            if len(user.totp) >= totp.TOTP_LIMIT:
                raise Conflict(f"user '{user_id}' has {totp.TOTP_LIMIT} generators already")
            return msgspec.structs.replace(user, totp={**user.totp, entry_id: entry})

        await self._edit(caller, user_id, change)
        return {"id": entry_id}

    async def _add_recovery(self, caller: Identity, user_id: str) -> Reply:
        recovery, keys = totp.new_recovery(self._clock.now())

        def change(user: User) -> User:
            if user.recovery is not None:
                raise Conflict(f"user '{user_id}' has recovery keys already: delete them first")
            return msgspec.structs.replace(user, recovery=recovery)

        await self._edit(caller, user_id, change)
        return {"id": totp.RECOVERY_ID, "recovery": keys}

    async def update(
        self,
        caller: Identity,
        user_id: str,
        entry_id: str,
        *,
        description: str | None = None,
        enable: bool | None = None,
        password: str | None = None,
    ) -> None:
        """Describe, enable or disable an entry."""
        self._check_changes(caller, user_id)
        await self._users.confirm(caller, user_id, password, parameter="password")
        given = {"description": description, "enable": enable}
        changes = {name: value for name, value in given.items() if value is not None}

        def change(user: User) -> User:
            if entry_id == totp.RECOVERY_ID and user.recovery is not None:
                changes.pop("description", None)
                return msgspec.structs.replace(user, recovery=msgspec.structs.replace(user.recovery, **changes))
            entry = _totp_entry(user, user_id, entry_id)
            return msgspec.structs.replace(
                user, totp={**user.totp, entry_id: msgspec.structs.replace(entry, **changes)}
            )

        await self._edit(caller, user_id, change)

    async def delete(self, caller: Identity, user_id: str, entry_id: str, *, password: str | None = None) -> None:
        """Delete an entry. Raises `NotFound`."""
        self._check_changes(caller, user_id)
        await self._users.confirm(caller, user_id, password, parameter="password")

        def change(user: User) -> User:
            if entry_id == totp.RECOVERY_ID and user.recovery is not None:
                return msgspec.structs.replace(user, recovery=None)
            _totp_entry(user, user_id, entry_id)
            return msgspec.structs.replace(user, totp={key: item for key, item in user.totp.items() if key != entry_id})

        await self._edit(caller, user_id, change)

    async def unlock(self, caller: Identity, user_id: str) -> bool:
        """Let the user try codes again; returns whether they were locked."""
        was_locked = False

        def edit(directory: Directory) -> Directory:
            nonlocal was_locked
            self._guard.check_user_group(caller, user_id, "User.Modify")
            self._guard.check_not_stronger(caller, user_id)
            user = directory.user(user_id)
            was_locked = totp.locked(user)
            return directory.with_user(user_id, msgspec.structs.replace(user, totp_failures=0))

        await self._store.edit(edit)
        return was_locked

    async def _edit(self, caller: Identity, user_id: str, change: Callable[[User], User]) -> None:
        def edit(directory: Directory) -> Directory:
            self._check_changes(caller, user_id)
            return directory.with_user(user_id, change(directory.user(user_id)))

        await self._store.edit(edit)

    def _check_sees(self, caller: Identity, user_id: str) -> None:
        if not self._guard.is_self(caller, user_id):
            self._guard.check_user_group(caller, user_id, "User.Modify", "Sys.Audit")

    def _check_changes(self, caller: Identity, user_id: str) -> None:
        self._guard.check_no_token(caller)
        if not self._guard.is_self(caller, user_id):
            self._guard.check_user_group(caller, user_id, "User.Modify")
            self._guard.check_not_stronger(caller, user_id)
        self._store.directory.user(user_id)


def _entries(user: User) -> list[Reply]:
    found: list[Reply] = [
        {"id": key, "type": "totp", "description": item.description, "created": item.created, "enable": item.enable}
        for key, item in sorted(user.totp.items())
    ]
    if (keys := user.recovery) is not None:
        left = sum(1 for digest in keys.digests if digest)
        text = f"{left} of {len(keys.digests)} keys left"
        entry: Reply = {"id": totp.RECOVERY_ID, "type": "recovery", "description": text}
        found.append({**entry, "created": keys.created, "enable": keys.enable})
    return found


def _totp_entry(user: User, user_id: str, entry_id: str) -> Totp:
    if (entry := user.totp.get(entry_id)) is None:
        raise NotFound(f"second factor '{entry_id[:64]}' of '{user_id}'")
    return entry
