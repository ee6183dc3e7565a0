"""Segment a volume that is still being written: what a run does for that, from the first chunk to the last.

1. `wait_for_volume`, before the volume is opened: its documents may not be there yet.
2. `require_followable`, once it is, and `begin_following`, once it is known where the run writes.
3. `follow_blocks` in place of a single pass over all blocks. A block runs when its chunks have arrived (`_follower`).
   Then the blocks of files that changed afterwards run again, and a few times those that failed, since their chunks
   may have been half written. So the result is that of a run on the finished volume, if it was finished by then, and
   what an earlier run has done was not written again since: files are watched by the run that reads them.
4. Of a volume that grows, the output and the journal grow with it (`_growth`).

Only files of a local Zarr store can be watched. Chunks that a writer leaves out, since they hold nothing but the fill
value, look like chunks that are yet to come: after the time-out, a run without following takes them as that value.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unet_deploy.card import ModelCard
from unet_deploy.errors import (
    InputDataError,
    InterruptedRunError,
    NotAVolumeError,
    ReadError,
    UnsupportedMetadataError,
    UsageError,
    VolumeNotFoundError,
)
from unet_deploy.runtime._follower import LOOK_S, Follower, Following
from unet_deploy.runtime._growth import (
    at_length,
    begin_at,
    extend_output,
    growth_axis,
    length_now,
    reopen_patiently,
)
from unet_deploy.runtime._remote import as_location
from unet_deploy.runtime._tiff import is_tiff
from unet_deploy.runtime.journal import Journal, read_journal
from unet_deploy.runtime.layout import OutputSpec
from unet_deploy.runtime.normalise import needs_statistics
from unet_deploy.runtime.preparation import Preparation
from unet_deploy.runtime.region import Region
from unet_deploy.runtime.volume_info import VolumeInfo

__all__ = [
    "Followed",
    "Following",
    "begin_following",
    "follow_blocks",
    "require_followable",
    "wait_for_volume",
]

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a block is run before it counts as failed."""
_NOT_YET = (VolumeNotFoundError, NotAVolumeError, UnsupportedMetadataError, ReadError)
"""What opening a volume raises before its documents are written, or while they are."""

RunBlocks = Callable[[Preparation, OutputSpec, Iterable[int | None], int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What a volume and its output were in the end, and how many blocks were not run since the run was stopped."""

    ready: Preparation
    spec: OutputSpec
    left: int


def wait_for_volume(
    path: str | Path,
    describe: Callable[[], VolumeInfo],
    following: Following,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until a volume is there, and has its first whole chunks where it grows; or until no more comes.

    Parameters
    ----------
    path
        The volume.
    describe
        Opens it.
    following
        How long to wait.
    should_stop
        Whether to wait no longer.
    clock, sleep
        Seconds, which never go back; and what lets them pass.

    Raises
    ------
    UsageError
        If it is no local Zarr store.
    InputDataError
        If it cannot be opened, for other reasons than not being written yet, or when the time is over.
    InterruptedRunError
        If `should_stop` said so before it could be opened.
    """
    _require_local(path)
    since, last, is_told = clock(), 0, False
    while True:
        problem: InputDataError | None = None
        length = 0
        try:
            info = describe()
            if not following.grows:
                return
            axis = info.axes.index(growth_axis(info))
            length = info.shape[axis]
            if length >= (info.shards or info.chunks)[axis]:
                return
        except _NOT_YET as error:
            problem = error
        now = clock()
        if length != last:
            since, last = now, length
        is_stopped = should_stop()
        if is_stopped or (following.timeout_s is not None and now - since >= following.timeout_s):
            if problem is None:
                return
            if is_stopped:
                raise InterruptedRunError(
                    f"stopped while waiting for {path}",
                    f"up to now: {problem.headline}",
                    "nothing was written",
                    fix="the same command waits again",
                ) from problem
            raise problem
        if not is_told:
            logger.info("waiting for %s, of which %s", path, problem or f"{length} planes are there")
            is_told = True
        sleep(LOOK_S)


def require_followable(
    info: VolumeInfo, card: ModelCard, *, input_range: tuple[float, float] | None, is_strict: bool = False
) -> None:
    """Refuse what cannot be followed.

    Raises
    ------
    UsageError
        If the volume is no local Zarr store, the model wants percentiles of the whole volume, or the volume is to be
        compared with the training images first.
    """
    _require_local(info.path)
    if is_strict:
        raise UsageError(
            "--strict came with --follow",
            "a volume that is still being written is not compared with the training images: most of it is not there",
            fix="leave --strict out; or look at what is there with `unet-deploy plan`, which says how it differs",
        )
    if needs_statistics(card, input_range=input_range):
        raise UsageError(
            f"the model {card.name} scales a volume by percentiles of the whole of it, "
            f"which are not known while it is being written",
            f"{info.path} is to be followed",
            fix="--input-range LOW:HIGH, the grey values that these percentiles are in a like volume",
        )


def _require_local(path: str | Path) -> None:
    place = as_location(path)
    if not isinstance(place, Path) or is_tiff(place):
        raise UsageError(
            f"{path} is {'a TIFF file' if isinstance(place, Path) else 'an address'}, which cannot be followed",
            "--follow watches the files of a local Zarr store",
            fix="leave --follow out, and segment it when it is finished",
        )


def begin_following(
    ready: Preparation, following: Following | None, *, target: Path, goes_on: bool, region: Region | None
) -> Preparation:
    """Return what a run begins with, or goes on with: a volume that grows, as far as it is there.

    To be asked also where nothing is followed: a run that followed a volume may go on without.

    Parameters
    ----------
    ready
        What was prepared, of the volume as it is now.
    following
        How it is followed, if it is.
    target, goes_on
        The output, and whether the run goes on there.
    region
        What is to be made, if not all.

    Raises
    ------
    UsageError
        If the volume is of a kind that cannot grow, or a region of one that grows is asked for.
    JournalError
        If blocks were run at the end of a volume that has grown since, or the journal is damaged.
    ReadError
        If the volume is no longer what it was.
    """
    journal = read_journal(target) if goes_on else None
    begun = None if journal is None else journal.fingerprint
    grew = begun is not None and bool(begun.get("volume", {}).get("grows"))
    if not grew and (following is None or not following.grows):
        return ready
    if region is not None:
        raise UsageError(
            "a region came, of a volume that is followed while it grows",
            "which blocks there will be is not known",
            fix="leave --region out, or follow the volume without --grows",
        )
    return begin_at(ready, begun)


def follow_blocks(
    ready: Preparation,
    spec: OutputSpec,
    journal: Journal,
    following: Following | None,
    *,
    run: RunBlocks,
    fingerprint: Callable[[Preparation, OutputSpec], Mapping[str, Any]],
    region: Region | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Followed:
    """Run the blocks of a volume that is being written until none is left.

    Parameters
    ----------
    ready, spec, journal
        What `begin_following` gave, and its output, open.
    following
        How the volume is followed; None for one that grew, and is taken to be whole now.
    run
        Runs blocks of a preparation into an output, from their numbers and how many there are in all.
    fingerprint
        That of a run on a volume of another length.
    region
        What is to be made, if not all.
    should_stop
        Whether to begin nothing more.
    clock
        Seconds, which never go back.

    Raises
    ------
    InterruptedRunError
        If nothing came for as long as is waited, and blocks still wait for chunks; or if the run was stopped on a
        volume that grows, after all blocks that there were.
    ReadError
        If the volume's shape is no longer what it was.
    """
    follower: Follower | None = None

    def due() -> list[int]:  # what failed may have been half written
        return [i for i in ready.plan.order(region) if journal.is_due(i, retry_failed=True)]

    def run_pass(numbers: Iterable[int | None], n_blocks: int) -> None:
        nonlocal ready
        ready = replace(ready, volume=reopen_patiently(ready.volume.info))  # nothing read before is served
        run(ready, spec, numbers, n_blocks)

    def grow(length: int) -> None:
        nonlocal ready, spec
        ready = at_length(ready, length)
        spec = replace(spec, extents=ready.plan.extents)
        extend_output(spec)
        journal.amend(fingerprint(ready, spec))
        if follower is not None:
            follower.grow(ready.volume.info, ready.plan)

    if following is None:
        grow(length_now(ready))
        run_pass(due(), len(due()))
    else:
        info = ready.volume.info
        follower = Follower(info, ready.plan, ready.channels, due(), following, clock=clock)
        run_following(
            follower,
            run_pass,
            failed=lambda: [record.index for record in journal.failures() if follower.is_wanted(record.index)],
            forget=journal.forget,
            grow=grow,
            should_stop=should_stop,
        )
        if not should_stop():
            follower.require_all(Path(spec.path))
    left = sum(journal.status_of(i) is None for i in ready.plan.order(region))
    if not left and following is not None and following.grows and should_stop():
        raise InterruptedRunError(
            f"stopped with all {ready.plan.n_blocks} blocks done that there were up to now, of a volume that grows",
            f"they are in {spec.path}, which is no result yet",
            fix="the same command goes on where it stopped; without --follow, it ends with what is there now",
        )
    return Followed(ready=ready, spec=spec, left=left)


def run_following(
    follower: Follower,
    run: Callable[[Iterable[int | None], int], None],
    *,
    failed: Callable[[], Iterable[int]],
    forget: Callable[[Iterable[int]], None],
    grow: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> None:
    """Let the blocks of a follower run until none is left, or no more comes.

    Parameters
    ----------
    follower
        What gives the blocks.
    run
        Runs blocks, from their numbers and how many there are in all; the volume is to be read anew each time.
    failed
        Gives the blocks that have failed up to now.
    forget
        Writes down that blocks are to be done once more.
    grow
        Lets the run be one on a volume of that length, and the follower too.
    should_stop
        Whether to begin nothing more.
    """
    attempts = 1
    while True:
        run(follower.numbers(), follower.n_wanted)
        if should_stop():
            return
        if follower.has_grown:
            grow(follower.whole_length)
        elif follower.n_waiting:  # in vain
            return
        elif taken := follower.take_back_changed():
            forget(taken)
        elif attempts < ATTEMPTS and (again := [*failed()]):
            attempts += 1
            forget(again)
            follower.give_again(again)
        elif (length := follower.last_length()) is not None:
            grow(length)
            attempts = 1
        else:
            return
