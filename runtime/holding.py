"""Hold a run while it should not go on, instead of failing: somebody asked for a pause, or the disk is nearly full.

1. `reason_to_hold` says why not to begin another block now, None to go on.
2. `hold` stands between the blocks and who submits them: while there is a reason it gives None, which means "nothing to
   do just now". What is in flight is finished; nothing is lost, and a held run can be stopped like any other.
3. Memory cannot be waited for: `check_memory` refuses a run that would not fit, before it begins.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from unet_deploy.errors import DeviceMemoryError
from unet_deploy.runtime.machine import Memory

logger = logging.getLogger(__name__)

MIN_FREE_BYTES = 2**28
"""What is left free on the output's disk, for everybody else; a run pauses there."""


def reason_to_hold(
    folder: Path, *, min_free_bytes: int, should_pause: Callable[[], bool] = lambda: False
) -> str | None:
    """Return why no block should begin now, in words; None if there is no reason.

    Parameters
    ----------
    folder
        On the disk that is written to.
    min_free_bytes
        What must be free there.
    should_pause
        Whether somebody asked for a pause.
    """
    if should_pause():
        return "a pause was asked for"
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # a share that is away for a moment: writing says so, if it lasts
        return None
    if free < min_free_bytes:
        return (
            f"{free / 1e9:.2f} GB are free at {folder}, {min_free_bytes / 1e9:.2f} GB are to stay free: free some space"
        )
    return None


def hold(order: Iterable[int | None], reason: Callable[[], str | None]) -> Iterator[int | None]:
    """Yield the numbers of blocks, and None for as long as there is a reason to hold; the log says it once each time.

    >>> reasons = iter([None, "the disk is full", "the disk is full", None])
    >>> list(hold([7, 8], lambda: next(reasons)))
    [7, None, None, 8]
    """
    is_held = False
    for index in order:
        while (why := reason()) is not None:
            if not is_held:
                logger.warning("paused: %s", why)
            is_held = True
            yield None
        if is_held:
            logger.warning("going on")
        is_held = False
        yield index


def check_memory(peak_bytes: int, memory: Memory, *, held_bytes: int = 0) -> None:
    """Refuse a run that needs more memory than there is.

    Parameters
    ----------
    peak_bytes
        What the plan says one process will hold.
    memory
        Of this machine; what it does not tell is not checked.
    held_bytes
        What this process holds already, which the peak counts too.

    Raises
    ------
    DeviceMemoryError
        If less is available.
    """
    available = None if memory.available_bytes is None else memory.available_bytes + held_bytes
    known = [size for size in (available, memory.limit_bytes) if size is not None]
    if known and min(known) < peak_bytes:
        raise DeviceMemoryError(
            f"the run may need {peak_bytes / 1e9:.1f} GB of memory, {min(known) / 1e9:.1f} GB are available",
            "for activations of a tile, decoded chunks and blocks in flight, as planned",
            fix=f"close other programs, or plan smaller with --max-memory {max(int(min(known) * 0.8 / 1e6), 1)}MB; "
            "--no-space-check if you know better",
        )
