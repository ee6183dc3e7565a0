"""``segment`` and ``plan`` of a store of several images: a line an image, a summary, and JSON for machines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unet_deploy.cli._report import (
    SECONDS_BETWEEN_LINES,
    describe_rate,
    format_bytes,
    format_seconds,
    show_json,
    show_rows,
)
from unet_deploy.cli._summary import result_to_object

if TYPE_CHECKING:
    from unet_deploy.errors import UnetDeployError
    from unet_deploy.runtime.engines import EngineDescription
    from unet_deploy.runtime.execute import Progress
    from unet_deploy.runtime.images import ImageEntry
    from unet_deploy.runtime.many import ImageResult
    from unet_deploy.runtime.preparation import Preparation

EACH_RUN = "unet_deploy.runtime.run"
"""The log in which a run says how its volume differs, and which level it took."""
TimeTile = Callable[["Preparation"], tuple[float, "EngineDescription"]]


def holds_several(volume: Path, image: str | None) -> bool:
    """Tell whether the command means each image of a store, since it holds several and names none."""
    from unet_deploy.runtime.many import listed_images

    return not image and bool(listed_images(volume))


def segment_each(volume: Path, *, output_folder: Path | None, as_json: bool, **options: Any) -> None:
    """Segment each image of a store, and show what became of each.

    Parameters
    ----------
    volume
        The store.
    output_folder
        Where the outputs go; beside the store if None.
    as_json
        Print a list of results on stdout at the end, and nothing else there.
    **options
        As of `unet_deploy.runtime.segment`, without `image`, `output` and `progress`.

    Raises
    ------
    PartialResultError, InterruptedRunError
        As `segment_images`; the results were shown before.
    """
    from unet_deploy.runtime.many import segment_images

    show = _Lines(to_stderr=as_json)
    found: list[ImageResult] = []

    def note(result: ImageResult) -> None:
        found.append(result)
        show.end(result)

    started = time.perf_counter()
    try:
        with each_run_silent():
            segment_images(
                volume,
                output_folder=output_folder,
                on_start=show.start,
                on_result=note,
                progress=show.progress,
                **options,
            )
    finally:  # what is done is shown whatever ends the loop
        if as_json:
            show_json({"volume": str(volume), "images": [_to_object(result) for result in found]})
        elif found:
            _show_summary(found, time.perf_counter() - started)


@contextmanager
def each_run_silent() -> Iterator[None]:
    """Keep runs from saying what is said here once for all: a plate has hundreds, all alike. Not with --debug."""
    log = logging.getLogger(EACH_RUN)
    before = log.level
    if logging.getLogger("unet_deploy").level > logging.INFO:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


class _Lines:
    """A line for each image that ends; while one takes long, one on stderr every few seconds.

    How images differ from the training images is said in full of the first that differs so.
    """

    def __init__(self, *, to_stderr: bool) -> None:
        self._to_stderr = to_stderr
        self._said: set[str] = set()
        self._name, self._next = "", 0.0

    def start(self, image: ImageEntry) -> None:
        self._name, self._next = image.name, time.monotonic() + SECONDS_BETWEEN_LINES

    def progress(self, progress: Progress) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + SECONDS_BETWEEN_LINES
            rate = describe_rate(progress)
            typer.echo(f"{self._name}: {progress.stage}: {progress.done}/{progress.total} {rate}".rstrip(), err=True)

    def end(self, found: ImageResult) -> None:
        from unet_deploy.runtime.drift import describe_findings

        new = [] if found.result is None else [f for f in found.result.findings if f.code not in self._said]
        if new:
            self._said |= {finding.code for finding in new}
            typer.echo("\n  ".join(describe_findings(new, source=found.image.name)), err=True)
        typer.echo(f"{found.image.name}: {_words_of(found)}", err=self._to_stderr)


def _words_of(found: ImageResult) -> str:
    if found.error is not None:
        return f"failed: [{found.error.code}] {found.error.headline}"
    if found.result is None:
        return f"was finished before: {found.output}"
    result = found.result
    shares = [f"{name} {share:.1%}" for name, share in result.class_fractions.items()][1:]
    differs = [f"unlike the training images: {', '.join(f.code for f in result.findings)}"] if result.findings else []
    words = [str(found.output), f"{result.pixels_per_second / 1e6:.2f} Mpx/s", *shares, *differs]
    return f"done: {', '.join(words)}"


def _show_summary(found: list[ImageResult], seconds: float) -> None:
    counts = {"done": 0, "found": 0, "failed": 0}
    for result in found:
        counts[result.outcome] += 1
    pixels = sum(each.result.pixels for each in found if each.result is not None)
    before = f", {counts['found']} were finished before" if counts["found"] else ""
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    show_rows(
        [
            ("images", f"{counts['done']} done{before}{failed}"),
            ("pixels", f"{pixels:,}"),
            ("time", f"{format_seconds(seconds)}, {pixels / seconds / 1e6:.2f} Mpx/s"),
        ]
    )


def _to_object(found: ImageResult) -> dict[str, Any]:
    error = found.error
    return {
        "image": found.image.name,
        "title": found.image.title,
        "output": str(found.output),
        "outcome": found.outcome,
        "error": None if error is None else {"code": error.code, "message": str(error)},
        "result": None if found.result is None else result_to_object(found.result),
    }


def plan_each(volume: Path, *, time_tile: TimeTile | None, as_json: bool, **options: Any) -> None:
    """Show what segmenting each image of a store would do and cost.

    Parameters
    ----------
    volume
        The store.
    time_tile
        Measures the seconds that a tile takes; None for no estimate.
    as_json
        Print JSON.
    **options
        As of `unet_deploy.runtime.prepare`, without `image`.

    Raises
    ------
    PartialResultError
        If images cannot be segmented; the others were shown.
    UsageError, ModelError
        As `prepare`, where it is so for the first image.
    InputDataError
        That of the first image, where each has one that the same flag would mend.
    """
    from unet_deploy.errors import InputDataError, PartialResultError, UsageError
    from unet_deploy.runtime._image_outputs import choose_outputs
    from unet_deploy.runtime.many import listed_images, shared_error
    from unet_deploy.runtime.preparation import prepare

    entries = listed_images(volume)
    facts: list[dict[str, Any]] = []
    problems: list[str] = []
    errors: list[UnetDeployError] = []
    seconds_per_tile = None
    for entry, output in zip(entries, choose_outputs(volume, entries, None), strict=True):
        try:
            ready = prepare(volume, image=entry.name, **options)
        except (InputDataError, UsageError) as error:
            if isinstance(error, UsageError) and not facts:
                raise
            errors.append(error)
            problems.append(f"{entry.name}: [{error.code}] {error.headline}")
            continue
        if time_tile is not None and seconds_per_tile is None:
            seconds_per_tile, _ = time_tile(ready)
        facts.append(_facts_of(entry, ready, output))
    if not facts and (alike := shared_error(errors)) is not None:
        raise alike
    _show_plans(volume, facts, problems, seconds_per_tile, as_json=as_json)
    if problems:
        raise PartialResultError(
            f"{len(problems)} of {len(entries)} images cannot be segmented",
            *problems[:10],
            *([f"and {len(problems) - 10} more"] if len(problems) > 10 else []),
            fix="mend them, or name those that you want with --image",
        )


def _facts_of(entry: ImageEntry, ready: Preparation, output: Path) -> dict[str, Any]:
    from unet_deploy.runtime.layout import KINDS

    plan, info = ready.plan, ready.volume.info
    return {
        "image": entry.name,
        "title": entry.title,
        "axes": info.axes,
        "shape": list(info.shape),
        "dtype": info.dtype,
        "level": info.level,
        "level_choice": ready.level_choice,
        "pixels": plan.extents.pixels,
        "tiles": plan.n_tiles * plan.passes,
        "blocks": plan.n_blocks,
        "peak_memory_bytes": plan.peak_memory_bytes,
        "disk_bytes": ready.output_spec(output, KINDS).raw_bytes,
        "output": str(output),
    }


def _show_plans(
    volume: Path,
    facts: list[dict[str, Any]],
    problems: list[str],
    seconds_per_tile: float | None,
    *,
    as_json: bool,
) -> None:
    tiles = sum(each["tiles"] for each in facts)
    seconds = None if seconds_per_tile is None else seconds_per_tile * tiles
    totals = {name: sum(each[name] for each in facts) for name in ("pixels", "tiles", "blocks", "disk_bytes")}
    if as_json:
        show_json(
            {
                "volume": str(volume),
                "images": facts,
                "problems": problems,
                "totals": {**totals, "seconds_per_tile": seconds_per_tile, "seconds": seconds},
            }
        )
        return
    for each in facts:
        size = f"{each['axes']} {' × '.join(map(str, each['shape']))} {each['dtype']}"
        choice = "" if each["level_choice"] is None else f"; {each['level_choice']}"
        typer.echo(f"{each['image']}: {size}, {each['pixels']:,} px in {each['blocks']} block(s){choice}")
    show_rows(
        [
            ("images", f"{len(facts)}, one after the other; one alone with --image NAME"),
            ("pixels", f"{totals['pixels']:,}"),
            ("tiles", f"{tiles:,}"),
            ("memory", f"about {format_bytes(max((each['peak_memory_bytes'] for each in facts), default=0))}"),
            ("disk", f"up to {format_bytes(totals['disk_bytes'])}"),
            ("time", "not estimated" if seconds is None else f"about {format_seconds(seconds)}"),
            *([("output", f"{facts[0]['output']} and so on")] if facts else []),
        ]
    )
