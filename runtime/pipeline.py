"""Segment a volume: everything between a path and a finished OME-Zarr, in six steps.

1. *open*: artifact, volume, channels, grey values and output place are checked; nothing is written yet.
2. *plan*: tiles and blocks; disk space is checked against the plan.
3. *statistics*: the volume's percentiles by one pass over it, where the card asks for them.
4. *execute*: blocks, through Dask.
5. *pyramid*: lower resolutions.
6. *finish*: metadata and provenance, with the status that says whether every block is there.
"""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import unet_deploy
from unet_deploy.card import ModelCard
from unet_deploy.errors import PartialResultError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines import EngineDescription, candidates
from unet_deploy.runtime.engines.cache import EngineFactory, EngineRequest, drop_engine, get_engine, settle_engine
from unet_deploy.runtime.engines.memory import Rung
from unet_deploy.runtime.engines.runner import choose_runner
from unet_deploy.runtime.execute import Job, ProgressCallback, run_blocks, run_pyramid
from unet_deploy.runtime.journal import BlockRecord, Journal, reopen_journal
from unet_deploy.runtime.layout import KINDS, LABELS_NAME, OutputSpec, require_kinds
from unet_deploy.runtime.normalise import choose_normaliser
from unet_deploy.runtime.output import (
    check_output_path,
    check_space,
    create_output,
    finish_output,
    remove_partial_files,
    write_status,
)
from unet_deploy.runtime.plan import DEFAULT_MEMORY_BYTES, SegmentationPlan
from unet_deploy.runtime.preparation import Preparation, default_output, prepare
from unet_deploy.runtime.resume import find_begun, fingerprint_of, identify_volume, is_unborn
from unet_deploy.runtime.scheduling import connect
from unet_deploy.runtime.statistics import VolumeStatistics, measure_volume


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationResult:
    """What a run made.

    `class_fractions` has the share of each class by name, where labels were made. `seconds` has the wall time by stage
    ("total" among them) and the summed thread time of reading, inference (waiting for the engine included) and
    writing. `failed` lists the blocks that are holes in the output, `blocks_found` says how many an earlier part of the
    run had done, and `pixels` how many were made now. `statistics` are the grey values that the volume was scaled by;
    None where the card asks for none, or `input_range` was given. `rungs` are the sizes that were given to the engine
    where its memory ran out, from the planned one down; else empty.
    """

    output: Path
    labels: Path | None
    plan: SegmentationPlan
    engine: EngineDescription
    class_fractions: dict[str, float]
    seconds: dict[str, float]
    pixels: int
    failed: tuple[BlockRecord, ...]
    blocks_found: int = 0
    statistics: VolumeStatistics | None = None
    rungs: tuple[Rung, ...] = ()

    @property
    def pixels_per_second(self) -> float:
        """Output pixels made now per second of wall time, everything included."""
        return self.pixels / self.seconds["total"]


def segment(
    volume: str | Path,
    *,
    model: str | Path | Artifact | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    write: Sequence[str] = KINDS,
    channels: Sequence[int | str] = (),
    axes: str | None = None,
    level: int = 0,
    input_range: tuple[float, float] | None = None,
    device: str = "auto",
    engine: str | None = None,
    threads: int = 0,
    tile: tuple[int, int] | None = None,
    batch: int = 1,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    tta: bool = False,
    scheduler: Any | None = None,
    check_free_space: bool = True,
    engine_factory: EngineFactory | None = None,
    retry_failed: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    progress: ProgressCallback | None = None,
) -> SegmentationResult:
    """Segment a Zarr volume plane by plane, and write labels and probabilities as OME-Zarr.

    The result does not depend on `tile`, `batch`, `memory_bytes`, `scheduler` or the volume's chunks: it equals one
    pass of the network over each whole mirrored plane (paper, figure 2), up to the engine's own rounding.

    A run that was killed or stopped goes on when it is begun again with the same inputs and parameters, and ends with
    the bytes of an unbroken one.

    Parameters
    ----------
    volume
        An OME-Zarr image (0.4, 0.5) or Zarr array (v2, v3) of 2 to 5 of the axes t, c, z, y, x.
    model
        An artifact, its path, or the name of a bundled network; the bundled ``membrane`` if None.
    output
        The store to write; `default_output` if None.
    overwrite
        Replace an earlier segmentation of ours. Anything else that exists is never replaced.
    write
        ``"labels"`` (uint8, the class of each pixel), ``"probabilities"`` (uint8 by class, 255 for certain), or both.
    channels
        The volume's channels, by index or name, in the order the model wants them; needed if there are more.
    axes, level
        Axis names of a bare array; level of a pyramid.
    input_range
        Grey values of the volume that mean the ends of the model's value range; needed if the dtypes differ. A model
        that scales each volume by its own percentiles takes any dtype, and these in place of the percentiles: so
        parts of a volume, or the volumes of a series, get one scale, and nothing needs to be measured.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:i``. What is named is used, or is an error; ``auto`` is a GPU, or the CPU
        where none can be used.
    engine
        ``onnxruntime-cpu``, ``openvino``, ``onnxruntime-cuda``, ``tensorrt`` or ``tensorrt-rtx``, to insist on one;
        None takes the device's first that is installed and passes the model's test tensor, here and on every worker;
        on a CPU by measured speed. The result's `engine` says why.
    threads
        CPU threads within one operator; 0 leaves it to the engine.
    tile
        Input side of a tile (y, x), k·2**depth - 4; planned if None, within what an engine plan was built for.
    batch
        Tiles per forward pass. Where memory runs out, batches and then tiles are halved, which changes no result.
    memory_bytes
        What the engine may hold for activations when the tile is planned.
    tta
        Average the network over the 8 turned and mirrored forms of each tile, as the paper does with 7: 8 times the
        work, and just as seamless.
    scheduler
        None to run in this process, the address of a Dask scheduler, or a ``distributed.Client``.
    check_free_space
        Refuse to start when the uncompressed result would not fit on the disk.
    retry_failed
        Run the failed blocks of an earlier run again.
    should_stop
        Asked before each block; once it says so, the blocks in flight are finished and no other begun.
    engine_factory
        Makes the engine from the artifact, in place of those that come with the package; importable by workers.
    progress
        Called after every block.

    Returns
    -------
    SegmentationResult

    Raises
    ------
    InputDataError
        If the volume cannot be read or does not fit the model, or the output cannot go where it should.
    ModelError
        If the model is missing, damaged or not ours, or this device does not reproduce its test tensor.
    UsageError
        If a tile is not legal, or a setting is unknown or cannot be meant.
    RequirementError
        If a package, a device or the scheduler is missing. All of these come before anything is written.
    NoSpaceError
        Also if the disk fills up meanwhile; the output then says that it is unfinished.
    PartialResultError
        If blocks failed; the output holds the others and says so.
    InterruptedRunError
        If `should_stop` said so before the last block.
    """
    started = time.perf_counter()
    kinds = require_kinds(write)
    candidates(device, engine)  # says what is wrong with the names before any work
    ready = prepare(
        volume,
        model=model,
        channels=channels,
        axes=axes,
        level=level,
        tile=tile,
        batch=batch,
        memory_bytes=memory_bytes,
        input_range=input_range,
        tta=tta,
    )
    target = Path(output) if output is not None else default_output(volume)
    begun = None if overwrite else find_begun(target, retry_failed=retry_failed)
    is_free_to_write = overwrite or begun is not None or is_unborn(target)
    check_output_path(target, volume=Path(ready.volume.info.path), overwrite=is_free_to_write)
    spec = ready.output_spec(target, kinds)
    if check_free_space and begun is None:
        check_space(spec)
    request, description = settle_engine(
        EngineRequest(
            artifact=ready.artifact,
            device=device,
            engine=engine,
            threads=threads,
            batch_shape=ready.plan.batch_shape,
            factory=engine_factory,
            tta=tta,
        )
    )
    with ExitStack() as held:
        held.callback(drop_engine, request)
        client = held.enter_context(connect(scheduler))
        checked = time.perf_counter()
        known = None if begun is None else begun.statistics
        ready, statistics = _measure(ready, client, known=known, progress=progress)
        measured = time.perf_counter()
        assert ready.normaliser is not None
        # What an engine computes from raw pixels is proved here, before anything is written.
        choose_runner(get_engine(request), ready.normaliser, dtype=ready.volume.info.dtype, kinds=kinds)
        provenance = _provenance(ready, description, spec, input_range=input_range, statistics=statistics)
        fingerprint = fingerprint_of(
            ready, description, spec, threads=threads, input_range=input_range, statistics=statistics
        )
        if begun is None:
            created = create_output(spec, fingerprint=fingerprint, provenance=provenance, overwrite=is_free_to_write)
            journal = held.enter_context(created)
        else:
            journal = held.enter_context(reopen_journal(target, fingerprint))
            remove_partial_files(target)
            provenance = {**provenance, "parts": begun.parts}
        job = Job(
            plan=ready.plan,
            volume=ready.volume,
            channels=ready.channels,
            normaliser=ready.normaliser,
            engine=request,
            output=spec,
        )
        prepared = time.perf_counter()
        reports = run_blocks(
            job, client, journal, retry_failed=retry_failed, should_stop=should_stop, progress=progress
        )
        executed = time.perf_counter()
        run_pyramid(spec, client, progress=progress)
        write_status(spec, journal)
        seconds = {
            "total": time.perf_counter() - started,
            "prepare": (prepared - started) - (measured - checked),
            "statistics": measured - checked,
            "blocks": executed - prepared,
            "pyramid": time.perf_counter() - executed,
            "read": sum(r.read_s for r in reports),
            "infer": sum(r.infer_s for r in reports),
            "write": sum(r.write_s for r in reports),
        }
        result = SegmentationResult(
            output=target,
            labels=target / "labels" / LABELS_NAME if "labels" in kinds else None,
            plan=ready.plan,
            engine=description,
            class_fractions=_class_fractions(journal, ready.artifact.card),
            seconds=seconds,
            pixels=sum(r.pixels for r in reports),
            failed=journal.with_status("failed"),
            blocks_found=0 if begun is None else ready.plan.n_blocks - len(reports),
            statistics=statistics,
            rungs=max((r.rungs for r in reports), key=len, default=()),  # workers climb the same ladder, some further
        )
        _finish(spec, provenance, result)
    return result


def _measure(
    ready: Preparation, client: Any, *, known: VolumeStatistics | None, progress: ProgressCallback | None
) -> tuple[Preparation, VolumeStatistics | None]:
    """Return the preparation with its normaliser, and what was measured for it, now or before."""
    card, info = ready.artifact.card, ready.volume.info
    if ready.normaliser is not None:
        return ready, None
    percentiles = card.normalisation.percentiles
    assert percentiles is not None
    found = known
    if found is None or found.percentiles != percentiles or len(found.ranges) != len(ready.channels):
        found = measure_volume(ready.volume, ready.channels, percentiles, client, progress=progress)
    chosen = choose_normaliser(card, info.dtype, input_range=None, source=info.path, measured=found.ranges)
    return replace(ready, normaliser=chosen), found


def _class_fractions(journal: Journal, card: ModelCard) -> dict[str, float]:
    counts = [r.class_counts for r in journal.records.values() if r.class_counts]
    if not counts:  # no labels were made
        return {}
    totals = np.array(counts, np.int64).sum(axis=0)
    return {c.name: float(n / totals.sum()) for c, n in zip(card.classes, totals, strict=True)}


def _provenance(
    ready: Preparation,
    engine: EngineDescription,
    spec: OutputSpec,
    *,
    input_range: tuple[float, float] | None,
    statistics: VolumeStatistics | None,
) -> dict[str, Any]:
    artifact, info = ready.artifact, ready.volume.info
    return {
        "software": {"unet-deploy": unet_deploy.__version__, "numpy": np.__version__, "zarr": version("zarr")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": {
            "name": artifact.card.name,
            "source": artifact.source,
            "sha256": artifact.sha256,
            "precision": artifact.card.precision,
            "licence": artifact.card.training.licence,
            "classes": [c.name for c in artifact.card.classes],
        },
        "engine": engine.to_object(),
        "volume": identify_volume(info),
        "parameters": {
            "channels": list(ready.channels),
            "input_range": None if input_range is None else list(input_range),
            "write": list(spec.kinds),
            "tta": ready.plan.tta,
        },
        "statistics": None if statistics is None else statistics.to_object(),
        "plan": ready.plan.to_object(),
    }


def _finish(spec: OutputSpec, provenance: dict[str, Any], result: SegmentationResult) -> None:
    failures = [{"block": r.index, "reason": r.reason} for r in result.failed]
    finish_output(
        spec,
        provenance={
            **provenance,
            "status": "partial" if failures else "complete",
            "failed_blocks": failures,
            "out_of_memory": [rung.to_object() for rung in result.rungs],
            "class_fractions": result.class_fractions,
            "seconds": {k: round(v, 3) for k, v in result.seconds.items()},
        },
        source="../../" if "probabilities" in spec.kinds else None,
    )
    if failures:
        listing = [f"block {r.index}: {(r.reason or '').splitlines()[0]}" for r in result.failed[:10]]
        more = len(failures) - len(listing)
        raise PartialResultError(
            f"{len(failures)} of {result.plan.n_blocks} blocks failed; they are 0 in {result.output}",
            *listing,
            *([f"and {more} more, listed in the output's attributes"] if more else []),
            fix="mend the cause, then give the same command with --retry-failed",
        )
