"""A file system that fails on purpose: opening a file whose path matches raises an OSError, as often as told.

Python tells audit hooks of every `open` before it happens, whoever asks: zarr, tifffile or ours. So nothing is patched.
So it does of files that are to be deleted, and of folders that are to be looked into.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Event = Literal["open", "os.remove", "os.scandir"]


@dataclass
class Fault:
    """Files whose path matches `pattern` fail to open `times` times each, the first `spared` openings aside.

    `failed` counts how often each did. Of another `event` than "open", `is_for_writing` says nothing.
    """

    pattern: re.Pattern[str]
    code: int
    times: int
    is_for_writing: bool
    spared: int
    event: Event = "open"
    failed: dict[str, int] = field(default_factory=dict)


_faults: list[Fault] = []
_lock = threading.Lock()
_is_installed = False


def _fail(event: str, arguments: tuple[object, ...]) -> None:
    if not _faults or event not in ("open", "os.remove", "os.scandir"):
        return
    place, mode, flags = (*arguments[:1], None, None) if event != "open" else (*arguments, None, None)[:3]
    if not isinstance(place, str | os.PathLike):
        return
    path = os.fspath(place)
    if not isinstance(path, str):
        return
    path = path.replace("\\", "/")
    is_writing = any(c in mode for c in "wax+") if isinstance(mode, str) else bool(int(str(flags or 0)) & os.O_WRONLY)
    with _lock:
        for fault in _faults:
            if fault.event == event and fault.is_for_writing == is_writing and fault.pattern.search(path):
                count = fault.failed.get(path, 0)
                if fault.spared > 0:
                    fault.spared -= 1
                elif count < fault.times:
                    fault.failed[path] = count + 1
                    raise OSError(fault.code, os.strerror(fault.code), path)


@contextmanager
def failing(
    pattern: str,
    *,
    times: int = 10**9,
    code: int = errno.EIO,
    writing: bool = False,
    spared: int = 0,
    event: Event = "open",
) -> Iterator[Fault]:
    """Let files whose path (with slashes) matches fail to open for reading, or for `writing`; or another event fail."""
    global _is_installed  # noqa: PLW0603  # an audit hook stays for good
    if not _is_installed:
        sys.addaudithook(_fail)
        _is_installed = True
    fault = Fault(re.compile(pattern), code, times, writing, spared, event)
    _faults.append(fault)
    try:
        yield fault
    finally:
        _faults.remove(fault)
