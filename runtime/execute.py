"""Run a plan: one Dask task is one block, read, inferred and written where it runs.

1. A `Job` says everything a worker needs; it is sent once, then each task is a number.
2. A task reads its window once, mirrors it, cuts tiles as views, infers them in batches, and writes whole chunks.
   No array travels through the scheduler.
3. One block has the engine at a time, and runs its batches one by one; a second thread reads and writes meanwhile.
4. Where memory runs out, the block is cut into smaller batches, then smaller tiles, and computed again
   (`runtime.engines.memory`); the result is the same.
5. A block that fails is reported with its reason and the run goes on, also if its workers died of it; a full disk ends
   it, since nothing could follow.
6. Each report is written into the journal before the next is waited for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import InterruptedRunError, NoSpaceError, ValueRangeError
from unet_deploy.geometry import AxisTile, Interval, cover_axis
from unet_deploy.runtime.engines.cache import EngineRequest, get_engine
from unet_deploy.runtime.engines.memory import Rung
from unet_deploy.runtime.engines.runner import TileWork, choose_runner
from unet_deploy.runtime.engines.symmetries import TileEngine
from unet_deploy.runtime.journal import BlockRecord, Journal
from unet_deploy.runtime.layout import Kind, OutputSpec
from unet_deploy.runtime.normalise import Normaliser, is_in_range
from unet_deploy.runtime.output import count_regions, downsample_region, write_block
from unet_deploy.runtime.plan import Block, SegmentationPlan
from unet_deploy.runtime.scheduling import run_tasks
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


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReport:
    """What a task says of its block. `failure` is None where all went well.

    `rungs` are what was tried, the last of them what held, where memory ran out in this process; else empty.
    """

    index: int
    pixels: int
    read_s: float = 0.0
    infer_s: float = 0.0
    write_s: float = 0.0
    class_counts: tuple[int, ...] = ()
    rungs: tuple[Rung, ...] = ()
    failure: str | None = None


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
    block = job.plan.block(index)
    try:
        return _run_block(job, block)
    except (AssertionError, TypeError, NameError, AttributeError):
        raise  # our bug: stop, with its traceback
    except NoSpaceError:
        raise
    except Exception as error:  # a codec, the file system or the engine may raise anything; the others can go on
        logger.exception("block %d failed", index)
        return BlockReport(index=index, pixels=block.pixels, failure=f"{type(error).__name__}: {error}")


def _run_block(job: Job, block: Block) -> BlockReport:
    engine = get_engine(job.engine)
    start = time.perf_counter()
    geometry, extents = job.plan.geometry, job.plan.extents
    y = plan_window(geometry, block.tiles_y, extents.y)
    x = plan_window(geometry, block.tiles_x, extents.x)
    time_point = Interval(block.t, block.t + 1)
    pixels = job.volume.read(t=time_point, c=job.channels, z=block.z, y=y.source, x=x.source)[0]  # (c, z, y, x)
    window = spread(pixels, y, x)
    read = time.perf_counter()
    wanted = job.output.kinds
    labels, probabilities = segment_window(
        window, block, engine=engine, normaliser=job.normaliser, kinds=wanted, batch=job.plan.batch
    )
    inferred = time.perf_counter()
    write_block(job.output, t=block.t, z=block.z, y=block.y, x=block.x, labels=labels, probabilities=probabilities)
    planned = Rung(batch=job.plan.batch, tile_y=job.plan.tile_y, tile_x=job.plan.tile_x)
    climbed = engine.ladder.climbed(planned)
    counts = () if labels is None else tuple(int((labels == k).sum()) for k in range(job.plan.network.classes))
    return BlockReport(
        index=block.index,
        pixels=block.pixels,
        read_s=read - start,
        infer_s=inferred - read,
        write_s=time.perf_counter() - inferred,
        class_counts=counts,
        rungs=climbed if len(climbed) > 1 else (),
    )


def segment_window(
    window: Pixels,
    block: Block,
    *,
    engine: TileEngine,
    normaliser: Normaliser,
    kinds: Sequence[Kind],
    batch: int,
) -> tuple[npt.NDArray[np.uint8] | None, npt.NDArray[np.uint8] | None]:
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
    labels, probabilities
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
    while True:
        with engine.reserved():
            rung = engine.ladder.settle(planned)
            try:
                return _segment_on(rung, window, block, engine=engine, normaliser=normaliser, kinds=kinds)
            except MemoryError as error:
                engine.ladder.step_down(planned, rung, engine.geometry, error)


def _segment_on(
    rung: Rung, window: Pixels, block: Block, *, engine: TileEngine, normaliser: Normaliser, kinds: Sequence[Kind]
) -> tuple[npt.NDArray[np.uint8] | None, npt.NDArray[np.uint8] | None]:
    """Segment a block in batches and tiles of the rung's sizes."""
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

    def works() -> Iterator[TileWork]:
        for z, ty, tx in product(range(block.z.size), tiles_y, tiles_x):
            place = z, ty.keep.shifted(-block.y.start).slice, tx.keep.shifted(-block.x.start).slice
            yield TileWork(
                z=z,
                raw=window[:, z, ty.read.shifted(-oy).slice, tx.read.shifted(-ox).slice],
                crop=(ty.crop.slice, tx.crop.slice),
                labels=None if labels is None else labels[place],
                probabilities=None if probabilities is None else probabilities[:, *place],
            )

    tiles = works()
    groups = iter(lambda: list(islice(tiles, rung.batch)), [])
    for work in choose_runner(engine, normaliser, dtype=window.dtype.name, kinds=kinds).run(groups):
        raise _not_finite(window, block, work.z)
    return labels, probabilities


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


def run_blocks(
    job: Job,
    client: Any,
    journal: Journal,
    *,
    retry_failed: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    progress: ProgressCallback | None,
) -> list[BlockReport]:
    """Run the blocks that the journal does not have yet, through a ``distributed.Client``; write each into it.

    Returns
    -------
    list of BlockReport
        Of the blocks run now, by number; those that failed say so.

    Raises
    ------
    InterruptedRunError
        If `should_stop` said so before the last one; those that ran are in the journal.
    """
    start = time.perf_counter()
    reports: list[BlockReport] = []
    pixels, total = 0, job.plan.n_blocks
    pending = journal.pending(total, retry_failed=retry_failed)
    failed = {record.index for record in journal.with_status("failed")}

    def killed(index: int, reason: str) -> BlockReport:
        block = job.plan.block(index)
        return BlockReport(index=index, pixels=block.pixels, failure=f"the workers that ran it died: {reason}")

    for report in run_tasks(client, run_block, (job,), pending, should_stop=should_stop, on_killed=killed):
        reports.append(report)
        pixels += report.pixels
        journal.add(
            BlockRecord(
                index=report.index,
                status="done" if report.failure is None else "failed",
                class_counts=report.class_counts,
                reason=report.failure,
            )
        )
        failed.discard(report.index)
        failed.update([report.index] if report.failure is not None else [])
        if progress is not None:
            progress(
                Progress(
                    stage="segment",
                    done=len(journal.records),
                    total=total,
                    failed=len(failed),
                    pixels=pixels,
                    seconds=time.perf_counter() - start,
                )
            )
    left = sum(1 for _ in journal.pending(total, retry_failed=False))
    if left:
        raise InterruptedRunError(
            f"stopped with {total - left} of {total} blocks done",
            f"they are in {job.output.path}, which is no result yet",
            fix="the same command goes on where it stopped; --overwrite starts anew",
        )
    return sorted(reports, key=lambda r: r.index)


def run_pyramid(spec: OutputSpec, client: Any, *, progress: ProgressCallback | None) -> None:
    """Make the pyramid's levels that the blocks could not, from the finest one that they made."""
    start = time.perf_counter()
    total = sum(count_regions(spec, level) for level in spec.passes)
    done = 0
    for level in spec.passes:
        for _ in run_tasks(client, downsample_region, (spec, level), count_regions(spec, level)):
            done += 1
            if progress is not None:
                seconds = time.perf_counter() - start
                progress(Progress(stage="pyramid", done=done, total=total, failed=0, pixels=0, seconds=seconds))
