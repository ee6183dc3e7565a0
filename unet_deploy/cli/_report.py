"""How results and progress are shown: stdout is the result, stderr the rest."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from unet_deploy.runtime.engine_plan import PlanManifest
    from unet_deploy.runtime.engines import EngineDescription
    from unet_deploy.runtime.execute import Progress, ProgressCallback

SECONDS_BETWEEN_LINES = 5.0


def show_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    typer.echo(json.dumps(value, indent=2))


def show_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns on stdout."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        typer.echo(f"{name:<{width}}  {value}")


def describe_engine(engine: EngineDescription) -> list[tuple[str, str]]:
    """Return rows on what ran the network, where and why, and on the engines that were passed over, by reason."""
    versions = " ".join(engine.versions.values())
    rows = [("engine", f"{engine.engine} {versions} on {engine.device}, {engine.precision}".replace("  ", " "))]
    passed_over: dict[str, list[str]] = {}
    for found in engine.choice:
        if found.is_taken:
            rows.append(("chosen", found.verdict))
        elif found.is_tried:
            passed_over.setdefault(found.verdict, []).append(found.engine)
    return rows + [("not used", f"{', '.join(names)}: {verdict}") for verdict, names in passed_over.items()]


def describe_plan(manifest: PlanManifest) -> list[tuple[str, str]]:
    """Return rows on what an engine plan is for."""
    where = manifest.gpu or f"compute capability {', '.join(manifest.compute_capabilities)}"
    takes = [
        f"{' × '.join(map(str, p.minimum))} to {' × '.join(map(str, p.maximum))}, fastest at "
        f"{' × '.join(map(str, p.optimum))}"
        for p in manifest.profiles
    ]
    return [
        ("plan", f"{manifest.flavour} {manifest.version} for {where}"),
        *(("batches", words) for words in takes),
    ]


def format_bytes(count: float) -> str:
    """Return a size for people: 1.5 GB.

    >>> format_bytes(8_400_000)
    '8.4 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def format_seconds(seconds: float) -> str:
    """Return a duration for people.

    >>> format_seconds(3), format_seconds(75), format_seconds(7300)
    ('3.0 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def show_progress() -> Iterator[ProgressCallback]:
    """Give a progress callback: a bar on a terminal, plain lines otherwise."""
    if sys.stderr.isatty():
        with _bar() as callback:
            yield callback
    else:
        yield _Lines()


class _Lines:
    """One line a stage's start, every few seconds, and at its end."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now < self._next and progress.done < progress.total:
            return
        self._next = now + SECONDS_BETWEEN_LINES
        typer.echo(f"{progress.stage}: {progress.done}/{progress.total} {describe_rate(progress)}".rstrip(), err=True)


@contextmanager
def _bar() -> Iterator[ProgressCallback]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Bar(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def callback(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bar.add_task(progress.stage, total=progress.total, note="")
            bar.update(tasks[progress.stage], completed=progress.done, note=describe_rate(progress))

        yield callback


def describe_rate(progress: Progress) -> str:
    """Return rate, time left and failures in words; empty for stages without pixels."""
    parts = []
    if progress.pixels and progress.seconds:
        parts.append(f"{progress.pixels / progress.seconds / 1e6:.2f} Mpx/s")
    if 0 < progress.done < progress.total:
        left = progress.seconds / progress.done * (progress.total - progress.done)
        parts.append(f"{format_seconds(left)} left")
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    return ", ".join(parts)


def peak_memory_bytes() -> int | None:
    """Return the most memory this process has held; None where the system does not say."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def stop_on_interrupt(then: str) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C ask the work to stop, as the function that is given tells; a second one stops it at once."""
    asked = threading.Event()

    def note(_number: int, _frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)
        typer.echo(f"\nstopping: {then}; Ctrl-C again stops at once", err=True)

    if threading.current_thread() is not threading.main_thread():  # only it may change what signals do
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def pause_on_signal() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether to pause: SIGUSR1 asks for it, SIGUSR2 to go on; Windows has neither."""
    asked = threading.Event()
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, lambda _number, _frame: asked.set()),
        signal.SIGUSR2: signal.signal(signal.SIGUSR2, lambda _number, _frame: asked.clear()),
    }
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
