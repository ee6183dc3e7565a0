"""What ``bench`` shows: the machine, a table with the fastest first, and the command to use."""

from __future__ import annotations

import re
import shlex
import sys
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
WHY_LEFT_OUT = {"time": "for want of time (--seconds)", "memory": "for want of memory"}
MOST_ROWS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All that was found.

    `artifacts` begin with those that were asked for, which `asked` has by hash, and `is_given` says were named. `flags`
    were given, and segment needs them too. `keeping` is what became of the memory for later.
    """

    artifacts: tuple[Artifact, ...]
    asked: frozenset[str]
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
            *(("left out", note) for note in found.notes),
            *not_run(found),
        ]
    )
    typer.echo("")
    _show_table(found)
    typer.echo("")
    show_rows([*_left_out(found), *_volume(found.volume), *_use(found), *_remembered(found)])


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
                "is_foretold": advice.is_foretold,
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


def tell_apart(artifacts: Sequence[Artifact]) -> dict[str, str]:
    """Return short names of files by their hashes: their precisions, unless two have the same."""
    precisions = {artifact.sha256: str(artifact.card.precision) for artifact in artifacts}
    names = {artifact.sha256: Path(_short(artifact)).name for artifact in artifacts}
    sources = {artifact.sha256: _short(artifact) for artifact in artifacts}
    return next((each for each in (precisions, names) if len({*each.values()}) == len(each)), sources)


def choose_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that are shown, the fastest first: each engine's best on each file, and others up to a number."""
    best: dict[int, Row] = {}
    for row in rows:
        best.setdefault(id(row.trial), row)
    others = [row for row in rows if best[id(row.trial)] is not row]
    shown = {id(row) for row in [*best.values(), *others[: max(MOST_ROWS - len(best), 0)]]}
    return [row for row in rows if id(row) in shown]


def _show_table(found: Found) -> None:
    names, rows = tell_apart(found.artifacts), choose_rows(found.rows)
    is_named = any(names[artifact.sha256] != artifact.card.precision for artifact in found.artifacts)
    head = ("engine", *(("model",) if is_named else ()), "precision", "tile", "Mpx/s", "memory", "time")
    lines = [
        (
            row.trial.engine,
            *((names[row.trial.artifact.sha256],) if is_named else ()),
            row.trial.artifact.card.precision,
            str(row.sample.tile_y),
            _rate(row.pixels_per_second),
            format_bytes(row.sample.memory_bytes) if row.sample.memory_bytes else "on the GPU",
            f"{row.relative_time:.2f}×",
        )
        for row in rows
    ]
    left = head.index("precision")
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    for line in [head, *lines]:
        words = [
            word.ljust(w) if i <= left else word.rjust(w) for i, (word, w) in enumerate(zip(line, widths, strict=True))
        ]
        typer.echo("  ".join(words).rstrip())
    if len(rows) < len(found.rows):
        typer.echo(f"and {len(found.rows) - len(rows)} more tiles, with --json")


def _rate(pixels_per_second: float) -> str:
    return f"{pixels_per_second / 1e6:.2f}"


def not_run(found: Found) -> Rows:
    """Return the engines without a result, by reason; with the file, where others ran on it."""
    names = tell_apart(found.artifacts)
    by_engine: dict[tuple[str, str], list[str]] = {}
    for trial in found.trials:
        if trial.costs is None:
            text = f"{trial.reason} ({trial.fix})" if trial.reason == "not installed" else trial.reason
            by_engine.setdefault((trial.engine, text), []).append(names[trial.artifact.sha256])
    by_reason: dict[str, list[str]] = {}
    for (engine, text), of in by_engine.items():
        is_all = len(of) == sum(trial.engine == engine for trial in found.trials)
        by_reason.setdefault(text, []).append(engine if is_all else f"{engine} {', '.join(of)}")
    return [("not run", f"{', '.join(engines)}: {reason}") for reason, engines in by_reason.items()]


def _left_out(found: Found) -> Rows:
    """Return which tiles were not run, and why: engines with the same in one row."""
    names = tell_apart(found.artifacts)
    by_tiles: dict[tuple[str, str], list[str]] = {}
    for trial in found.trials:
        side = trial.artifact.card.geometry.tile_side
        for why in dict.fromkeys(why for _, why in trial.left_out):
            tiles = ", ".join(str(side(core)) for core, reason in trial.left_out if reason == why)
            by_tiles.setdefault((tiles, why), []).append(f"{trial.engine} {names[trial.artifact.sha256]}")
    return [
        ("left out", f"tiles of {tiles} px {WHY_LEFT_OUT.get(why, f'({why})')}: {', '.join(of)}")
        for (tiles, why), of in by_tiles.items()
    ]


def _use(found: Found) -> Rows:
    """Return the command for each file that was asked for, and those of files beside it that are faster."""
    from unet_deploy.runtime.trials import WORTH_A_MODEL, is_same_network

    rows: Rows = []
    for advice in found.advices:
        first = next(other for other in found.advices if is_same_network(other.artifact, advice.artifact))
        gain = first.seconds_per_pixel / advice.seconds_per_pixel
        is_asked = advice is first or advice.artifact.sha256 in found.asked
        if not is_asked and gain < 1 + WORTH_A_MODEL:
            continue
        rows.append(("use" if is_asked else "faster", _command(found, advice)))
        rows.append(("", _speed(advice)))
        if advice is not first:
            rows.append(("", f"{gain:.2f} times as fast; {_caution(advice.artifact, first.artifact)}"))
        elif advice.flags:
            own = advice.own_seconds_per_pixel / advice.seconds_per_pixel
            rows.append(("", f"{own:.2f} times as fast as without {' '.join(advice.flags)}"))
    return rows


def _speed(advice: Advice) -> str:
    """Return how fast the engine is so, and whether that was measured or is foretold from smaller tiles."""
    tile, gigapixel = " × ".join(map(str, advice.tile)), format_seconds(1e9 * advice.seconds_per_pixel)
    speed = f"{_rate(1 / advice.seconds_per_pixel)} Mpx/s, 1 Gpx in {gigapixel}: {advice.engine}, tiles of {tile} px"
    where = "" if "--tile" in advice.flags else " where the volume is large"
    return f"{speed}{where}{', foretold from smaller ones' if advice.is_foretold else ''}"


def _command(found: Found, advice: Advice) -> str:
    is_chosen_anyway = advice.artifact is found.artifacts[0] and not found.is_given
    model = [] if is_chosen_anyway else ["--model", _short(advice.artifact)]
    volume = str(found.path or "VOLUME.zarr")
    return join_command(["unet-deploy", "segment", volume, *model, *found.flags, *advice.flags])


def join_command(words: Sequence[str], platform: str = sys.platform) -> str:
    """Return a command that can be typed, with quotes as the system's shells read them."""
    if platform != "win32":
        return shlex.join(words)
    return " ".join(f'"{word}"' if re.search(r"[\s&()^;,']", word) else word for word in words)


def _short(artifact: Artifact) -> str:
    """Return what --model takes for an artifact."""
    source = artifact.source
    return source.removeprefix("bundled ").removesuffix(".onnx") if source.startswith("bundled ") else source


def _caution(artifact: Artifact, first: Artifact) -> str:
    """Return what else changes with another file of the same network."""
    parity, precision = artifact.card.parity, artifact.card.precision
    if parity is None:
        return f"{precision} is not {first.card.precision}: results differ a little"
    return f"{precision}: labels equal to fp32's on {parity.labels_equal:.2%} of pixels ({parity.data})"


def _remembered(found: Found) -> Rows:
    threads = {trial.costs.threads for trial in found.trials if trial.costs is not None} - {0}
    whose = "".join(f" with --threads {n}" for n in threads)
    words = {
        "kept": f"segment and plan{whose} choose by this from now on; unet-deploy bench --forget undoes it",
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
