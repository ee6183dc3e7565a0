"""Segment a volume: everything between a path and a finished OME-Zarr, in seven steps.

1. *open*: artifact, volume, channels, grey values and output place are checked; nothing is written yet.
2. *plan*: tiles and blocks; free disk and memory are checked against the plan.
3. *statistics*: how the volume differs from what the model was trained on; its percentiles by one pass over it, where
   the card asks for them.
4. *execute*: blocks, through Dask; all, those of a region, or each when its chunks have arrived.
5. *pyramid*: lower resolutions.
6. *objects*: numbered across blocks, where they are asked for.
7. *finish*: metadata and provenance, with the status that says whether every block is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.block_table import check_table_path
from unet_deploy.runtime.dask_client import connect, imported_beside, runs_here
from unet_deploy.runtime.disk_space import check_space
from unet_deploy.runtime.engine_costs import CAUTIOUS, EngineCosts
from unet_deploy.runtime.engines import EngineDescription, candidates
from unet_deploy.runtime.engines.base import Verdict
from unet_deploy.runtime.engines.cache import EngineFactory, EngineRequest, drop_engine, settle_engine
from unet_deploy.runtime.execute import ProgressCallback
from unet_deploy.runtime.expected_costs import costs_of, engine_to_go_on_with, expect_costs, probe_if_long
from unet_deploy.runtime.follow import Following, begin_following, require_followable, wait_for_volume
from unet_deploy.runtime.holding import MIN_FREE_BYTES, check_memory
from unet_deploy.runtime.instances import check_objects_table, default_table, require_rule, require_scipy
from unet_deploy.runtime.layout import split_kinds
from unet_deploy.runtime.machine import held_memory_bytes, read_memory
from unet_deploy.runtime.place import find_place, require_objects_fit, share_to_make
from unet_deploy.runtime.plan import SegmentationPlan
from unet_deploy.runtime.preparation import Preparation, prepare, resolve_model
from unet_deploy.runtime.profile_file import check_profile_path
from unet_deploy.runtime.profiled_run import begin_timeline, carry_out_profiled
from unet_deploy.runtime.region import Region
from unet_deploy.runtime.replanning import plan_as_begun, plan_for_taken, replan
from unet_deploy.runtime.results import SegmentationResult, require_whole
from unet_deploy.runtime.run_settings import Run
from unet_deploy.runtime.timeline import span
from unet_deploy.runtime.volume import open_volume

__all__ = ["SegmentationResult", "segment"]


def segment(
    volume: str | Path,
    *,
    model: str | Path | Artifact | None = None,
    output: str | Path | None = None,
    into_labels: str | None = None,
    overwrite: bool = False,
    write: Sequence[str] | None = None,
    image: str | None = None,
    channels: Sequence[int | str] = (),
    axes: str | None = None,
    level: int | None = None,
    region: Region | None = None,
    follow: Following | None = None,
    input_range: tuple[float, float] | None = None,
    strict: bool = False,
    objects: Sequence[int | str] = (),
    object_dimensions: int = 2,
    object_neighbours: str = "face",
    min_object_size: int = 0,
    table: str | Path | None = None,
    profile: str | Path | None = None,
    device: str = "auto",
    engine: str | None = None,
    threads: int = 0,
    tile: tuple[int, int] | None = None,
    batch: int = 1,
    max_memory_bytes: int | None = None,
    tta: bool = False,
    scheduler: Any | None = None,
    scheduler_file: str | Path | None = None,
    check_free_space: bool = True,
    min_free_bytes: int = MIN_FREE_BYTES,
    engine_factory: EngineFactory | None = None,
    keep_engine: bool = False,
    retry_failed: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    should_pause: Callable[[], bool] = lambda: False,
    progress: ProgressCallback | None = None,
) -> SegmentationResult:
    """Segment a Zarr volume plane by plane, and write labels, probabilities and objects as OME-Zarr.

    The result does not depend on `tile`, `batch`, `max_memory_bytes`, `region`, `scheduler` or the volume's chunks: it
    equals one pass of the network over each whole mirrored plane (paper, figure 2), up to the engine's own rounding.

    A run that was killed or stopped goes on when it is begun again with the same inputs and parameters, and ends with
    the bytes of an unbroken one.

    Parameters
    ----------
    volume
        An OME-Zarr image (0.4, 0.5), a Zarr array (v2, v3) or a TIFF file, of 2 to 5 of the axes t, c, z, y, x.
    model
        An artifact, its path, or the name of a bundled network; the bundled ``membrane`` if None.
    output
        The store to write; `default_output` if None.
    into_labels
        Instead, write the labels into the volume's own ``labels``, under this name.
    overwrite
        Replace an earlier segmentation of ours. Anything else that exists is never replaced. With a `region`, only the
        region's blocks are made again.
    write
        Any of ``"labels"`` (uint8, the class of each pixel), ``"probabilities"`` (uint8 by class, 255 for certain) and
        ``"instances"`` (uint32, a number for each object across blocks; needs labels). None for labels and
        probabilities, or labels alone into the volume's own.
    image
        Which image of a plate, a series or another store of several; see `list_images`.
    channels
        The volume's channels, by index or name, in the order the model wants them; needed if there are more.
    axes
        Axis names of a bare array.
    level
        Level of a pyramid; None for the one with pixels of the size that the model was trained at, where both are
        known, else 0.
    region
        Only the blocks that touch it. The output is that of the whole volume, the rest of it yet to be done: another
        call goes on with it.
    follow
        The volume is still being written: each block runs when its chunks have arrived. See `Following`.
    input_range
        Grey values of the volume that mean the ends of the model's value range; needed if the dtypes differ. A model
        that scales each volume by its own percentiles takes any dtype, and these in place of the percentiles: so
        parts of a volume, or the volumes of a series, get one scale, and nothing needs to be measured.
    strict
        Refuse a volume that differs from what the model was trained on, or cannot be compared; else the result's
        `findings` say so.
    objects, object_dimensions, object_neighbours, min_object_size
        What an object is, for ``"instances"``: see `require_rule`. A table of them is written beside the output.
    table
        A file (.csv or .parquet) to write with a row for each block: what it holds, and what became of it.
    profile
        A file to write with what each thread did when: a page to look at (.html), or trace events for Perfetto (.json).
        It is of this run, not of the parts that earlier ones did; the result's `profile` adds it up.
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
    max_memory_bytes
        What one process may hold; the plan is made so. None plans for speed.
    tta
        Average the network over the 8 turned and mirrored forms of each tile, as the paper does with 7: 8 times the
        work, and just as seamless.
    scheduler, scheduler_file
        None to run in this process, the address of a Dask scheduler, or a ``distributed.Client``; or the file that
        ``dask scheduler --scheduler-file`` wrote.
    check_free_space
        Refuse to start when the uncompressed result would not fit on the disk, or the run not into memory.
    min_free_bytes
        Pause, instead of failing, for as long as less is free on the output's disk.
    engine_factory
        Makes the engine from the artifact, in place of those that come with the package; importable by workers.
    keep_engine
        Leave the engine open for the next call in this process; `Segmenter` does.
    retry_failed
        Run the failed blocks of an earlier run again.
    should_stop
        Asked before each block; once it says so, the blocks in flight are finished and no other begun.
    should_pause
        Asked before each block; while it says so, none is begun.
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
        If a package, a device, memory or the scheduler is missing. All of these come before anything is written.
    NoSpaceError
        Also if the disk fills up meanwhile; the output then says that it is unfinished.
    PartialResultError
        If blocks failed; the output holds the others and says so.
    InterruptedRunError
        If `should_stop` said so before the last block, or what a volume that is followed lacks did not come in time.
    """
    started = time.perf_counter()
    kinds, wants_objects = split_kinds(write, is_label_group=into_labels is not None)
    candidates(device, engine)  # says what is wrong with the names before any work
    with ExitStack() as held:
        timeline = held.enter_context(begin_timeline(profile, started))
        if follow is not None:
            wait_for_volume(
                volume,
                lambda: open_volume(volume, image=image, level=level or 0, axes=axes).info,
                follow,
                should_stop=should_stop,
            )
        artifact = resolve_model(model)
        is_here = runs_here(scheduler, scheduler_file)
        costs_here = partial(costs_of, artifact, device=device, threads=threads, is_here=is_here)
        ready = prepare(
            volume,
            model=artifact,
            image=image,
            channels=channels,
            axes=axes,
            level=level,
            tile=tile,
            batch=batch,
            max_memory_bytes=max_memory_bytes,
            input_range=input_range,
            tta=tta,
            costs=CAUTIOUS
            if engine_factory is not None
            else expect_costs(artifact, device=device, engine=engine, threads=threads, is_here=is_here),
        )
        rule = require_rule(
            ready.artifact.card.classes,
            objects=objects,
            dimensions=object_dimensions,
            neighbours=object_neighbours,
            min_size=min_object_size,
        )
        if follow is not None:
            require_followable(ready.volume.info, ready.artifact.card, input_range=input_range, is_strict=strict)
        if region is not None:
            region.require_inside(ready.plan.extents)
        place = find_place(
            ready,
            output=output,
            into_labels=into_labels,
            overwrite=overwrite,
            is_region=region is not None,
            retry_failed=retry_failed,
            kinds=kinds,
            wants_instances=wants_objects,
        )
        goes_on_with = None
        if place.begun is not None:
            if engine is None and engine_factory is None:
                goes_on_with = engine_to_go_on_with(artifact, place.begun.engine, device=device, threads=threads)
            if goes_on_with is not None:
                ready = plan_for_taken(ready, costs_here(goes_on_with), may_change=False)
            ready = plan_as_begun(ready, place.begun.plan, tile=tile, max_memory_bytes=max_memory_bytes)
        ready = begin_following(ready, follow, target=place.target, goes_on=place.begun is not None, region=region)
        spec = ready.output_spec(place.target, kinds, is_label_group=into_labels is not None)
        require_objects_fit(place, spec, wants_instances=wants_objects)
        if wants_objects:
            require_scipy()
            check_objects_table(default_table(place.target), overwrite=overwrite or place.begun is not None)
        _check_files(table, profile, overwrite=overwrite, goes_on=place.begun is not None)
        if check_free_space and (place.begun is None or not place.begun.is_broken_off):  # that was checked before
            check_space(spec, wants_instances=wants_objects, share=share_to_make(ready.plan, place, region))
        planning: dict[str, Any] = {"batch": batch, "max_memory_bytes": max_memory_bytes, "tta": tta}
        may_replan = not (place.begun or tile or follow or engine_factory)
        if is_here and may_replan:
            with span("probe"):
                measured = probe_if_long(
                    artifact,
                    ready.plan,
                    device=device,
                    engine=engine,
                    threads=threads,
                    region=region,
                    max_memory_bytes=max_memory_bytes,
                    should_stop=should_stop,
                )
            ready = replan(ready, costs=measured, **planning)
        _check_memory(ready.plan, is_wanted=check_free_space and is_here)
        with span("import"), imported_beside():  # while the engine's own library reads and compiles
            ready, request, description = _open_engine(
                ready,
                EngineRequest(
                    artifact=ready.artifact,
                    device=device,
                    engine=engine or goes_on_with,
                    threads=threads,
                    batch_shape=ready.plan.batch_shape,
                    factory=engine_factory,
                    tta=tta,
                ),
                is_gone_on_with=goes_on_with is not None,
                replan_for=lambda name: plan_for_taken(ready, costs_here(name), may_change=may_replan, **planning),
            )
        if not keep_engine:
            held.callback(drop_engine, request)
        _check_memory(ready.plan, is_wanted=check_free_space and is_here)  # another engine may have been expected
        spec = ready.output_spec(place.target, kinds, is_label_group=into_labels is not None)
        with span("connect"):
            client = held.enter_context(connect(scheduler, scheduler_file, threads=ready.plan.blocks_in_flight))
        run = Run(
            ready=ready,
            place=place,
            spec=spec,
            rule=rule if wants_objects else None,
            table=None if table is None else Path(table),
            request=request,
            engine=description,
            threads=threads,
            region=region,
            following=follow,
            input_range=input_range,
            is_strict=strict,
            retry_failed=retry_failed,
            min_free_bytes=min_free_bytes,
            should_stop=should_stop,
            should_pause=should_pause,
            progress=progress,
            started=started,
            timeline=timeline,
        )
        result = carry_out_profiled(run, client)
    require_whole(result, is_region=region is not None)
    return result


def _open_engine(
    ready: Preparation,
    request: EngineRequest,
    *,
    is_gone_on_with: bool,
    replan_for: Callable[[str], Preparation],
) -> tuple[Preparation, EngineRequest, EngineDescription]:
    """Open the engine; return the preparation with its costs, its request by name, and what it is.

    `replan_for` gives the preparation for the engine of a name.
    """
    request, description = settle_engine(request)
    if is_gone_on_with:
        verdict = Verdict(engine=description.engine, verdict="the run was begun with it", is_taken=True)
        description = replace(description, choice=(verdict,))
    costs = ready.plan.costs
    if request.factory is not None or (isinstance(costs, EngineCosts) and costs.engine == description.engine):
        return ready, request, description
    try:
        ready = replan_for(description.engine)
    except BaseException:
        drop_engine(request)
        raise
    if ready.plan.batch_shape != request.batch_shape:
        drop_engine(request)
        request, _ = settle_engine(replace(request, batch_shape=ready.plan.batch_shape))
    return ready, request, description


def _check_memory(plan: SegmentationPlan, *, is_wanted: bool) -> None:
    if is_wanted:
        check_memory(plan.peak_memory_bytes, read_memory(), held_bytes=held_memory_bytes())


def _check_files(table: str | Path | None, profile: str | Path | None, *, overwrite: bool, goes_on: bool) -> None:
    """Refuse places where what is asked for beside the output cannot be written."""
    if table is not None:
        check_table_path(Path(table), overwrite=overwrite, goes_on=goes_on)
    if profile is not None:
        check_profile_path(Path(profile), overwrite=overwrite, goes_on=goes_on)
