"""Files that nobody but the user can have written: how they are read, and the key that the user's own are signed with.

1. A file is opened once, without following a link, and everything is asked of what was opened.
2. It must be a plain file of one name; on POSIX it and its folder belong to the user, and no other can write to them.
3. The key is 32 random bytes in the user's own data folder, made when something is first signed.

Windows keeps a user's folders to that user; there the signature alone tells.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

from unet_deploy.errors import UnsafeModelError

KEY_NAME, KEY_BYTES = "signing.key", 32
_IS_POSIX = os.name == "posix"
_OTHERS_WRITE, _OTHERS_READ = 0o022, 0o077
_EVERYBODY_WRITES = stat.S_IWOTH
_PATIENCE_S = 1.0
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # or a pipe would be waited for


def user_data_folder() -> Path:
    """Return the folder where this user's key and plans are kept; it need not exist."""
    home = Path.home()
    base = home / "AppData" / "Local" if sys.platform == "win32" else home / ".local" / "share"
    return base / "unet-deploy"


def read_private(path: Path, *, largest: int, is_trusted: bool, fix: str) -> bytes:
    """Return the bytes of a file that only the user can have written.

    Parameters
    ----------
    path
        The file; it must exist.
    largest
        How many bytes to expect at most.
    is_trusted
        Do not ask whose the file is.
    fix
        What to do if it is refused.

    Raises
    ------
    UnsafeModelError
        If it is a link, no plain file, has more than one name or too many bytes, or another user can write to it.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | _NO_WAIT)
    except OSError as error:
        if path.is_symlink():
            raise _refuse(path, "it is a link, and a link can be turned to another file", fix) from error
        raise
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode) or path.is_symlink():
            raise _refuse(path, "it is a link, or no plain file", fix)
        if facts.st_nlink > 1:
            raise _refuse(path, f"it has {facts.st_nlink} names (hard links), and can be changed through any", fix)
        if facts.st_size > largest:
            raise _refuse(path, f"it has {facts.st_size} bytes, at most {largest} were expected", fix)
        if not is_trusted:
            require_owned(path, facts, forbidden=_OTHERS_WRITE, fix=fix)
            require_private_folder(path.parent, fix=fix)
        return file.read(largest + 1)


def require_private_folder(folder: Path, *, fix: str) -> None:
    """Refuse a folder in which another user can replace files.

    Raises
    ------
    UnsafeModelError
        If it belongs to another user, or everybody can write to it.
    """
    require_owned(folder, folder.stat(), forbidden=_EVERYBODY_WRITES, fix=fix)


def require_owned(path: Path, facts: os.stat_result, *, forbidden: int, fix: str) -> None:
    """Refuse what another user owns, or may do to it what `forbidden` says.

    Raises
    ------
    UnsafeModelError
        If so; never on Windows, which has no such facts.
    """
    if sys.platform == "win32" or not _IS_POSIX:
        return
    if facts.st_uid != os.geteuid():
        raise _refuse(path, f"it belongs to user {facts.st_uid}, you are user {os.geteuid()}", fix)
    if facts.st_mode & forbidden:
        raise _refuse(path, f"others have access to it: mode {stat.S_IMODE(facts.st_mode):o}", fix)


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only the user can read or write, in one move."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        _create(partial, data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_key(folder: Path) -> bytes | None:
    """Return the user's key, None if there is none yet.

    Raises
    ------
    UnsafeModelError
        If others can read it, or it is none.
    """
    path = folder / KEY_NAME
    fix = f"delete {path}, and build your engines again"
    if not path.exists() and not path.is_symlink():
        return None
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        key = read_private(path, largest=KEY_BYTES, is_trusted=False, fix=fix)
        if len(key) == KEY_BYTES:
            break
        if time.monotonic() > deadline:
            raise _refuse(path, f"it has {len(key)} bytes, {KEY_BYTES} were expected", fix)
        time.sleep(0.01)  # another process is just making it
    require_owned(path, path.stat(), forbidden=_OTHERS_READ, fix=fix)
    return key


def make_key(folder: Path) -> bytes:
    """Return the user's key, made if there is none yet."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = read_key(folder)
    while key is None:
        with suppress(FileExistsError):  # another process was faster
            _create(folder / KEY_NAME, secrets.token_bytes(KEY_BYTES))
        key = read_key(folder)
    return key


def _create(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def _refuse(path: Path, why: str, fix: str) -> UnsafeModelError:
    return UnsafeModelError(f"{path} is not known to be yours", why, fix=fix)
