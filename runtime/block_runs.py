"""Run the blocks of a plan through Dask, and write down what becomes of each; then the pyramid's last levels.

1. Blocks are run in the order given; those that the journal has are passed over.
2. Each report is written into the journal before the next is waited for, and then added up and forgotten.
3. A block that its workers did not survive is a failed block. What failed is made 0 here, not by the task: one that is
   late may fail long after another has done its block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from unet_deploy.runtime.engines.memory import Rung
from unet_deploy.runtime.execute import (
    BlockReport,
    Job,
    Progress,
    ProgressCallback,
    clear_block,
    failure_report,
    run_block,
)
from unet_deploy.runtime.journal import Journal
from unet_deploy.runtime.layout import OutputSpec
from unet_deploy.runtime.output import downsample_region, list_regions
from unet_deploy.runtime.profile import Timeline
from unet_deploy.runtime.region import Region
from unet_deploy.runtime.scheduling import run_tasks
from unet_deploy.runtime.timeline import Recorded, recording, span


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTotals:
    """Sums over the blocks that were run by one call of `run_blocks`, those that failed among them.

    The times are of all threads together. `rungs` are those of the worker that had to go furthest down. `left` is how
    many blocks the call was to see done and did not.
    """

    blocks: int = 0
    pixels: int = 0
    read_s: float = 0.0
    infer_s: float = 0.0
    write_s: float = 0.0
    rungs: tuple[Rung, ...] = ()
    left: int = 0

    def __add__(self, other: RunTotals) -> RunTotals:
        """Return the sums over both; what is left is what the later one left."""
        return RunTotals(
            blocks=self.blocks + other.blocks,
            pixels=self.pixels + other.pixels,
            read_s=self.read_s + other.read_s,
            infer_s=self.infer_s + other.infer_s,
            write_s=self.write_s + other.write_s,
            rungs=max(self.rungs, other.rungs, key=len),  # workers climb the same ladder, some further
            left=other.left,
        )


def run_blocks(
    job: Job,
    client: Any,
    journal: Journal,
    order: Iterable[int | None],
    *,
    total: int,
    retry_failed: bool = False,
    hold: Callable[[Iterator[int | None]], Iterator[int | None]] = iter,
    should_stop: Callable[[], bool] = lambda: False,
    progress: ProgressCallback | None,
    timeline: Timeline | None = None,
) -> RunTotals:
    """Run blocks through a ``distributed.Client``, and write each into the journal.

    Parameters
    ----------
    job, client, journal
        What to do, where, and where it is written down; the journal is open.
    order
        The blocks to see done, each once, in the order to run them; None where there is none just now. Those that the
        journal has are passed over.
    total
        How many blocks `order` would give to its end.
    retry_failed
        Whether blocks that failed are run again.
    hold
        Stands between the blocks that are to be run and their being begun, where it may put in None: not now.
    should_stop
        Asked before each block; once it says so, the blocks in flight are finished and no other begun.
    progress
        Called after every block.
    timeline
        Takes what the job's tasks recorded.

    Returns
    -------
    RunTotals
    """
    start = time.perf_counter()
    totals = RunTotals()
    found = 0
    given = iter(order)

    def due() -> Iterator[int | None]:
        nonlocal found
        for index in given:
            if index is None or journal.is_due(index, retry_failed=retry_failed):
                yield index
            else:
                found += 1

    def killed(index: int, reason: str) -> BlockReport:
        return failure_report(job.plan.block(index), f"the workers that ran it died: {reason}")

    reports = run_tasks(client, run_block, (job,), hold(due()), should_stop=should_stop, on_killed=killed)
    with closing(reports):  # also where the frames of an error are kept
        for report in reports:
            if report.record.status == "failed":
                clear_block(job.output, job.plan.block(report.record.index))
            with span("journal"):
                journal.add(report.record)
            if timeline is not None:
                timeline.take(report.recorded)
            totals += RunTotals(
                blocks=1,
                pixels=report.pixels,
                read_s=report.read_s,
                infer_s=report.infer_s,
                write_s=report.write_s,
                rungs=report.rungs,
            )
            if progress is not None:
                progress(
                    Progress(
                        stage="segment",
                        done=found + totals.blocks,
                        total=total,
                        failed=journal.count("failed"),
                        pixels=totals.pixels,
                        seconds=time.perf_counter() - start,
                    )
                )
    for index in given:  # not asked for any more, after a stop
        if index is None:
            break
        found += not journal.is_due(index, retry_failed=retry_failed)
    return replace(totals, left=total - found - totals.blocks)


def run_pyramid(
    spec: OutputSpec,
    client: Any,
    *,
    part: Region | None = None,
    progress: ProgressCallback | None,
    timeline: Timeline | None = None,
) -> None:
    """Make the pyramid's levels that the blocks could not, from the finest that they made; or what a part changes."""
    start = time.perf_counter()
    pieces = {level: list_regions(spec, level, part) for level in spec.passes}
    total = sum(map(len, pieces.values()))
    done = 0
    for level, numbers in pieces.items():
        function = downsample_region if timeline is None else _downsample_recorded
        is_one = len(numbers) == 1  # to send that out takes longer than to make it
        one_here = (function(spec, level, number) for number in numbers)
        with closing(one_here if is_one else run_tasks(client, function, (spec, level), numbers)) as pieces_made:
            for recorded in pieces_made:
                done += 1
                if timeline is not None:
                    timeline.take(recorded)
                if progress is not None:
                    seconds = time.perf_counter() - start
                    progress(Progress(stage="pyramid", done=done, total=total, failed=0, pixels=0, seconds=seconds))


def _downsample_recorded(spec: OutputSpec, level: int, index: int) -> Recorded:
    """Make one piece of a pyramid level; return what the thread did when."""
    with recording() as log:
        with span("pyramid"):
            downsample_region(spec, level, index)
        return log.take()
