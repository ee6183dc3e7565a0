"""Make a block: one Dask task reads its window, infers it and writes it where it runs (`block_runs` hands them out).

1. A `Job` says everything a worker needs; it is sent once, then each task is a number.
2. A task reads its window once, mirrors it, cuts tiles as views, infers them in batches, and writes whole chunks.
   No array travels through the scheduler.
3. One block has the engine at a time, and runs its batches one by one, while others are read and written. An engine
   that takes raw pixels goes from one block's batches to the next one's without a pause (`runtime.engines.feed`).
4. Tiles of one grey value are answered from what the engine said of such a tile (`runtime.engines.constant_tiles`); a
   block of nothing else does not wait for the engine.
5. Where memory runs out, the block is cut into smaller batches, then smaller tiles, and computed again
   (`runtime.engines.memory`); the result is the same.
6. A block that fails is reported with its reason, so that the run goes on; a full disk ends it, since nothing could
   follow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import NoSpaceError, ValueRangeError
from unet_deploy.geometry import AxisTile, Interval, cover_axis
from unet_deploy.runtime.engines.cache import EngineRequest, get_engine
from unet_deploy.runtime.engines.memory import Rung
from unet_deploy.runtime.engines.runner import TileWork, answer_constant_tiles, choose_runner
from unet_deploy.runtime.engines.symmetries import TileEngine
from unet_deploy.runtime.journal import BlockRecord
from unet_deploy.runtime.layout import Kind, OutputSpec
from unet_deploy.runtime.measures import count_classes, mean_confidence, saturated_fraction
from unet_deploy.runtime.normalise import Normaliser, is_in_range
from unet_deploy.runtime.output import write_block
from unet_deploy.runtime.plan import Block, SegmentationPlan
from unet_deploy.runtime.timeline import Recorded, recording, span
from unet_deploy.runtime.volume import Volume
from unet_deploy.runtime.windows import plan_window, spread

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything a worker needs to know."""

    plan: SegmentationPlan
    volume: Volume
    channels: tuple[int, ...]
    normaliser: Normaliser
    engine: EngineRequest
    output: OutputSpec
    is_recorded: bool = False
    """Whether each report brings a timeline of its block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReport:
    """What a task says of its block.

    `record` is for the journal. `rungs` are what was tried, the last of them what held, where memory ran out in this
    process; else empty. `recorded` is what its thread did when, where that was asked for.
    """

    record: BlockRecord
    pixels: int
    read_s: float = 0.0
    infer_s: float = 0.0
    write_s: float = 0.0
    rungs: tuple[Rung, ...] = ()
    recorded: Recorded | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentedWindow:
    """A block's result, and how many of its tiles were answered without the network.

    `labels` is uint8 (z, y, x), `probabilities` uint8 (classes, z, y, x); None for what was not asked for.
    """

    labels: npt.NDArray[np.uint8] | None
    probabilities: npt.NDArray[np.uint8] | None
    n_tiles: int
    n_answered: int = 0

    @property
    def is_empty(self) -> bool:
        """Tell whether the network had nothing to do here."""
        return self.n_answered == self.n_tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is; given to the progress callback after every block and pyramid piece."""

    stage: str
    done: int
    total: int
    failed: int
    pixels: int
    seconds: float


ProgressCallback = Callable[[Progress], None]


def run_block(job: Job, index: int) -> BlockReport:
    """Segment one block and write it; the Dask task."""
    if not job.is_recorded:
        return _try_block(job, index)
    with recording(index) as log:
        report = _try_block(job, index)
        return replace(report, recorded=log.take())


def _try_block(job: Job, index: int) -> BlockReport:
    block = job.plan.block(index)
    try:
        return _run_block(job, block)
    except (AssertionError, TypeError, NameError, AttributeError):
        raise  # our bug: stop, with its traceback
    except NoSpaceError:
        raise
    except Exception as error:  # a codec, the file system or the engine may raise anything; the others can go on
        logger.exception("block %d failed", index)
        return failure_report(block, f"{type(error).__name__}: {error}")


def clear_block(output: OutputSpec, block: Block) -> None:
    """Let a block that failed be 0, as is said of it: a part of it may have been written, now or by an earlier run."""
    shape = block.z.size, block.y.size, block.x.size
    labels = np.zeros(shape, np.uint8) if "labels" in output.kinds else None
    probabilities = np.zeros((len(output.classes), *shape), np.uint8) if "probabilities" in output.kinds else None
    try:
        write_block(output, t=block.t, z=block.z, y=block.y, x=block.x, labels=labels, probabilities=probabilities)
    except Exception as error:  # whatever made it fail may do so again
        logger.warning("block %d may hold a part of its result: %s: %s", block.index, type(error).__name__, error)


def failure_report(block: Block, reason: str) -> BlockReport:
    """Return the report of a block that could not be done."""
    return BlockReport(record=BlockRecord(index=block.index, status="failed", reason=reason), pixels=block.pixels)


def _run_block(job: Job, block: Block) -> BlockReport:
    engine = get_engine(job.engine)
    start = time.perf_counter()
    window = _read_window(job, block)
    read = time.perf_counter()
    wanted = job.output.kinds
    segmented = segment_window(
        window, block, engine=engine, normaliser=job.normaliser, kinds=wanted, batch=job.plan.batch
    )
    inferred = time.perf_counter()
    labels, probabilities = segmented.labels, segmented.probabilities
    write_block(job.output, t=block.t, z=block.z, y=block.y, x=block.x, labels=labels, probabilities=probabilities)
    planned = Rung(batch=job.plan.batch, tile_y=job.plan.tile_y, tile_x=job.plan.tile_x)
    climbed = engine.ladder.climbed(planned)
    own = window[:, :, block.y.shifted(-block.window_y.start).slice, block.x.shifted(-block.window_x.start).slice]
    with span("measure"):
        record = BlockRecord(
            index=block.index,
            status="empty" if segmented.is_empty else "done",
            class_counts=() if labels is None else count_classes(labels, job.plan.network.classes),
            confidence=None if probabilities is None else mean_confidence(probabilities),
            saturated=saturated_fraction(own),
        )
    return BlockReport(
        record=record,
        pixels=block.pixels,
        read_s=read - start,
        infer_s=inferred - read,
        write_s=time.perf_counter() - inferred,
        rungs=climbed if len(climbed) > 1 else (),
    )


def _read_window(job: Job, block: Block) -> Pixels:
    """Return the block's window (c, z, y, x), mirrored."""
    geometry, extents = job.plan.geometry, job.plan.extents
    y = plan_window(geometry, block.tiles_y, extents.y)
    x = plan_window(geometry, block.tiles_x, extents.x)
    with span("read"):
        return spread(  # by no name, what was read is gone as soon as it is spread along y
            job.volume.read(
                t=Interval(block.t, block.t + 1),
                c=job.channels,
                z=block.z,
                y=y.source,
                x=x.source,
                cache_bytes=job.plan.cache_bytes,
                spent=job.plan.spent(block.index),
            )[0],
            y,
            x,
        )


def segment_window(
    window: Pixels,
    block: Block,
    *,
    engine: TileEngine,
    normaliser: Normaliser,
    kinds: Sequence[Kind],
    batch: int,
) -> SegmentedWindow:
    """Segment a block from its window's pixels.

    Parameters
    ----------
    window
        Raw pixels (c, z, y, x), mirrored, exactly the block's windows.
    block
        The block.
    engine, normaliser
        What turns raw tiles into logits.
    kinds
        What to return.
    batch
        Tiles per forward pass.

    Returns
    -------
    SegmentedWindow
        uint8 (z, y, x) and uint8 (classes, z, y, x), exactly the block; None for what is not in `kinds`.

    Raises
    ------
    ValueRangeError
        If the network's output is not finite, or the pixels that it depends on are not.
    DeviceMemoryError
        If the device has no memory for a single smallest tile. For want of memory above that, the batch is halved, then
        the tile, and the engine's `ladder` remembers it.
    """
    if not is_in_range(window, normaliser):
        _require_numbers(window, block, engine=engine, normaliser=normaliser)
    planned = Rung(batch=batch, tile_y=block.tiles_y[0].read.size, tile_x=block.tiles_x[0].read.size)
    choose = partial(choose_runner, engine, normaliser, dtype=window.dtype.name, kinds=kinds)
    answer = partial(answer_constant_tiles, engine=engine, normaliser=normaliser, kinds=kinds)
    while True:
        rung = engine.ladder.settle(planned)
        try:
            result, works = _lay_out(rung, window, block, engine=engine, kinds=kinds)
            left = answer(works)  # without the engine, which another block may have for a long time
            if not left:
                return replace(result, n_answered=result.n_tiles)
            runner = choose()
        except MemoryError as error:
            engine.ladder.step_down(planned, rung, engine.geometry, error)
            continue
        with runner.reserved():
            if engine.ladder.settle(planned) != rung:  # memory ran out meanwhile
                continue
            try:
                left = answer(left, runner=runner)
                for work in runner.run(_group(left, rung.batch, is_whole=len(left) == result.n_tiles)):
                    raise _not_finite(window, block, work.z)
            except MemoryError as error:  # before another block has the engine
                engine.ladder.step_down(planned, rung, engine.geometry, error)
                continue
        return replace(result, n_answered=result.n_tiles - len(left))


def _lay_out(
    rung: Rung, window: Pixels, block: Block, *, engine: TileEngine, kinds: Sequence[Kind]
) -> tuple[SegmentedWindow, list[TileWork]]:
    """Return a block's result, not yet written, and its tiles of the rung's size."""
    shape = (block.z.size, block.y.size, block.x.size)
    labels = np.empty(shape, np.uint8) if "labels" in kinds else None
    probabilities = np.empty((engine.classes, *shape), np.uint8) if "probabilities" in kinds else None
    tiles_y = _cut(engine, block.tiles_y, block.y, rung.tile_y)
    tiles_x = _cut(engine, block.tiles_x, block.x, rung.tile_x)
    oy, ox = block.window_y.start, block.window_x.start
    # Smaller tiles may end later. No kept pixel depends on what is there, so it is the last row and column again.
    beyond = [
        (0, max(tiles[-1].read.stop - o - n, 0))
        for tiles, o, n in zip((tiles_y, tiles_x), (oy, ox), window.shape[2:], strict=True)
    ]
    if any(after for _, after in beyond):
        window = np.pad(window, [(0, 0), (0, 0), *beyond], mode="edge")

    works = []
    for z, ty, tx in product(range(block.z.size), tiles_y, tiles_x):
        place = z, ty.keep.shifted(-block.y.start).slice, tx.keep.shifted(-block.x.start).slice
        works.append(
            TileWork(
                z=z,
                raw=window[:, z, ty.read.shifted(-oy).slice, tx.read.shifted(-ox).slice],
                crop=(ty.crop.slice, tx.crop.slice),
                labels=None if labels is None else labels[place],
                probabilities=None if probabilities is None else probabilities[:, *place],
            )
        )
    return SegmentedWindow(labels=labels, probabilities=probabilities, n_tiles=len(works)), works


def _group(works: Sequence[TileWork], batch: int, *, is_whole: bool) -> Iterator[Sequence[TileWork]]:
    """Yield batches. What is left over goes one by one, unless it is what every whole block leaves over.

    Engines get ready for each shape of a batch, which takes longer than a tile; single ones they know from the answers.
    """
    full = len(works) if is_whole else len(works) // batch * batch
    yield from (works[i : min(i + batch, full)] for i in range(0, full, batch))
    yield from ([work] for work in works[full:])


def _cut(engine: TileEngine, planned: tuple[AxisTile, ...], region: Interval, side: int) -> tuple[AxisTile, ...]:
    """Return the tiles of one axis, as planned unless `side` is another."""
    return planned if planned[0].read.size == side else cover_axis(engine.geometry, region, side)


def _require_numbers(window: Pixels, block: Block, *, engine: TileEngine, normaliser: Normaliser) -> None:
    """Refuse a plane whose kept pixels depend on what is no number, or too large; the window may hold more."""
    geometry = engine.geometry
    around = 2 * geometry.context + geometry.surplus
    y, x = (
        slice(0, geometry.round_up(region.stop - start - geometry.context) + around)
        for region, start in ((block.y, block.window_y.start), (block.x, block.window_x.start))
    )
    for z in range(block.z.size):
        if not is_in_range(window[:, z, y, x], normaliser):
            raise _not_finite(window, block, z)


def _not_finite(window: Pixels, block: Block, z: int) -> ValueRangeError:
    is_input = window.dtype.kind == "f" and not np.isfinite(window[:, z]).all()
    where = f"plane z {block.z.start + z}, y {block.y.start}:{block.y.stop}, x {block.x.start}:{block.x.stop}"
    return ValueRangeError(
        "the network's output is not a number there",
        where,
        "the volume holds NaN or infinity there" if is_input else "its grey values are too large for the network",
        fix="replace them in the volume by a grey value" if is_input else "check --input-range against the volume",
    )
