"""A read that fails is tried again, twice, before its block has failed.

1. Tried again is what may pass: a failing disk or network drive, a stale handle, a time-out, too many open files, and
   on Windows a file that another program holds.
2. What stays as it is is not: nothing there, no right to read it, no such kind of file.
3. Only the reading of bytes is tried again, never their decoding: the same bytes give the same error.

A server that cannot be reached or is busy is asked again for longer, by obstore itself (`_remote`); here it is only
asked again for what broke off half way, which obstore leaves to its caller.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

PAUSES_S = (0.1, 0.5)
"""Before the second and the third try; after it the error stands."""
_WILL_NOT_PASS = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO}
)


def may_pass(error: Exception) -> bool:
    """Tell whether a read of a file that failed so may succeed a moment later."""
    if not isinstance(error, OSError):
        return False
    if isinstance(error, PermissionError):
        return sys.platform == "win32"  # what a program that writes, or looks for viruses, makes others see
    return error.errno is not None and error.errno not in _WILL_NOT_PASS


def read_again(read: Callable[[], Value], *, is_passing: Callable[[Exception], bool] = may_pass) -> Value:
    """Return what `read` returns; an error that may pass is the caller's only after the last try."""
    for pause_s in PAUSES_S:
        try:
            return read()
        except Exception as error:
            if not is_passing(error):
                raise
            _note(error, pause_s)
        time.sleep(pause_s)
    return read()


async def read_again_async(
    read: Callable[[], Awaitable[Value]], *, is_passing: Callable[[Exception], bool] = may_pass
) -> Value:
    """Return what `read` gives when awaited, as `read_again` does; others are served in the pauses."""
    for pause_s in PAUSES_S:
        try:
            return await read()
        except Exception as error:
            if not is_passing(error):
                raise
            _note(error, pause_s)
        await asyncio.sleep(pause_s)
    return await read()


def _note(error: Exception, pause_s: float) -> None:
    logger.warning("a read failed, and is tried again in %.1f s: %s", pause_s, error)
