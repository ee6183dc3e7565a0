"""``unet-deploy segment``: a volume in, labels and probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unet_deploy.cli import _options as flags
from unet_deploy.cli._report import (
    describe_engine,
    format_bytes,
    format_seconds,
    peak_memory_bytes,
    show_json,
    show_progress,
    show_rows,
    stop_on_interrupt,
)

if TYPE_CHECKING:
    from unet_deploy.runtime.engines.memory import Rung
    from unet_deploy.runtime.pipeline import SegmentationResult
    from unet_deploy.runtime.statistics import VolumeStatistics


def segment(
    volume: flags.VolumeArgument,
    model: flags.ModelOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="STORE", help="Default: VOLUME_segmentation.ome.zarr beside it."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier segmentation.")] = False,
    write: Annotated[
        list[str] | None,
        typer.Option("--write", metavar="KIND", help="labels or probabilities; repeat. Default: both."),
    ] = None,
    channel: flags.ChannelOption = None,
    axes: flags.AxesOption = None,
    level: flags.LevelOption = 0,
    input_range: flags.InputRangeOption = None,
    device: flags.DeviceOption = "auto",
    engine: flags.EngineOption = None,
    threads: flags.ThreadsOption = 0,
    tile: flags.TileOption = None,
    batch: flags.BatchOption = 1,
    memory: flags.MemoryOption = 2048,
    tta: flags.TtaOption = False,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", metavar="ADDRESS", help="Dask scheduler. Default: in this process.")
    ] = None,
    no_space_check: Annotated[
        bool, typer.Option("--no-space-check", help="Start even if the uncompressed result would not fit.")
    ] = False,
    trust_engine: flags.TrustEngineOption = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run the failed blocks of an earlier run again.")
    ] = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Segment a Zarr volume into an OME-Zarr of labels and probabilities.

    Tiles overlap exactly and borders are mirrored, so the result equals one pass over each whole plane. A run that was
    stopped or killed goes on with the same command.
    """
    from unet_deploy.runtime import pipeline
    from unet_deploy.runtime.layout import KINDS

    with stop_on_interrupt("the blocks in flight are finished") as should_stop, show_progress() as progress:
        result = pipeline.segment(
            volume,
            model=flags.load_model(model, trust_engine=trust_engine),
            output=output,
            overwrite=overwrite,
            write=write or KINDS,
            channels=channel or (),
            axes=axes,
            level=level,
            input_range=flags.parse_input_range(input_range),
            device=device,
            engine=engine,
            threads=threads,
            tile=flags.parse_tile(tile),
            batch=batch,
            memory_bytes=memory * 2**20,
            tta=tta,
            scheduler=scheduler,
            check_free_space=not no_space_check,
            retry_failed=retry_failed,
            should_stop=should_stop,
            progress=progress,
        )
    if as_json:
        show_json(result_to_object(result))
    else:
        show_result(result)


def result_to_object(result: SegmentationResult) -> dict[str, Any]:
    """Return a result as JSON values."""
    return {
        "output": str(result.output),
        "labels": None if result.labels is None else str(result.labels),
        "pixels": result.plan.extents.pixels,
        "pixels_per_second": result.pixels_per_second,
        "blocks_found": result.blocks_found,
        "class_fractions": result.class_fractions,
        "statistics": None if result.statistics is None else result.statistics.to_object(),
        "seconds": result.seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "engine": result.engine.to_object(),
        "out_of_memory": [rung.to_object() for rung in result.rungs],
        "plan": result.plan.to_object(),
    }


def show_result(result: SegmentationResult) -> None:
    """Print the summary of a finished run."""
    plan, seconds = result.plan, result.seconds
    peak = peak_memory_bytes()
    extents, statistics, found = plan.extents, result.statistics, result.blocks_found
    measuring = "" if statistics is None else f"statistics {seconds['statistics']:.1f}, "
    rows = [
        ("output", str(result.output)),
        ("labels", str(result.labels) if result.labels is not None else "not written"),
        *(("share", f"{fraction:6.1%} {name}") for name, fraction in result.class_fractions.items() if result.labels),
        *([] if statistics is None else [("grey values", _describe_statistics(statistics))]),
        ("pixels", f"{extents.pixels:,} ({extents.t} × {extents.z} × {extents.y} × {extents.x} t z y x)"),
        (
            "time",
            f"{format_seconds(seconds['total'])}, {result.pixels_per_second / 1e6:.2f} Mpx/s "
            f"(preparing {seconds['prepare']:.1f}, {measuring}blocks {seconds['blocks']:.1f}, "
            f"pyramid {seconds['pyramid']:.1f})",
        ),
        *([] if not found else [("went on", f"{found} of {plan.n_blocks} blocks were done before")]),
        ("tiles", f"{plan.n_tiles} of {plan.tile_y} × {plan.tile_x} px in {plan.n_blocks} blocks"),
        *([("tta", f"each the mean of {plan.passes} turned and mirrored forms")] if plan.tta else []),
        *describe_engine(result.engine),
        *([("smaller", _describe_rungs(result.rungs))] if result.rungs else []),
        ("memory", format_bytes(peak) if peak is not None else "not measured on this system"),
    ]
    show_rows(rows)


def _describe_rungs(rungs: Sequence[Rung]) -> str:
    """Return what was done when memory ran out, in words."""
    tried = ", then with ".join(rung.words for rung in rungs[:-1])
    return f"memory ran out with {tried}; went on with {rungs[-1].words}, which gives the same result"


def _describe_statistics(statistics: VolumeStatistics) -> str:
    """Return the grey values measured, in words; with one channel also as the flag that means the same elsewhere."""
    low, high = statistics.percentiles
    pairs = [f"{first:g}:{last:g}" for first, last in statistics.ranges]
    text = f"{', '.join(pairs)} are the percentiles {low:g} and {high:g} of the volume"
    if len(pairs) == 1 and statistics.ranges[0][0] < statistics.ranges[0][1]:
        first, last = statistics.ranges[0]
        text += f" (--input-range {first!r}:{last!r} gives another volume the same scale)"
    return text
