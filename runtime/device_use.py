"""How much of the time the engine was busy, and what it waited for. Numbers in, numbers out.

The rule, for each worker by itself, since each has an engine of its own:

1. The engine is *busy* while a span of its lane (`DEVICE`) lasts. All that lies between the first and the last of
   these, and is not busy, it *waited*. Before the first tile and after the last it is neither.
2. At any instant that it waited, one thread is answerable: the one that had the engine or served its line (a span of
   `HOLDING`); where none had, the one that brought the next tile.
3. What that thread did is its innermost span then, in the words of `CAUSES`. A thread that did nothing waited for its
   block: *scheduling*. A span that `CAUSES` does not know is *other*.

The times of several workers are added up. Blocks come in about the order they end, so of those of one worker only the
last `LATE_BLOCKS` are held; the sums are exact unless a block comes later than so many others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from unet_deploy.runtime.timeline import DEVICE, HELPER, Span

HOLDING = ("hold", "gather", "label")
"""Spans of a thread that the engine can have no tile but from."""
CAUSES = {
    "read": "reading",
    "decode": "reading",
    "mirror": "reading",
    "normalise": "normalising",
    "gather": "normalising",
    "label": "labelling",
    "measure": "measuring",
    "write": "writing",
    "reduce": "writing",
    "write labels": "writing",
    "write probabilities": "writing",
    "write pyramid": "writing",
    "wait": "handing over",
    "open engine": "opening the engine",
}
SCHEDULING = "scheduling"
OTHER = "other"
LATE_BLOCKS = 256
LEAST_S = 0.005
"""What rounds to less is not told of by itself."""
MOST_GAPS = 10
"""So many of the longest are remembered."""

Segment = tuple[float, float, str]
"""Start, stop, name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A time that a worker's engine waited, and for what, in s by cause."""

    worker: str
    start_s: float
    stop_s: float
    causes: dict[str, float]

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.stop_s - self.start_s

    def to_object(self) -> dict[str, Any]:
        """Return it as JSON values."""
        waited = {cause: round(seconds, 6) for cause, seconds in self.causes.items()}
        return {"worker": self.worker, "start_s": round(self.start_s, 6), "seconds": round(self.seconds, 6)} | {
            "waited": waited
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """What became of the time of all engines: `between_s` from first to last tile, of which `busy_s`, and `waited`.

    `waited` is in s by cause, the largest first; with `busy_s` it sums up to `between_s`. `gaps` are the longest.
    """

    workers: int
    between_s: float
    busy_s: float
    waited: dict[str, float]
    gaps: tuple[Gap, ...] = ()

    @property
    def waited_s(self) -> float:
        """How long the engines waited between their first and their last tile."""
        return self.between_s - self.busy_s

    @property
    def busy_share(self) -> float:
        """Which share of the time between first and last tile the engines were busy; 1 where there was none."""
        return self.busy_s / self.between_s if self.between_s else 1.0

    def describe(self, run_s: float) -> str:
        """Return it in words, for a run of so many s; causes that round to nothing are among the others.

        >>> use = DeviceUse(workers=1, between_s=5.25, busy_s=5.04, waited={"reading": 0.15, "other": 0.06})
        >>> use.describe(10.0)
        'busy 96.0% between first and last tile (waited 0.21 s: reading 0.15, other 0.06), 50.4% of the run'
        """
        if not self.workers:
            return "not used: no tile was run"
        told = {cause: s for cause, s in self.waited.items() if s >= LEAST_S and cause != OTHER}
        others = self.waited_s - sum(told.values())
        told |= {OTHER: others} if others >= LEAST_S else {}
        reasons = ", ".join(f"{cause} {seconds:.2f}" for cause, seconds in told.items())
        waited = f" (waited {self.waited_s:.2f} s: {reasons})" if reasons else ""
        each = "" if self.workers == 1 else f", {self.workers} workers together"
        share = f"{self.share_of(run_s):.1%} of the run{each}"
        return f"busy {self.busy_share:.1%} between first and last tile{waited}, {share}"

    def to_object(self, run_s: float) -> dict[str, Any]:
        """Return it as JSON values, with the share of a run of so many s that the engines were busy."""
        return {
            "workers": self.workers,
            "busy_s": round(self.busy_s, 6),
            "busy_share": round(self.busy_share, 4),
            "busy_share_of_run": round(self.share_of(run_s), 4),
            "waited_s": round(self.waited_s, 6),
            "waited": {cause: round(seconds, 6) for cause, seconds in self.waited.items()},
            "longest_waits": [gap.to_object() for gap in self.gaps],
        }

    def share_of(self, run_s: float) -> float:
        """Return the share of a run's time that the engines were busy."""
        return self.busy_s / (run_s * self.workers) if self.workers and run_s else 0.0


def measure_device(spans: Iterable[Span]) -> DeviceUse:
    """Return the use that was made of the engines, by the rule above, from all spans of a run in any order.

    >>> def made(name, thread, start, stop):
    ...     return Span(name=name, worker="w", thread=thread, start_s=start, stop_s=stop)
    >>> use = measure_device(
    ...     [
    ...         made("infer", "device", 0, 2),
    ...         made("write labels", "1", 2, 3),
    ...         made("infer", "device", 4, 6),
    ...         made("infer", "1", 4, 6),
    ...     ]
    ... )
    >>> use.busy_share, use.waited
    (0.6666666666666666, {'writing': 1.0, 'scheduling': 1.0})
    """
    account = DeviceAccount()
    by_task = sorted(spans, key=_task_of)
    for _, task in groupby(by_task, key=_task_of):
        account.add([*task])
    return account.result()


def _task_of(span: Span) -> tuple[str, int]:
    return span.worker, -1 if span.block is None else span.block


def innermost(spans: Sequence[Span]) -> list[Segment]:
    """Cut the nested spans of one thread into segments that do not overlap, each of the innermost span; in order.

    >>> made = [("decode", 1.0, 3.0), ("read", 0.0, 4.0), ("infer", 4.0, 9.0)]
    >>> innermost([Span(name=n, worker="w", thread="1", start_s=a, stop_s=b) for n, a, b in made])
    [(0.0, 1.0, 'read'), (1.0, 3.0, 'decode'), (3.0, 4.0, 'read'), (4.0, 9.0, 'infer')]
    """
    segments: list[Segment] = []
    still_open: list[Span] = []
    at = 0.0

    def go_to(time: float) -> None:
        nonlocal at
        if still_open and time > at:
            segments.append((at, time, still_open[-1].name))
        at = max(at, time)

    for span in sorted(spans, key=lambda span: (span.start_s, -span.stop_s)):
        while still_open and still_open[-1].stop_s <= span.start_s:
            go_to(still_open[-1].stop_s)
            still_open.pop()
        go_to(span.start_s)
        still_open.append(span)
    while still_open:
        go_to(still_open[-1].stop_s)
        still_open.pop()
    return segments


class DeviceAccount:
    """Adds up the use of the engines, task by task, in bounded memory."""

    def __init__(self) -> None:
        self._workers: defaultdict[str, _Worker] = defaultdict(_Worker)

    def add(self, spans: Sequence[Span], segments: Sequence[Segment] | None = None) -> None:
        """Take the spans of one task, of one thread and the engine; and `innermost` of the thread's, if at hand."""
        own = [span for span in spans if span.thread not in (DEVICE, HELPER)]
        if not spans:
            return
        worker = self._workers[spans[0].worker]
        thread = own[0].thread if own else ""
        worker.did[thread] += innermost(own) if segments is None else segments
        worker.held += [(span.start_s, span.stop_s, thread) for span in own if span.name in HOLDING]
        worker.tiles += [(span.start_s, span.stop_s, thread) for span in spans if span.thread == DEVICE]
        worker.n_pending += 1
        if worker.n_pending >= 2 * LATE_BLOCKS:
            worker.settle(len(worker.tiles) // 2)

    def result(self) -> DeviceUse:
        """Return the sums over all that was added; nothing can be added after."""
        gaps: list[Gap] = []
        causes: defaultdict[str, float] = defaultdict(float)
        busy_s = between_s = 0.0
        used = 0
        for name, worker in self._workers.items():
            worker.settle(len(worker.tiles))
            if worker.first_s is None or worker.edge_s is None:
                continue
            used += 1
            busy_s += worker.busy_s
            between_s += worker.edge_s - worker.first_s
            for cause, seconds in worker.causes.items():
                causes[cause] += seconds
            gaps += [Gap(worker=name, start_s=start, stop_s=stop, causes=why) for start, stop, why in worker.gaps]
        return DeviceUse(
            workers=used,
            between_s=between_s,
            busy_s=busy_s,
            waited=dict(sorted(causes.items(), key=lambda item: -item[1])),
            gaps=tuple(sorted(gaps, key=lambda gap: -gap.seconds)[:MOST_GAPS]),
        )


@dataclass(slots=True)
class _Worker:
    """What is yet to be settled of a worker, and what has been: all before `edge_s`, where the last tile ended."""

    did: defaultdict[str, list[Segment]] = field(default_factory=lambda: defaultdict(list))
    held: list[Segment] = field(default_factory=list)
    """When which thread had the engine."""
    tiles: list[Segment] = field(default_factory=list)
    """When the engine was busy, and with which thread's tile."""
    n_pending: int = 0
    first_s: float | None = None
    edge_s: float | None = None
    busy_s: float = 0.0
    causes: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    gaps: list[tuple[float, float, dict[str, float]]] = field(default_factory=list)

    def settle(self, count: int) -> None:
        """Add up the time until the end of so many tiles, the first there are, and forget what was before."""
        for segments in (self.tiles, self.held, *self.did.values()):
            segments.sort()
        for start, stop, thread in self.tiles[:count]:
            edge = start if self.edge_s is None else self.edge_s
            self.first_s = start if self.first_s is None else self.first_s
            if start > edge:
                self._wait(edge, start, thread)
            self.busy_s += max(stop - max(start, edge), 0)
            self.edge_s = max(edge, stop)
        del self.tiles[:count]
        self.n_pending //= 2
        if count:
            self.held = [held for held in self.held if held[1] > (self.edge_s or 0)]
            for thread, segments in self.did.items():
                self.did[thread] = [segment for segment in segments if segment[1] > (self.edge_s or 0)]
        elif not self.tiles:  # nothing but empty blocks: they are not what a tile waits for
            self.held.clear()
            self.did.clear()

    def _wait(self, start: float, stop: float, next_thread: str) -> None:
        causes: defaultdict[str, float] = defaultdict(float)
        at = start
        for held_from, held_to, thread in _within(self.held, start, stop):
            if held_to > at:
                self._blame(next_thread, at, held_from, causes)
                self._blame(thread, max(held_from, at), held_to, causes)
                at = held_to
        self._blame(next_thread, at, stop, causes)
        for cause, seconds in causes.items():
            self.causes[cause] += seconds
        if len(self.gaps) < MOST_GAPS or stop - start > self.gaps[-1][1] - self.gaps[-1][0]:
            self.gaps = sorted([*self.gaps, (start, stop, dict(causes))], key=lambda gap: gap[0] - gap[1])[:MOST_GAPS]

    def _blame(self, thread: str, start: float, stop: float, causes: defaultdict[str, float]) -> None:
        """Add the time from start to stop to the causes, by what a thread did."""
        at = start
        for did_from, did_to, name in _within(self.did[thread], start, stop) if start < stop else ():
            if did_from > at:
                causes[SCHEDULING] += did_from - at
            causes[CAUSES.get(name, OTHER)] += did_to - did_from
            at = did_to
        if stop > at:
            causes[SCHEDULING] += stop - at


def _within(segments: Sequence[Segment], start: float, stop: float) -> Iterator[Segment]:
    """Yield what segments in order have between start and stop."""
    for number in range(bisect_right(segments, start, key=itemgetter(1)), len(segments)):
        from_s, to_s, name = segments[number]
        if from_s >= stop:
            return
        yield max(from_s, start), min(to_s, stop), name
