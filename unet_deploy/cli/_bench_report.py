"""What ``bench`` shows: the machine, a table with the fastest first, and the command to use."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from unet_deploy.cli._report import format_bytes, format_seconds, show_rows

if TYPE_CHECKING:
    from unet_deploy.runtime.advice import Advice
    from unet_deploy.runtime.artifact import Artifact
    from unet_deploy.runtime.trials import Row, Trial

Rows = list[tuple[str, str]]
Keeping = Literal["kept", "in part", "too little", "too busy", "not asked for", "not possible"]
UNKNOWN = "unknown"
WHY_LEFT_OUT = {"time": "for time (--seconds)", "memory": "for want of memory"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All that was found.

    `artifacts` begin with the one that was asked for, `is_given` on the command line; `flags` are those that were given
    and that segment needs too. `keeping` is what became of the memory for later.
    """

    artifacts: tuple[Artifact, ...]
    is_given: bool
    flags: tuple[str, ...]
    path: Path | None
    rows: tuple[Row, ...]
    trials: tuple[Trial, ...]
    advices: tuple[Advice, ...]
    notes: tuple[str, ...]
    keeping: Keeping
    volume: Mapping[str, Any] | None
    busy: float
    """Share of the processor's time that other programs took, before or after; 0 if that is not known."""


def machine_rows() -> Rows:
    """Return what was measured on."""
    from unet_deploy.runtime.machine import ask_driver, read_memory, read_processor

    cpu, memory, gpus = read_processor(), read_memory(), ask_driver()
    units = f", {' '.join(cpu.vector_units)}" if cpu.vector_units else ""
    total, free = (UNKNOWN if n is None else format_bytes(n) for n in (memory.total_bytes, memory.available_bytes))
    return [
        ("cpu", f"{cpu.name or UNKNOWN}, {cpu.usable or UNKNOWN} usable cores{units}"),
        ("memory", f"{total}, {free} available"),
        *([("gpu", gpu.name) for gpu in gpus.found] or [("gpu", "none")]),
    ]


def _busy(found: Found) -> Rows:
    from unet_deploy.runtime.trials import BUSY

    if found.busy < BUSY:
        return []
    text = f"other programs take {found.busy:.0%} of the processor: measure again when it is quiet"
    return [("busy", text)]


def show(found: Found) -> None:
    """Print the result for people."""
    show_rows(
        [
            *machine_rows(),
            *_busy(found),
            *(("model", _describe_model(artifact)) for artifact in found.artifacts),
            *(("left out", note) for note in list(found.notes)),
            *_not_run(found.trials),
        ]
    )
    typer.echo("")
    _show_table(found.rows)
    typer.echo("")
    show_rows([*_left_out(found.trials), *_volume(found.volume), *_use(found), *_remembered(found)])


def to_object(found: Found) -> dict[str, Any]:
    """Return the result as JSON values."""
    from unet_deploy.runtime.machine import ask_driver, read_memory, read_processor

    return {
        "machine": {
            "processor": asdict(read_processor()),
            "memory": asdict(read_memory()),
            "gpus": asdict(ask_driver()),
            "busy_share": found.busy,
        },
        "rows": [
            {
                "model": row.trial.artifact.source,
                "engine": row.trial.engine,
                "precision": row.trial.artifact.card.precision,
                "tile": [row.sample.tile_y, row.sample.tile_x],
                "core": _core(row),
                "batch": row.sample.batch,
                "seconds": row.sample.seconds,
                "pixels_per_second": row.pixels_per_second,
                "memory_bytes": row.sample.memory_bytes or None,
                "relative_time": row.relative_time,
            }
            for row in found.rows
        ],
        "engines": [
            {
                "model": trial.artifact.source,
                "engine": trial.engine,
                "precision": trial.artifact.card.precision,
                "versions": None if trial.costs is None else dict(trial.costs.versions),
                "reason": trial.reason or None,
                "fix": trial.fix or None,
                "left_out": [{"core": core, "why": why} for core, why in trial.left_out],
            }
            for trial in found.trials
        ],
        "use": [
            {
                "model": advice.artifact.source,
                "precision": advice.artifact.card.precision,
                "engine": advice.engine,
                "tile": list(advice.tile),
                "flags": [*found.flags, *advice.flags],
                "pixels_per_second": 1 / advice.seconds_per_pixel,
                "pixels_per_second_without": 1 / advice.own_seconds_per_pixel,
            }
            for advice in found.advices
        ],
        "left_out": list(found.notes),
        "is_kept": found.keeping in ("kept", "in part"),
        "volume": found.volume,
    }


def _core(row: Row) -> list[int]:
    geometry = row.trial.artifact.card.geometry
    return [geometry.core_side(row.sample.tile_y), geometry.core_side(row.sample.tile_x)]


def _describe_model(artifact: Artifact) -> str:
    card = artifact.card
    parity = card.parity
    equal = "" if parity is None else f", labels equal to fp32's on {parity.labels_equal:.2%} of pixels at its export"
    return f"{artifact.source}: {card.network.words}, {card.precision}{equal}"


def _show_table(rows: Sequence[Row]) -> None:
    head = ("engine", "precision", "tile", "core", "Mpx/s", "memory", "time")
    lines = [
        (
            row.trial.engine,
            row.trial.artifact.card.precision,
            str(row.sample.tile_y),
            str(_core(row)[0]),
            _rate(row.pixels_per_second),
            format_bytes(row.sample.memory_bytes) if row.sample.memory_bytes else "on the GPU",
            f"{row.relative_time:.2f}",
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    for line in [head, *lines]:
        words = [
            word.ljust(w) if i < 2 else word.rjust(w) for i, (word, w) in enumerate(zip(line, widths, strict=True))
        ]
        typer.echo("  ".join(words).rstrip())


def _rate(pixels_per_second: float) -> str:
    return f"{pixels_per_second / 1e6:.2f}"


def _not_run(trials: Sequence[Trial]) -> Rows:
    """Return the engines without a result, by reason: what is wrong here before what is not installed."""
    by_reason: dict[str, list[str]] = {}
    for trial in trials:
        if trial.costs is None:
            text = f"{trial.reason} ({trial.fix})" if trial.reason == "not installed" else trial.reason
            by_reason.setdefault(text, []).append(trial.engine)
    return [("not run", f"{', '.join(dict.fromkeys(names))}: {reason}") for reason, names in by_reason.items()]


def _left_out(trials: Sequence[Trial]) -> Rows:
    """Return which tiles were not run, and why: engines with the same in one row."""
    found: dict[tuple[str, str], list[str]] = {}
    for trial in trials:
        for why in dict.fromkeys(why for _, why in trial.left_out):
            cores = ", ".join(str(core) for core, reason in trial.left_out if reason == why)
            found.setdefault((cores, why), []).append(f"{trial.engine} {trial.artifact.card.precision}")
    return [
        ("left out", f"cores of {cores} px {WHY_LEFT_OUT.get(why, f'({why})')}: {', '.join(names)}")
        for (cores, why), names in found.items()
    ]


def _use(found: Found) -> Rows:
    """Return the command for the file that was asked for, and those of others that are faster."""
    from unet_deploy.runtime.trials import WORTH_A_MODEL

    rows: Rows = []
    first = found.advices[0]
    for advice in found.advices:
        gain = first.seconds_per_pixel / advice.seconds_per_pixel
        if advice is not first and gain < 1 + WORTH_A_MODEL:
            continue
        tile, gigapixel = " × ".join(map(str, advice.tile)), format_seconds(1e9 * advice.seconds_per_pixel)
        speed = f"{_rate(1 / advice.seconds_per_pixel)} Mpx/s, 1 Gpx in {gigapixel}"
        rows.append(("use" if advice is first else "faster", _command(found, advice)))
        rows.append(("", f"{speed}: {advice.engine}, tiles of {tile} px{'' if advice.flags else ', by itself'}"))
        if advice is not first:
            rows.append(("", f"{gain:.2f} times as fast; {_caution(advice.artifact, first.artifact)}"))
        elif advice.flags:
            own = advice.own_seconds_per_pixel / advice.seconds_per_pixel
            rows.append(("", f"{own:.2f} times as fast as without {' '.join(advice.flags)}"))
    return rows


def _command(found: Found, advice: Advice) -> str:
    is_chosen_anyway = advice.artifact is found.artifacts[0] and not found.is_given
    model = [] if is_chosen_anyway else ["--model", _short(advice.artifact)]
    volume = str(found.path or "VOLUME.zarr")
    return shlex.join(["unet-deploy", "segment", volume, *model, *found.flags, *advice.flags])


def _short(artifact: Artifact) -> str:
    """Return what --model takes for an artifact."""
    source = artifact.source
    return source.removeprefix("bundled ").removesuffix(".onnx") if source.startswith("bundled ") else source


def _caution(artifact: Artifact, first: Artifact) -> str:
    """Return what else changes with another file."""
    from unet_deploy.runtime.trials import is_same_network

    parity, precision = artifact.card.parity, artifact.card.precision
    if not is_same_network(artifact, first):
        return "another network"
    if parity is None:
        return f"{precision} is not {first.card.precision}: results differ a little"
    return f"{precision}: labels equal to fp32's on {parity.labels_equal:.2%} of pixels ({parity.data})"


def _remembered(found: Found) -> Rows:
    words = {
        "kept": "segment and plan choose by this from now on; unet-deploy bench --forget undoes it",
        "in part": "what ran tiles large enough to choose by; more --seconds for the rest",
        "too little": "nothing: there was time for small tiles only, which are no base to choose by; more --seconds",
        "too busy": "nothing, since the machine is busy; --keep remembers it all the same",
        "not asked for": "nothing, as asked (--no-keep)",
        "not possible": "nothing: there is no folder of yours that can be written to",
    }
    return [("remembered", words[found.keeping])]


def _volume(volume: Mapping[str, Any] | None) -> Rows:
    if volume is None:
        return []
    rows: Rows = [
        ("volume", f"{Path(volume['path']).name}: {volume['pixels'] / 1e6:,.1f} Mpx in {volume['blocks']} blocks")
    ]
    for entry in volume["engines"]:
        rows.append(
            (
                "",
                f"{entry['engine']}, {entry['precision']}: about {format_seconds(entry['seconds'])}, tiles of "
                f"{' × '.join(map(str, entry['tile']))} px, {format_bytes(entry['peak_memory_bytes'])} of memory",
            )
        )
    tried = volume["tried"]
    if tried is None:
        return [*rows, ("tried", f"nothing of it: {volume['why_not']}")]
    rows.append(
        (
            "tried",
            f"{tried['blocks']} block(s), {tried['pixels'] / 1e6:.1f} Mpx from Zarr to Zarr: "
            f"{_rate(tried['pixels_per_second'])} Mpx/s; {tried['engine']} alone: "
            f"{_rate(tried['engine_pixels_per_second'])} Mpx/s",
        )
    )
    return rows
