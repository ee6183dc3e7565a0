"""``unet-deploy plan``: what a run would do and cost, without doing it."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unet_deploy.cli import _options as flags
from unet_deploy.cli._images import holds_several, plan_each
from unet_deploy.cli._report import describe_engine, format_bytes, format_seconds, show_json, show_rows

if TYPE_CHECKING:
    from unet_deploy.runtime.drift import Finding
    from unet_deploy.runtime.engines import EngineDescription
    from unet_deploy.runtime.plan import SegmentationPlan
    from unet_deploy.runtime.preparation import Preparation


def plan(
    volume: flags.VolumeArgument,
    model: flags.ModelOption = None,
    image: flags.ImageOption = None,
    channel: flags.ChannelOption = None,
    axes: flags.AxesOption = None,
    level: flags.FittingLevelOption = None,
    region: flags.RegionOption = None,
    plane: flags.PlaneOption = None,
    input_range: flags.InputRangeOption = None,
    device: flags.DeviceOption = "auto",
    engine: flags.EngineOption = None,
    threads: flags.ThreadsOption = 0,
    tile: flags.TileOption = None,
    batch: flags.BatchOption = 1,
    max_memory: flags.MaxMemoryOption = None,
    tta: flags.TtaOption = False,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Do not time a tile to estimate the duration.")] = False,
    trust_engine: flags.TrustEngineOption = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Show tiles, blocks, memory, disk and time of a segmentation, without starting it."""
    from unet_deploy.runtime.engines import candidates
    from unet_deploy.runtime.expected_costs import expect_costs
    from unet_deploy.runtime.layout import KINDS
    from unet_deploy.runtime.machine import read_memory
    from unet_deploy.runtime.preparation import prepare

    candidates(device, engine)  # also without the probe: a name that is none would fail the run
    artifact = flags.load_model(model, trust_engine=trust_engine)
    options: dict[str, Any] = {
        "model": artifact,
        "costs": expect_costs(artifact, device=device, engine=engine, threads=threads),
        "channels": channel or (),
        "axes": axes,
        "level": level,
        "tile": flags.parse_tile(tile),
        "batch": batch,
        "max_memory_bytes": flags.parse_size(max_memory, flag="--max-memory"),
        "tta": tta,
        "input_range": flags.parse_input_range(input_range),
    }
    if holds_several(volume, image):
        probe = partial(_time_tile, device=device, engine=engine, threads=threads)
        plan_each(volume, time_tile=None if no_probe else probe, as_json=as_json, **options)
        return
    ready = prepare(volume, image=image, **options)
    wanted = flags.parse_region(region, plane)
    if wanted is not None:
        wanted.require_inside(ready.plan.extents)
    spec = ready.output_spec(ready.default_output, KINDS)
    seconds_per_tile, timed = (
        (None, None) if no_probe else _time_tile(ready, device=device, engine=engine, threads=threads)
    )
    share = ready.plan.count(wanted) / ready.plan.n_blocks
    differs = _look_at_grey_values(ready, input_range=options["input_range"])
    facts: dict[str, Any] = {
        **ready.plan.to_object(),
        "blocks_wanted": ready.plan.count(wanted),
        "level": ready.volume.info.level,
        "level_choice": ready.level_choice,
        "differs_from_training": None if differs is None else [finding.text for finding in differs],
        "memory_available_bytes": read_memory().available_bytes,
        "statistics_bytes": ready.statistics_bytes,
        "output": spec.path,
        "disk_bytes": -(-spec.raw_bytes * ready.plan.count(wanted) // ready.plan.n_blocks),
        "disk_free_bytes": shutil.disk_usage(Path(spec.path).resolve().parent).free,
        "pyramid_levels": spec.n_levels,
        "engine": None if timed is None else timed.to_object(),
        "seconds_per_tile": seconds_per_tile,
        "seconds": None
        if seconds_per_tile is None
        else share * seconds_per_tile * ready.plan.n_tiles * ready.plan.passes,
    }
    if as_json:
        show_json(facts)
    else:
        _show(ready, facts, timed)


def _look_at_grey_values(ready: Preparation, *, input_range: tuple[float, float] | None) -> tuple[Finding, ...] | None:
    """Return how a small sample differs from the training images, None if it cannot be read; the run looks at more."""
    from unet_deploy.errors import ReadError
    from unet_deploy.runtime.drift import glance_at_drift

    try:
        return glance_at_drift(ready.volume, ready.artifact.card, ready.channels, input_range=input_range)
    except ReadError:  # the run says which blocks cannot be read
        return None


def _time_tile(ready: Preparation, *, device: str, engine: str | None, threads: int) -> tuple[float, EngineDescription]:
    """Return the seconds one tile takes, the third of three batches of mid-grey divided by the batch, and on what."""
    import numpy as np

    from unet_deploy.runtime.engines import open_engine

    network, shape = ready.plan.network, ready.plan
    batch = np.zeros((shape.batch, network.in_channels, shape.tile_y, shape.tile_x), np.float32)
    opened = open_engine(ready.artifact, device=device, engine=engine, threads=threads, batch_shape=shape.batch_shape)
    try:
        for _ in range(2):  # onnxruntime plans its memory after the first run, so the second still allocates
            opened.infer(batch)
        start = time.perf_counter()
        opened.infer(batch)
        return (time.perf_counter() - start) / shape.batch, opened.describe()
    finally:
        opened.close()


def _show(ready: Preparation, facts: dict[str, Any], timed: EngineDescription | None) -> None:
    p, info = ready.plan, ready.volume.info
    core = " × ".join(map(str, facts["core"]))
    free = facts["memory_available_bytes"]
    available = "" if free is None else f"; {format_bytes(free)} available"
    rows = [
        ("volume", f"{info.path}: {info.axes} {' × '.join(map(str, info.shape))} {info.dtype}"),
        ("model", f"{ready.artifact.card.name} ({ready.artifact.source})"),
        *([] if ready.level_choice is None else [("level", ready.level_choice.removeprefix("level "))]),
        *(("differs", text) for text in facts["differs_from_training"] or ()),
        ("tiles", f"{p.n_tiles} of {p.tile_y} × {p.tile_x} px, each keeping {core}"),
        *_tile_rows(p, facts["blocks_wanted"]),
        *([("tta", f"each tile {p.passes} times, turned and mirrored, and the mean of the results")] if p.tta else []),
        ("blocks", f"{p.n_blocks} of {' × '.join(map(str, p.block_shape))} (z y x)"),
        *([] if facts["blocks_wanted"] == p.n_blocks else [("region", f"{facts['blocks_wanted']} of them")]),
        ("chunks out", " × ".join(map(str, p.grid.chunk)) + (f", shards {p.grid.shard}" if p.grid.shard else "")),
        (
            "work",
            f"{p.least_flops / 1e12:.3g} TFLOP needed, {p.flops / 1e12:.3g} will be spent: "
            f"{p.flops_ratio:.2f} times what an endless tile would need",
        ),
        ("read", f"{format_bytes(facts['bytes_read'])} with halos; a chunk is decoded {p.decodes_per_chunk:.2f} times"),
        *_statistics_rows(ready),
        ("memory", f"about {format_bytes(p.peak_memory_bytes)}, whatever the volume's size{available}"),
        ("disk", f"up to {format_bytes(facts['disk_bytes'])}, {format_bytes(facts['disk_free_bytes'])} free"),
        (
            "time",
            "not estimated"
            if facts["seconds"] is None
            else f"about {format_seconds(facts['seconds'])}: one tile took {facts['seconds_per_tile']:.2f} s just now"
            + (f", {p.passes} times" if p.tta else ""),
        ),
        *([] if timed is None else describe_engine(timed)),
        ("output", f"{facts['output']}, {facts['pyramid_levels']} level(s)"),
    ]
    show_rows(rows)


def _tile_rows(plan: SegmentationPlan, n_blocks: int) -> list[tuple[str, str]]:
    """Return why this tile, where nobody asked for it."""
    from unet_deploy.runtime.expected_costs import is_worth_a_probe

    if plan.reason == "given":
        return []
    is_measured_first = is_worth_a_probe(plan, n_blocks)
    measured = "; before so long a run, segment measures the engine, and chooses anew" if is_measured_first else ""
    return [("", f"{plan.reason}{measured}")]


def _statistics_rows(ready: Preparation) -> list[tuple[str, str]]:
    percentiles = ready.artifact.card.normalisation.percentiles
    if ready.normaliser is not None or percentiles is None:
        return []
    text = f"{format_bytes(ready.statistics_bytes)} are read first, for the volume's percentiles"
    return [("statistics", f"{text} {percentiles[0]:g} and {percentiles[1]:g}; --input-range takes their place")]
