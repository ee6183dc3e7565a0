"""Which blocks of a volume that is still being written can run: those whose chunks have arrived.

1. `Follower.numbers` gives their numbers, None while there are none. It ends when all were given, or when nothing has
   arrived for as long as the caller waits.
2. `take_back_changed` finds the files that changed after they had arrived: their blocks are given again, when they have
   arrived once more.
3. Where the volume grows, `numbers` also ends when there is more of it than the plan has; `grow` adds the blocks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unet_deploy.errors import ConfigurationError, InterruptedRunError
from unet_deploy.runtime._arrivals import Arrivals
from unet_deploy.runtime._block_chunks import find_block_chunks
from unet_deploy.runtime._chunk_files import ChunkFiles, ChunkNumber, describe_files
from unet_deploy.runtime._growth import growth_axis, whole_length
from unet_deploy.runtime._shape_watch import ShapeWatch
from unet_deploy.runtime._zarr_metadata import ITEM_BYTES, check_array, read_node
from unet_deploy.runtime.plan import SegmentationPlan
from unet_deploy.runtime.volume_info import VolumeInfo

SETTLE_S = 2.0
"""How long a file must be unchanged; network file systems show a change after a second or so."""
LOOK_S = 0.5
"""Between two looks at the files; more where a look takes long."""
LOOK_SHARE = 10
"""A look takes at most this part of the time."""
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """How a volume is followed: for how long without news, and when a file is taken to be written.

    `timeout_s` None waits for ever. `grows` says that the volume gets longer, along t or z, for as long as there are
    news.
    """

    timeout_s: float | None = None
    settle_s: float = SETTLE_S
    grows: bool = False

    def __post_init__(self) -> None:
        """Refuse times that cannot be meant.

        Raises
        ------
        ConfigurationError
            If a time is not above 0, or a volume that grows is to be waited for for ever.
        """
        if self.grows and self.timeout_s is None:
            raise ConfigurationError(
                "a volume that grows is to be followed without a time-out",
                "that nothing has come for so long is how its end is known",
                fix="--follow --grows --follow-timeout 600",
            )
        for name, value in (("timeout", self.timeout_s), ("settle time", self.settle_s)):
            if value is not None and not value > 0:
                raise ConfigurationError(
                    f"a {name} of {value:g} s came, more than 0 was expected", fix="--follow --follow-timeout 600"
                )


class Follower:
    """Gives the blocks of a plan as their chunks arrive. Not for use by several threads."""

    def __init__(
        self,
        info: VolumeInfo,
        plan: SegmentationPlan,
        channels: Sequence[int],
        wanted: Iterable[int],
        following: Following,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Follow a local Zarr volume.

        Parameters
        ----------
        info, plan, channels
            The volume, and what is read of it.
        wanted
            The blocks to give, in the order in which they should run.
        following
            How long to wait.
        clock
            Seconds, which never go back.
        """
        self._following, self._clock = following, clock
        self._info, self._plan, self._channels = info, plan, channels
        axis = info.axes.index(growth_axis(info)) if following.grows else None
        # A last block that is not whole was planned since nothing came for long: this is taken as the volume's end.
        is_at_end = axis is not None and growth_axis(info) == "z" and info.shape[axis] % plan.block_shape[0] > 0
        self._axis = None if is_at_end else axis
        self._length = self._planned_length
        blocks = np.fromiter(wanted, np.int64)
        self._rank = np.full(plan.n_blocks, -1, np.int64)
        self._rank[blocks] = np.arange(len(blocks))
        self._is_given = np.zeros(plan.n_blocks, np.bool_)
        files = _files_of(info)
        self._chunks = find_block_chunks(plan, info.axes, files, channels)
        self._missing = self._chunks.count_files()
        self._arrivals = Arrivals(files, self._chunks.needed(blocks.tolist()), settle_s=following.settle_s)
        self._shape = ShapeWatch(info, settle_s=following.settle_s)
        self._ready: deque[int] = deque()
        self._later: deque[tuple[float, int]] = deque()
        self._next_look: float | None = None
        self.n_wanted = len(blocks)
        self.n_waiting = len(blocks)
        """Blocks whose chunks have not all arrived."""

    def numbers(self) -> Iterator[int | None]:
        """Give blocks whose chunks have arrived, each once; None where there is none just now.

        Returns
        -------
        iterator of int or None
            Ends when all were given, or when there were no news for as long as is waited: then `n_waiting` is not 0.
            Of a volume that grows, ends when it `has_grown`, or after no news.

        Raises
        ------
        ReadError
            If the volume's shape is no longer what it was.
        """
        if self._next_look is None:
            self._arrivals.last_news = self._next_look = self._clock()
        while self._ready or self._later or self.n_waiting or self._axis is not None:
            if not self._ready:
                self._look_when_due()
            if self._ready:
                yield self._ready.popleft()
            elif self.has_grown or (not self._later and self._is_silent()):
                return
            else:
                yield None

    @property
    def has_grown(self) -> bool:
        """Whether more of a volume that grows is there, in whole chunks and blocks, than the plan has."""
        return self._axis is not None and self.whole_length > self._planned_length

    @property
    def whole_length(self) -> int:
        """How long a volume that grows is by now, in whole chunks and blocks."""
        return whole_length(self._info, self._plan, self._length)

    def last_length(self) -> int | None:
        """Take a volume that grew to be finished; return its length, None if the plan has all of it."""
        is_longer, self._axis = self._axis is not None and self._length > self._planned_length, None
        return self._length if is_longer else None

    @property
    def _planned_length(self) -> int:
        return 0 if self._axis is None else self._info.shape[self._axis]

    def grow(self, info: VolumeInfo, plan: SegmentationPlan) -> None:
        """Follow the longer volume, with the blocks that come after those of the plan up to now."""
        before, old = self._plan.n_blocks, self._missing
        more = plan.n_blocks - before
        self._info, self._plan = info, plan
        files = self._arrivals.files.of_shape(info.shape)
        self._chunks = find_block_chunks(plan, info.axes, files, self._channels)
        self._rank = np.concatenate([self._rank, np.arange(before, plan.n_blocks)])
        self._is_given = np.concatenate([self._is_given, np.zeros(more, np.bool_)])
        self._missing = self._chunks.count_files()
        self._missing[tuple(map(slice, old.shape))] = old
        self.n_wanted, self.n_waiting = self.n_wanted + more, self.n_waiting + more
        needed = self._chunks.needed(range(before, plan.n_blocks))
        known = self._arrivals.wanted
        needed[tuple(map(slice, known.shape))] |= known
        self._arrivals.grow(files, needed)
        self._arrivals.last_news = self._clock()
        self._shape = ShapeWatch(info, settle_s=self._following.settle_s)
        axis = info.axes.index(growth_axis(info))
        first = self._chunks.reads[info.axes[axis]][old.shape["tz".index(info.axes[axis])]].start
        self._take(self._arrivals.arrived(axis, first), from_block=before)

    def is_wanted(self, index: int) -> bool:
        """Tell whether a block is one of those that are given."""
        return bool(self._rank[index] >= 0)

    def take_back_changed(self) -> list[int]:
        """Take back the blocks that read a file that changed after it had arrived, and return them."""
        all_taken: list[int] = []
        for number in self._arrivals.changed(self._clock()):
            place = self._chunks.blocks_of(number)
            self._missing[place] += 1
            taken = self._flat(place)
            taken = taken[self._is_given[taken]]
            self._is_given[taken] = False
            all_taken += taken.tolist()
        self.n_waiting += len(all_taken)
        return all_taken

    def give_again(self, blocks: Iterable[int]) -> None:
        """Give blocks again, after as long as files have to be unchanged."""
        due = self._clock() + self._following.settle_s
        self._later.extend((due, index) for index in blocks)

    def require_all(self, output: Path) -> None:
        """Say that some blocks still wait.

        Raises
        ------
        InterruptedRunError
            If there are such blocks.
        """
        if not self.n_waiting:
            return
        absent, files = int(self._arrivals.absent.sum()), self._arrivals.files
        keys = self._arrivals.first_absent(_SHOWN)
        more = f" and {absent - len(keys)} more" if absent > len(keys) else ""
        raise InterruptedRunError(
            f"nothing new arrived for {self._following.timeout_s:g} s, "
            f"and {self.n_waiting} of {self.n_wanted} blocks wait for chunks",
            f"absent, or not whole: {', '.join(keys)}{more} in {files.folder}",
            f"what is done is in {output}, which is no result yet",
            fix="the same command goes on where it stopped; without --follow, absent chunks are taken as "
            f"the fill value {self._info.fill_value:g}",
        )

    def _look_when_due(self) -> None:
        now = self._clock()
        while self._later and now >= self._later[0][0]:
            self._ready.append(self._later.popleft()[1])
        assert self._next_look is not None
        if (self.n_waiting or self._axis is not None) and now >= self._next_look:
            length = self._shape.length(now, self._axis)
            if length > self._length:
                self._length, self._arrivals.last_news = length, now
            self._take(self._arrivals.look(now))
            self._next_look = now + max(LOOK_S, LOOK_SHARE * (self._clock() - now))

    def _take(self, arrived: Sequence[ChunkNumber], *, from_block: int = 0) -> None:
        found: list[int] = []
        for number in arrived:
            flat = self._flat(self._chunks.blocks_of(number))
            flat = flat[flat >= from_block]
            self._missing.flat[flat] -= 1
            found += flat[self._missing.flat[flat] == 0].tolist()
        ready = sorted((i for i in found if self._rank[i] >= 0 and not self._is_given[i]), key=self._rank.__getitem__)
        self._is_given[ready] = True
        self.n_waiting -= len(ready)
        self._ready.extend(ready)

    def _flat(self, place: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.asarray(np.ravel_multi_index(place, self._missing.shape)).ravel()

    def _is_silent(self) -> bool:
        timeout_s = self._following.timeout_s
        if timeout_s is None:
            return False
        return self._clock() - self._arrivals.last_news >= max(timeout_s, self._following.settle_s)


def _files_of(info: VolumeInfo) -> ChunkFiles:
    node = read_node(Path(info.path) / info.array_path)
    assert node is not None, info.path  # it was opened just now
    return describe_files(check_array(node, dtypes=ITEM_BYTES), info.shape)
