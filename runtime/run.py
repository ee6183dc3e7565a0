"""A run that was checked, from the first grey value to the last attribute of the output."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from unet_deploy.errors import InterruptedRunError, ReadError
from unet_deploy.runtime._instance_merge import is_table
from unet_deploy.runtime.block_runs import RunTotals, run_blocks, run_pyramid
from unet_deploy.runtime.block_table import write_block_table
from unet_deploy.runtime.drift import Finding, check_drift, describe_findings, require_no_drift
from unet_deploy.runtime.engines.cache import get_engine
from unet_deploy.runtime.engines.runner import choose_runner
from unet_deploy.runtime.execute import Job, Progress
from unet_deploy.runtime.follow import follow_blocks
from unet_deploy.runtime.holding import hold, reason_to_hold
from unet_deploy.runtime.instances import (
    InstanceResult,
    check_objects_table,
    default_table,
    finish_instances,
    number_instances,
)
from unet_deploy.runtime.journal import Journal, reopen_journal
from unet_deploy.runtime.last_blocks import forget_lost_blocks
from unet_deploy.runtime.layout import OutputSpec
from unet_deploy.runtime.normalise import choose_normaliser
from unet_deploy.runtime.output import create_output, finish_output, mark_running, write_status
from unet_deploy.runtime.output_paths import remove_partial_files
from unet_deploy.runtime.preparation import Preparation
from unet_deploy.runtime.results import SegmentationResult, class_fractions, describe_end, describe_run
from unet_deploy.runtime.resume import fingerprint_of, is_unborn
from unet_deploy.runtime.run_settings import Measured, Run
from unet_deploy.runtime.statistics import measure_volume
from unet_deploy.runtime.timeline import span

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What became of the blocks: sums, how many were found done, and when what was over, by `time.perf_counter`."""

    totals: RunTotals
    found: int
    prepared: float
    executed: float


def carry_out(run: Run, client: Any) -> SegmentationResult:
    """Segment, and finish the output. Failed blocks are in the result; raises as `segment` does.

    Parameters
    ----------
    run
        What to do.
    client
        A ``distributed.Client``, whose workers see volume and output.
    """
    if run.ready.level_choice is not None and run.ready.volume.info.level:
        logger.info(run.ready.level_choice)
    with ExitStack() as held:
        held.callback(run.ready.volume.forget_chunks)
        with span("statistics"):
            measured = _measure(run, client)
        with span("prove"):  # what an engine computes from raw pixels, before anything is written
            kinds, dtype = run.spec.kinds, run.ready.volume.info.dtype
            choose_runner(get_engine(run.request), measured.normaliser, dtype=dtype, kinds=kinds)
        with span("create output"):
            journal, provenance = _begin(run, measured)
        held.enter_context(journal)
        run, made = _execute(run, measured, client, journal)
        plan, begun = run.ready.plan, run.place.begun
        if run.is_followed:
            provenance = {**provenance, **_description(run, measured, "volume", "plan")}
        part = None if begun is not None and begun.is_broken_off else plan.covered(run.region)
        run_pyramid(run.spec, client, part=part, progress=run.progress, timeline=run.timeline)
        with span("finish"):
            write_status(run.spec, journal)
        finished = time.perf_counter()
        with span("objects"):
            instances = _number(run, client) if journal.n_recorded == plan.n_blocks else None
        with span("finish"):
            if run.table is not None:
                write_block_table(run.table, journal, plan, class_names=[c.name for c in run.spec.classes])
            result = _result(run, measured, made, journal, instances, finished=finished)
            _finish(run, result, provenance)
    return result


def _execute(run: Run, measured: Measured, client: Any, journal: Journal) -> tuple[Run, _Made]:
    """Make the blocks; return the run with what the volume was in the end."""
    prepared = time.perf_counter()
    plan = run.ready.plan
    if not run.is_followed:
        totals = _make_blocks(run, measured, client, journal)
        found = plan.count(run.region) - totals.blocks
    else:  # a block may run several times
        found = sum(not journal.is_due(i, retry_failed=True) for i in plan.order(run.region))
        run, totals = _follow_blocks(run, measured, client, journal)
    return run, _Made(totals=totals, found=found, prepared=prepared, executed=time.perf_counter())


def _result(
    run: Run,
    measured: Measured,
    made: _Made,
    journal: Journal,
    instances: InstanceResult | None,
    *,
    finished: float,
) -> SegmentationResult:
    plan, totals, failed = run.ready.plan, made.totals, journal.failures()
    is_whole = journal.n_recorded == plan.n_blocks
    return SegmentationResult(
        output=run.place.target,
        labels=run.place.target / run.spec.labels_path if "labels" in run.spec.kinds else None,
        status="region" if not is_whole else "partial" if failed else "complete",
        plan=plan,
        engine=run.engine,
        class_fractions=class_fractions(journal, run.ready.artifact.card),
        seconds={
            "prepare": (made.prepared - run.started) - measured.seconds,
            "statistics": measured.seconds,
            "blocks": made.executed - made.prepared,
            "pyramid": finished - made.executed,
            "instances": 0.0 if instances is None else instances.seconds,
            "read": totals.read_s,
            "infer": totals.infer_s,
            "write": totals.write_s,
            "total": time.perf_counter() - run.started,
        },
        pixels=totals.pixels,
        failed=failed,
        n_empty=journal.count("empty"),
        blocks_found=made.found,
        blocks_left=plan.n_blocks - journal.n_recorded,
        statistics=measured.statistics,
        findings=measured.findings or (),
        is_compared=measured.findings is not None,
        level_choice=run.ready.level_choice,
        rungs=totals.rungs,
        instances=instances,
        table=run.table,
    )


def _finish(run: Run, result: SegmentationResult, provenance: Mapping[str, Any]) -> None:
    source = "../../" if "probabilities" in run.spec.kinds else None
    if result.instances is not None and run.rule is not None:
        finish_instances(run.spec, provenance=result.instances.to_object(run.rule), source=source)
    finish_output(run.spec, provenance=describe_end(result, provenance), source=source)


def _measure(run: Run, client: Any) -> Measured:
    """Compare the volume with the training images, and settle how its grey values are normalised."""
    start = time.perf_counter()
    ready, findings = run.ready, _compare(run, client)
    card, info = ready.artifact.card, ready.volume.info
    normaliser, found = ready.normaliser, None
    if normaliser is None:
        percentiles = card.normalisation.percentiles
        assert percentiles is not None
        found = None if run.place.begun is None else run.place.begun.statistics
        if found is None or found.percentiles != percentiles or len(found.ranges) != len(ready.channels):
            found = measure_volume(
                ready.volume,
                ready.channels,
                percentiles,
                client,
                cache_bytes=run.cache_bytes,
                progress=run.progress,
            )
        normaliser = choose_normaliser(card, info.dtype, input_range=None, source=info.path, measured=found.ranges)
    seconds = time.perf_counter() - start
    return Measured(normaliser=normaliser, statistics=found, findings=findings, seconds=seconds)


def _compare(run: Run, client: Any) -> tuple[Finding, ...] | None:
    ready = run.ready
    if run.following is not None:  # most of what would be looked at is not there yet
        return None
    try:
        findings = check_drift(
            ready.volume,
            ready.artifact.card,
            ready.channels,
            client,
            input_range=run.input_range,
            cache_bytes=run.cache_bytes,
        )
    except ReadError as error:  # a damaged chunk is a failed block, which says so; the others can be done
        if run.is_strict:
            raise
        logger.warning("the volume was not compared with the training images: %s", error.headline)
        return None
    if run.is_strict:
        require_no_drift(findings, source=ready.volume.info.path)
    if findings:
        logger.warning("\n  ".join(describe_findings(findings, source=ready.volume.info.path)))
    return findings


def _begin(run: Run, measured: Measured) -> tuple[Journal, dict[str, Any]]:
    """Create the output, or go on with it; return its journal, open, and what it says of the run."""
    provenance, fingerprint = _description(run, measured), _fingerprint(run, measured)
    if run.place.begun is None:
        # Asked anew: while this run measured the volume, another may have made there what was only begun before.
        may_replace = run.place.may_replace or is_unborn(run.place.target)
        journal = create_output(run.spec, fingerprint=fingerprint, provenance=provenance, overwrite=may_replace)
        table = default_table(run.place.target)
        if run.rule is None and is_table(table):
            logger.warning("%s lists objects of an earlier segmentation; no objects are numbered now", table)
        return journal, provenance
    provenance = {**provenance, "parts": run.place.begun.parts}
    journal = reopen_journal(run.place.target, fingerprint)
    try:
        remove_partial_files(run.place.target)
        mark_running(run.spec, provenance)
        if run.place.begun.is_broken_off:
            forget_lost_blocks(journal, run.spec, run.ready.plan)
        if run.place.again:
            journal.forget(run.ready.plan.order(run.region))
    except BaseException:
        journal.close()
        raise
    return journal, provenance


def _description(run: Run, measured: Measured, *names: str) -> dict[str, Any]:
    """Return what the output says of the run, before it ends: all of it, or those names."""
    said = describe_run(
        run.ready,
        run.engine,
        run.spec,
        region=run.region,
        input_range=run.input_range,
        statistics=measured.statistics,
        findings=measured.findings,
    )
    return {name: said[name] for name in names or said}


def _fingerprint(run: Run, measured: Measured) -> Mapping[str, Any]:
    return fingerprint_of(
        run.ready,
        run.engine,
        run.spec,
        threads=run.threads,
        input_range=run.input_range,
        statistics=measured.statistics,
    )


def _follow_blocks(run: Run, measured: Measured, client: Any, journal: Journal) -> tuple[Run, RunTotals]:
    """Make the blocks of a volume that is still being written; return the run with what the volume was in the end."""
    totals = RunTotals()

    def make(ready: Preparation, spec: OutputSpec, numbers: Iterable[int | None], n_blocks: int) -> None:
        nonlocal totals
        before = totals

        def show(progress: Progress) -> None:
            assert run.progress is not None
            done = min(before.blocks + progress.done, n_blocks)
            run.progress(replace(progress, done=done, pixels=before.pixels + progress.pixels))

        now = replace(run, ready=ready, spec=spec, progress=None if run.progress is None else show)
        totals += _run_blocks(now, measured, client, journal, numbers, total=n_blocks)

    followed = follow_blocks(
        run.ready,
        run.spec,
        journal,
        run.following,
        run=make,
        fingerprint=lambda ready, spec: _fingerprint(replace(run, ready=ready, spec=spec), measured),
        region=run.region,
        should_stop=run.should_stop,
    )
    run = replace(run, ready=followed.ready, spec=followed.spec)
    _require_done(run, journal, left=followed.left)
    return run, totals


def _make_blocks(run: Run, measured: Measured, client: Any, journal: Journal) -> RunTotals:
    plan = run.ready.plan
    wanted = plan.count(run.region)
    numbers = plan.order(run.region)
    totals = _run_blocks(run, measured, client, journal, numbers, total=wanted)
    _require_done(run, journal, left=totals.left)
    return totals


def _run_blocks(
    run: Run,
    measured: Measured,
    client: Any,
    journal: Journal,
    numbers: Iterable[int | None],
    *,
    total: int,
) -> RunTotals:
    plan, target = run.ready.plan, run.place.target
    job = Job(
        plan=replace(plan, cache_bytes=run.cache_bytes),
        volume=run.ready.volume,
        channels=run.ready.channels,
        normaliser=measured.normaliser,
        engine=run.request,
        output=run.spec,
        is_recorded=run.timeline is not None,
    )

    def reason() -> str | None:
        return reason_to_hold(target, min_free_bytes=run.min_free_bytes, should_pause=run.should_pause)

    return run_blocks(
        job,
        client,
        journal,
        numbers,
        total=total,
        retry_failed=run.retry_failed,
        hold=lambda due: hold(due, reason),
        should_stop=run.should_stop,
        progress=run.progress,
        timeline=run.timeline,
    )


def _require_done(run: Run, journal: Journal, *, left: int) -> None:
    wanted = run.ready.plan.count(run.region)
    if left:
        write_status(run.spec, journal)  # it is what one looks at to see how far the run came
        raise InterruptedRunError(
            f"stopped with {wanted - left} of {wanted} blocks done",
            f"they are in {run.place.target}, which is no result yet",
            fix="the same command goes on where it stopped; --overwrite starts anew",
        )


def _number(run: Run, client: Any) -> InstanceResult | None:
    if run.rule is None:
        return None
    table = default_table(run.place.target)
    check_objects_table(table, overwrite=True)  # something may have come to lie there meanwhile
    return number_instances(run.spec, run.rule, client, table=table, should_stop=run.should_stop, progress=run.progress)
