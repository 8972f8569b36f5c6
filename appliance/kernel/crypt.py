"""crypt(3) of libcrypt (libxcrypt on Debian): password hashes that guests' own login programs verify.

Not for the appliance's own passwords: those are argon2 (`services/access.py`). Reentrant; any thread may enter.
"""

from __future__ import annotations

import ctypes
import functools
import os

from appliance.errors import HostError

_DATA_BYTES = 32768  # crypt_rn(3): sizeof(struct crypt_data), fixed for ever by libxcrypt's ABI
_OUTPUT_BYTES = 192  # CRYPT_GENSALT_OUTPUT_SIZE, crypt_gensalt(3)
_SALT_ENTROPY_BYTES = 16
PASSWORD_LIMIT_BYTES = 511  # CRYPT_MAX_PASSPHRASE_SIZE is 512 with the final NUL


def sha512_crypt(password: str) -> str:
    """`$6$SALT$HASH` with a fresh salt. Raises `ValueError` over the length limit, `HostError` without libcrypt."""
    phrase = password.encode()
    if len(phrase) > PASSWORD_LIMIT_BYTES:
        raise ValueError(f"a password may have at most {PASSWORD_LIMIT_BYTES} bytes")
    return crypt_rn(phrase, _gensalt(b"$6$"))


def verify(password: str, password_hash: str) -> bool:
    """Whether `password` has this crypt(3) hash."""
    try:
        return crypt_rn(password.encode(), password_hash.encode()) == password_hash
    except HostError:
        return False


def crypt_rn(phrase: bytes, setting: bytes) -> str:
    """The hash of `phrase` under `setting` (a salt or a whole hash). Raises `HostError` when libcrypt refuses it."""
    data = ctypes.create_string_buffer(_DATA_BYTES)
    # SAFETY: `data` is ours, zeroed, and outlives the call; the returned pointer points into it and is copied at once
    result = _library().crypt_rn(phrase, setting, data, _DATA_BYTES)
    if not result:
        raise HostError("crypt_rn: the hash method is not supported by libcrypt")
    return bytes(result).decode("ascii")


def _gensalt(prefix: bytes) -> bytes:
    output = ctypes.create_string_buffer(_OUTPUT_BYTES)
    entropy = os.urandom(_SALT_ENTROPY_BYTES)
    # SAFETY: `output` and `entropy` are ours and outlive the call, with their true lengths
    result = _library().crypt_gensalt_rn(prefix, 0, entropy, _SALT_ENTROPY_BYTES, output, _OUTPUT_BYTES)
    if not result:
        raise HostError(f"crypt_gensalt_rn: no method {prefix.decode()}")
    return bytes(result)


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libcrypt.so.1")
    except OSError as error:
        raise HostError("libcrypt.so.1: cannot be loaded") from error
    library.crypt_rn.restype = ctypes.c_char_p
    library.crypt_rn.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]
    library.crypt_gensalt_rn.restype = ctypes.c_char_p
    library.crypt_gensalt_rn.argtypes = [
        ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_int,
    ]  # fmt: skip
    return library
