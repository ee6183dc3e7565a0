"""The lock on a journal, by which one run at a time writes to an output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

from unet_deploy.errors import OutputBusyError

_LOCKED_BYTE = 2**40  # beyond what is written: Windows locks bytes against reading too


def lock_file(file: IO[bytes], path: Path) -> None:
    """Take the lock of an open journal, which the system lets go of when the process ends, however it ends.

    Raises
    ------
    OutputBusyError
        If another process has it.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OutputBusyError(
            f"another run is writing to {path.parent.parent}",
            f"it holds the lock of {path}: {error.strerror or error}",
            fix="wait until it ends, or choose another --output",
        ) from error
