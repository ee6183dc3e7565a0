"""``unet-deploy segment``: a volume in, labels and probabilities out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unet_deploy.cli import _options as flags
from unet_deploy.cli._images import holds_several, segment_each
from unet_deploy.cli._report import pause_on_signal, show_json, show_progress, stop_on_interrupt
from unet_deploy.cli._summary import result_to_object, show_result


def segment(
    volume: flags.VolumeArgument,
    model: flags.ModelOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="STORE",
            help="Default: VOLUME_segmentation.ome.zarr beside it. Of a plate or series, a folder.",
        ),
    ] = None,
    into_labels: Annotated[
        str | None,
        typer.Option("--into-labels", metavar="NAME", help="Write labels into the volume's own labels, as NAME."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier segmentation; with --region, that part of it.")
    ] = False,
    write: Annotated[
        list[str] | None,
        typer.Option(
            "--write",
            metavar="KIND",
            help="labels, probabilities or instances (objects of the labels, numbered); repeat. "
            "Default: labels and probabilities; with --into-labels, labels.",
        ),
    ] = None,
    image: flags.ImageOption = None,
    channel: flags.ChannelOption = None,
    axes: flags.AxesOption = None,
    level: flags.FittingLevelOption = None,
    region: flags.RegionOption = None,
    plane: flags.PlaneOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="The volume is still being written: do each block when its chunks arrive.")
    ] = False,
    follow_timeout: Annotated[
        float | None,
        typer.Option(
            "--follow-timeout",
            metavar="SECONDS",
            help=f"Stop following when nothing new came for so long. Default: {flags.FOLLOW_TIMEOUT_S}.",
        ),
    ] = None,
    until_complete: Annotated[
        bool, typer.Option("--until-complete", help="Follow until every chunk is there, however long that takes.")
    ] = False,
    grows: Annotated[
        bool, typer.Option("--grows", help="The volume that is followed grows along its first axis, t or z.")
    ] = False,
    input_range: flags.InputRangeOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a volume that differs from what the model was trained on.")
    ] = False,
    objects: Annotated[
        list[str] | None,
        typer.Option(
            "--objects", metavar="CLASS", help="Class whose pixels are objects; repeat. Default: all but the first."
        ),
    ] = None,
    object_dimensions: Annotated[
        int, typer.Option("--object-dimensions", metavar="2|3", help="Objects of single planes, or through z.")
    ] = 2,
    object_neighbours: Annotated[
        str,
        typer.Option(
            "--object-neighbours", metavar="face|full", help="Pixels of one object share a side, or at least a corner."
        ),
    ] = "face",
    min_object_size: Annotated[
        int, typer.Option("--min-object-size", metavar="PX", min=0, help="Smaller objects are dropped.")
    ] = 0,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="Write a row for each block to a .csv or .parquet file; of a plate, a file for each image.",
        ),
    ] = None,
    profile: flags.ProfileOption = None,
    device: flags.DeviceOption = "auto",
    engine: flags.EngineOption = None,
    threads: flags.ThreadsOption = 0,
    tile: flags.TileOption = None,
    batch: flags.BatchOption = 1,
    max_memory: flags.MaxMemoryOption = None,
    tta: flags.TtaOption = False,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", metavar="ADDRESS", help="Dask scheduler. Default: in this process.")
    ] = None,
    scheduler_file: Annotated[
        Path | None,
        typer.Option("--scheduler-file", metavar="FILE", help="What dask scheduler --scheduler-file wrote."),
    ] = None,
    low_priority: Annotated[
        bool, typer.Option("--low-priority", help="Let other programs on this machine come first.")
    ] = False,
    min_free_disk: Annotated[
        str | None,
        typer.Option("--min-free-disk", metavar="SIZE", help="Pause while less is free there. Default: 256MiB."),
    ] = None,
    no_space_check: Annotated[
        bool, typer.Option("--no-space-check", help="Start even if disk or memory look too small.")
    ] = False,
    trust_engine: flags.TrustEngineOption = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run the failed blocks of an earlier run again.")
    ] = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Segment a Zarr volume into an OME-Zarr of labels and probabilities.

    Tiles overlap exactly and borders are mirrored, so the result equals one pass over each whole plane. A run that was
    stopped or killed goes on with the same command. Of a plate, a series or a TIFF file of several images each is
    segmented, or one with --image; --output is then a folder for the results.
    """
    from unet_deploy.errors import PartialResultError
    from unet_deploy.runtime import pipeline
    from unet_deploy.runtime.holding import MIN_FREE_BYTES
    from unet_deploy.runtime.machine import lower_priority

    free = flags.parse_size(min_free_disk, flag="--min-free-disk")
    flags.require_objects_wanted(
        write,
        {
            "--objects": bool(objects),
            "--object-dimensions": object_dimensions != 2,
            "--object-neighbours": object_neighbours != "face",
            "--min-object-size": min_object_size > 0,
        },
    )
    options: dict[str, Any] = {
        "into_labels": into_labels,
        "overwrite": overwrite,
        "write": write,
        "channels": channel or (),
        "axes": axes,
        "level": level,
        "region": flags.parse_region(region, plane),
        "follow": flags.parse_following(follow, timeout_s=follow_timeout, until_complete=until_complete, grows=grows),
        "input_range": flags.parse_input_range(input_range),
        "strict": strict,
        "objects": objects or (),
        "object_dimensions": object_dimensions,
        "object_neighbours": object_neighbours,
        "min_object_size": min_object_size,
        "table": table,
        "profile": profile,
        "device": device,
        "engine": engine,
        "threads": threads,
        "tile": flags.parse_tile(tile),
        "batch": batch,
        "max_memory_bytes": flags.parse_size(max_memory, flag="--max-memory"),
        "tta": tta,
        "scheduler": scheduler,
        "scheduler_file": scheduler_file,
        "check_free_space": not no_space_check,
        "min_free_bytes": MIN_FREE_BYTES if free is None else free,
        "retry_failed": retry_failed,
    }
    if low_priority:
        lower_priority()
    with (
        stop_on_interrupt("the blocks in flight are finished") as should_stop,
        pause_on_signal() as should_pause,
    ):
        options |= {"should_stop": should_stop, "should_pause": should_pause}
        options["model"] = flags.load_model(model, trust_engine=trust_engine)
        if not follow and holds_several(volume, image):
            segment_each(volume, output_folder=output, as_json=as_json, **options)
            return
        try:
            with show_progress() as progress:
                result = pipeline.segment(volume, image=image, output=output, progress=progress, **options)
        except PartialResultError as error:
            if as_json:
                show_json(result_to_object(error.result))
            raise
    if as_json:
        show_json(result_to_object(result))
    else:
        show_result(result)
