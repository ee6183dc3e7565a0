"""What ``segment`` says of a finished run: rows for people, JSON values for machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_deploy.cli._report import describe_engine, format_bytes, format_seconds, peak_memory_bytes, show_rows

if TYPE_CHECKING:
    from unet_deploy.runtime.engines.memory import Rung
    from unet_deploy.runtime.profile import Profile
    from unet_deploy.runtime.results import SegmentationResult
    from unet_deploy.runtime.statistics import VolumeStatistics


MOST_STAGES = 5
"""So many of those in which the time went are named; --json has all."""
WAITING = "wait"
"""The stage in which another thread has the engine."""


def result_to_object(result: SegmentationResult) -> dict[str, Any]:
    """Return a result as JSON values."""
    return {
        "output": str(result.output),
        "status": result.status,
        "labels": None if result.labels is None else str(result.labels),
        "pixels": result.plan.extents.pixels,
        "pixels_per_second": result.pixels_per_second,
        "blocks_found": result.blocks_found,
        "blocks_left": result.blocks_left,
        "empty_blocks": result.n_empty,
        "failed_blocks": [{"block": record.index, "reason": record.reason} for record in result.failed],
        "level_choice": result.level_choice,
        "differs_from_training": [finding.text for finding in result.findings] if result.is_compared else None,
        "instances": None if result.instances is None else result.instances.count,
        "objects_table": _path_or_none(None if result.instances is None else result.instances.table),
        "table": _path_or_none(result.table),
        "profile": None if result.profile is None else result.profile.to_object(),
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
    is_told = statistics is not None or seconds["statistics"] >= 0.05
    measuring = f"grey values {seconds['statistics']:.1f}, " if is_told else ""
    objects = "" if result.instances is None else f", objects {seconds['instances']:.1f}"
    rows = [
        ("output", str(result.output)),
        *_describe_part(result),
        *([] if result.labels == result.output else [("labels", str(result.labels or "not written"))]),
        *(("share", f"{fraction:6.1%} {name}") for name, fraction in result.class_fractions.items() if result.labels),
        *_describe_objects(result),
        *([] if result.table is None else [("table", f"{result.table}, a row for each block")]),
        *([] if result.level_choice is None else [("level", result.level_choice.removeprefix("level "))]),
        *([] if statistics is None else [("grey values", _describe_statistics(statistics))]),
        (
            "pixels",
            f"{extents.pixels:,} ({extents.t} × {extents.z} × {extents.y} × {extents.x} t z y x)"
            + ("" if result.pixels == extents.pixels else f", {result.pixels:,} of them made now"),
        ),
        (
            "time",
            f"{format_seconds(seconds['total'])}, {result.pixels_per_second / 1e6:.2f} Mpx/s "
            f"(preparing {seconds['prepare']:.1f}, {measuring}blocks {seconds['blocks']:.1f}, "
            f"pyramid {seconds['pyramid']:.1f}{objects})",
        ),
        *([] if not found else [("went on", f"{found} of {plan.n_blocks} blocks were done before")]),
        *([] if not result.n_empty else [("empty", f"{result.n_empty} blocks of one grey value, answered at once")]),
        ("tiles", f"{plan.n_tiles} of {plan.tile_y} × {plan.tile_x} px in {plan.n_blocks} blocks"),
        *([("tta", f"each the mean of {plan.passes} turned and mirrored forms")] if plan.tta else []),
        *describe_engine(result.engine),
        *([("smaller", _describe_rungs(result.rungs))] if result.rungs else []),
        *([] if result.profile is None else describe_profile(result.profile)),
        ("memory", format_bytes(peak) if peak is not None else "not measured on this system"),
    ]
    show_rows(rows)


def describe_profile(profile: Profile) -> list[tuple[str, str]]:
    """Return rows on where the time of a run went: the longest stages, without waiting."""
    from unet_deploy.runtime.device_use import LEAST_S

    stages = [(stage.name, stage.seconds) for stage in profile.stages if stage.name != WAITING]
    told = [(name, seconds) for name, seconds in stages[:MOST_STAGES] if seconds >= LEAST_S]
    others = sum(seconds for _, seconds in stages[len(told) :])
    told += [("all else", others)] if others >= LEAST_S else []
    spent = f"{', '.join(f'{name} {seconds:.2f}' for name, seconds in told)} s, of all threads together"
    part = "" if profile.part is None else f", of a part of the volume: {profile.part}"
    return [
        ("profile", f"{profile.path}{part}"),
        *([("spent", spent)] if told else []),
        ("device", profile.device.describe(profile.run_s)),
    ]


def _describe_part(result: SegmentationResult) -> list[tuple[str, str]]:
    """Return a row on what is yet to be done, where only a part of the volume was asked for."""
    if result.status != "region":
        return []
    left, total = result.blocks_left, result.plan.n_blocks
    return [("region", f"done; {left} of {total} blocks are left, which segment does without --region or --plane")]


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


def _describe_objects(result: SegmentationResult) -> list[tuple[str, str]]:
    """Return rows on the objects that were numbered."""
    found = result.instances
    if found is None:
        return []
    by_class = ", ".join(f"{count:,} {name}" for name, count in found.by_class.items())
    dropped = f"; {found.dropped:,} too small" if found.dropped else ""
    rows = [("objects", f"{found.count:,} ({by_class}){dropped}")]
    return rows if found.table is None else [*rows, ("", f"{found.table}, a row for each object")]


def _path_or_none(path: Path | None) -> str | None:
    return None if path is None else str(path)
