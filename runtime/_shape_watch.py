"""The shape of an array that is still being written: its document is read again when its file has changed."""

from __future__ import annotations

from pathlib import Path

from unet_deploy.errors import InputDataError, ReadError
from unet_deploy.runtime._arrivals import known_by
from unet_deploy.runtime._zarr_metadata import ITEM_BYTES, check_array, read_node
from unet_deploy.runtime.volume_info import VolumeInfo


class ShapeWatch:
    """Watches the document of a local array."""

    def __init__(self, info: VolumeInfo, *, settle_s: float) -> None:
        """Watch a volume that was opened."""
        self._folder = Path(info.path) / info.array_path
        self._file = self._folder / ("zarr.json" if info.zarr_format == 3 else ".zarray")
        self._opened = self._shape = info.shape
        self._settle_s = settle_s
        self._mark: tuple[int, int] | None = None
        self._unread_since: float | None = None

    def look(self, now: float) -> tuple[int, ...]:
        """Return the shape as the document says now.

        A document that cannot be read is being written; it is an error once it has been so for the settle time.

        Raises
        ------
        InputDataError
            If it cannot be read, or is not what can be segmented.
        """
        mark = known_by(str(self._file))
        if mark is None or mark == self._mark:
            self._require_soon(now, None if mark else self._gone())
            return self._shape
        try:
            node = read_node(self._folder)
            if node is None or node.kind != "array":
                raise self._gone()
            self._shape = check_array(node, dtypes=ITEM_BYTES).shape
        except InputDataError as error:
            self._require_soon(now, error)
        else:
            self._mark, self._unread_since = mark, None
        return self._shape

    def length(self, now: float, axis: int | None) -> int:
        """Return the length along an axis that may grow, 0 if it is None; every other must be what it was.

        Raises
        ------
        InputDataError
            If the document says another shape, or cannot be read.
        """
        shape = self.look(now)
        expected = list(self._opened)
        if axis is not None and len(shape) == len(expected):
            expected[axis] = max(expected[axis], shape[axis])
        if list(shape) != expected:
            raise ReadError(
                f"the volume's shape is {list(shape)} now, it was {list(self._opened)} when it was opened",
                f"{self._file} was written again while it was followed",
                fix="follow a volume that gets longer along its first axis, t or z, with --grows; "
                "segment any other when it is finished",
            )
        return 0 if axis is None else shape[axis]

    def _require_soon(self, now: float, error: InputDataError | None) -> None:
        if error is None:
            self._unread_since = None
            return
        if self._unread_since is None:
            self._unread_since = now
        elif now - self._unread_since >= self._settle_s:
            raise error

    def _gone(self) -> ReadError:
        return ReadError(
            "the volume is no longer there",
            f"{self._file} was expected",
            fix="do not move or delete a volume while it is segmented",
        )
