"""The first start: the first administrators and the key tickets are signed with.

`admin@pve` gets a password from `--admin-password-file`, else a generated one that is written to
`DATA_DIR/admin-password` (0600), which is removed when that password is changed. `root@pam` is the host's root, an
ordinary user with the same role. Both can be disabled or deleted once another administrator exists.
Later starts ignore the password file: to set a lost password, use the local command line as root.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import secrets
from dataclasses import replace
from pathlib import Path

from appliance.errors import HostError, InvalidParameter
from appliance.files import write_atomic
from appliance.services.directory import AclEntry, Directory, SubjectKind, User
from appliance.services.passwords import PASSWORD_MAX, check_new_password
from appliance.services.roles import ADMINISTRATOR
from appliance.services.tickets import KEY_BYTES
from appliance.state.store import Absent, Put, Store

log = logging.getLogger(__name__)

ADMIN = "admin@pve"
ROOT = "root@pam"
PASSWORD_FILE_NAME = "admin-password"  # noqa: S105  a file's name
KEY_KEY = "access/ticket-key"


def read_password_file(path: Path) -> str:
    """The first line of the file. Blocking. Raises `HostError`, `InvalidParameter` naming the file."""
    try:
        with path.open("rb") as file:
            line = file.read(16 * PASSWORD_MAX).partition(b"\n")[0].rstrip(b"\r")
    except OSError as error:
        raise HostError.from_os_error(error, f"admin password file {path}") from error
    try:
        return check_new_password(line.decode())
    except (UnicodeDecodeError, InvalidParameter) as error:
        reason = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.errors["password"]
        raise InvalidParameter({"admin-password-file": f"{path}: the password {reason}"}) from error


def write_password_file(data_dir: Path, password: str) -> Path:
    """Keep a generated password where only root can read it. Blocking. Raises `HostError`."""
    path = data_dir / PASSWORD_FILE_NAME
    write_atomic(path, f"{password}\n".encode(), mode=0o600)
    return path


def remove_password_file(data_dir: Path) -> None:
    """The generated password is no longer valid. Blocking; not an error when there is no file."""
    with contextlib.suppress(FileNotFoundError):
        try:
            (data_dir / PASSWORD_FILE_NAME).unlink()
        except PermissionError as error:
            log.warning("access: %s", error)


def first_directory(directory: Directory, password_hash: str) -> Directory:
    """The snapshot with the first administrators; unchanged when there are users already."""
    if directory.users:
        return directory
    users = {ADMIN: User(password=password_hash, comment="first administrator"), ROOT: User(comment="the host's root")}
    acl = [AclEntry(path="/", kind=SubjectKind.USER, subject=user_id, role=ADMINISTRATOR) for user_id in users]
    return replace(directory, users=users, acl=tuple(sorted([*directory.acl, *acl])))


async def ticket_key(store: Store) -> bytes:
    """The key all nodes sign tickets with; made at the first start. Raises `HostError` when it is damaged."""
    fresh = base64.b64encode(secrets.token_bytes(KEY_BYTES))
    await store.txn([Absent(KEY_KEY)], [Put(KEY_KEY, fresh)])
    document = await store.get(KEY_KEY)
    try:
        key = base64.b64decode(document.value if document is not None else b"", validate=True)
    except binascii.Error:
        key = b""
    if len(key) < KEY_BYTES:
        raise HostError(f"store: document {KEY_KEY} is damaged: delete it to have a new key made (ends all sessions)")
    return key
