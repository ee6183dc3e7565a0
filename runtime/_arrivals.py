"""Which chunks of an array that is still being written have arrived.

1. A chunk has *arrived* when its file is there, may be whole, and was the same in two looks `settle_s` apart. Time is
   the caller's monotonic clock; the times of files are compared with each other only, since they may lie anywhere.
2. A file that has arrived may still be written again, in place or anew. What it was is kept, so that `changed` finds
   these afterwards; each then has to arrive once more.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from unet_deploy.runtime._chunk_files import ChunkFiles, ChunkNumber, is_file


class Arrivals:
    """What has arrived of the chunks of an array."""

    def __init__(self, files: ChunkFiles, wanted: npt.NDArray[np.bool_], *, settle_s: float) -> None:
        """Wait for the chunks that are True in `wanted`, one value a file."""
        self._settle_s = settle_s
        self._arrived = np.zeros(files.counts, np.bool_)
        self._kept = np.zeros(files.counts, np.int64)
        self._seen: dict[ChunkNumber, tuple[int, float]] = {}
        self.last_news = 0.0
        """When a file was last seen to appear, to change or to have arrived."""
        self.grow(files, wanted)

    def grow(self, files: ChunkFiles, wanted: npt.NDArray[np.bool_]) -> None:
        """Wait for chunks of a grid that has grown, too."""
        assert wanted.shape == files.counts, (wanted.shape, files.counts)
        more = [(0, now - before) for now, before in zip(files.counts, self._arrived.shape, strict=True)]
        self._arrived, self._kept = np.pad(self._arrived, more), np.pad(self._kept, more)
        self.files, self.wanted = files, wanted

    @property
    def absent(self) -> npt.NDArray[np.bool_]:
        """Which of the chunks that are wanted have not arrived."""
        return self.wanted & ~self._arrived

    def first_absent(self, count: int) -> list[str]:
        """Return the keys of the first of these."""
        return [self.files.key(number) for number in self._numbers(self.absent)[:count]]

    def arrived(self, axis: int, start: int) -> list[ChunkNumber]:
        """Return the chunks that have arrived, of those from `start` on along an axis."""
        beyond = self._arrived.copy()
        np.moveaxis(beyond, axis, 0)[:start] = False
        return self._numbers(beyond)

    def look(self, now: float) -> list[ChunkNumber]:
        """Look at the files, and return the chunks that have arrived since the last look."""
        arrived: list[ChunkNumber] = []
        for number, path in self.files.present(self.absent):
            known = known_by(path)
            if known is None:
                continue
            n_bytes, mark = known
            before, since = self._seen.get(number, (None, now))
            if mark != before:
                self._seen[number] = mark, now
                self.last_news = now
            elif now - since >= self._settle_s and self.files.is_whole(path, n_bytes):
                del self._seen[number]
                self._kept[number], self._arrived[number] = mark, True
                self.last_news = now
                arrived.append(number)
        return arrived

    def changed(self, now: float) -> Sequence[ChunkNumber]:
        """Return the chunks whose files are no longer what they were; these have to arrive once more."""
        found: list[ChunkNumber] = []
        for number in self._numbers(self._arrived):
            known = known_by(str(self.files.path(number)))
            if known is None or known[1] != self._kept[number]:
                found.append(number)
                self._arrived[number] = False
                self.last_news = now
        return found

    def _numbers(self, chosen: npt.NDArray[np.bool_]) -> list[ChunkNumber]:
        return [tuple(number) for number in np.argwhere(chosen).tolist()]


def known_by(path: str) -> tuple[int, int] | None:
    """Return a file's size, and one number for all that it is known by; None where it is gone, or no file.

    The size that a listing gives is not asked for: Windows brings it up to date only when the file is closed.
    """
    try:
        found = os.stat(path)  # noqa: PTH116  # a Path a file is slow
    except OSError:
        return None
    return (found.st_size, hash((found.st_size, found.st_mtime_ns, found.st_ino))) if is_file(found) else None
