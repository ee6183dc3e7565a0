"""The profile of a run: what is kept of its spans, and what they add up to.

1. `Timeline` takes what the threads recorded, task by task. Counts, seconds and the use of the engine (`device_use`)
   are those of all spans; of the spans themselves the first and the last `KEPT_SPANS` / 2 are kept, in whole tasks.
2. The seconds of a stage are those of its own spans without what is nested in them, of all threads together.
3. The clock of a worker that is far off is moved, so that none of its tasks ends after its report came, and the
   quickest of them ends with it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unet_deploy.runtime.device_use import DeviceAccount, DeviceUse, innermost
from unet_deploy.runtime.timeline import DEVICE, HELPER, MAIN, Log, Recorded, Span, recording, this_worker, time_of_day

KEPT_SPANS = 20_000
MOST_SKEW_S = 5.0
"""How far a report may be younger than its last span before the worker's clock is taken to be wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """How many spans of a name there were, and how long they took without what is nested in them."""

    name: str
    count: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Where the time of a run went.

    `stages` come the longest first; their seconds are those of all threads together. `run_s` is the wall time. `part`
    says what of the volume it does not cover, where an earlier or a later run did that. `n_left_out` of `n_spans` are
    counted, but not in the file.
    """

    path: Path
    run_s: float
    stages: tuple[Stage, ...]
    device: DeviceUse
    n_spans: int
    n_left_out: int
    part: str | None = None

    def to_object(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "file": str(self.path),
            "part": self.part,
            "run_s": round(self.run_s, 6),
            "stages": {s.name: {"count": s.count, "seconds": round(s.seconds, 6)} for s in self.stages},
            "device": self.device.to_object(self.run_s),
            "spans": self.n_spans,
            "spans_left_out": self.n_left_out,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What is put into the file: kept spans, in s from the run's start, and words on the run."""

    title: str
    facts: Mapping[str, str]
    profile: Profile
    spans: tuple[Span, ...]
    own_worker: str
    """The process that the run was begun in."""

    @property
    def lanes(self) -> dict[tuple[str, str], str]:
        """The lanes from top to bottom, by worker and thread, with their names.

        The run's own process comes first; in each the thread that began the run, the engine, then the others by their
        first span, and at last helpers; see `set_apart`.
        """
        first: dict[tuple[str, str], float] = {}
        for span in self.spans:
            lane = span.worker, span.thread
            first[lane] = min(span.start_s, first.get(lane, span.start_s))
        own = self.own_worker
        names: dict[tuple[str, str], str] = {}
        counts: dict[str, int] = {}
        for worker, thread in sorted(first, key=lambda at: (at[0] != own, at[0], _rank(at[1]), first[at])):
            is_plain = _rank(thread) == _PLAIN
            counts[worker] = counts.get(worker, 0) + is_plain
            names[worker, thread] = f"thread {counts[worker]}" if is_plain else thread
        return names


_PLAIN = 2


def _rank(thread: str) -> int:
    return {MAIN: 0, DEVICE: 1, HELPER: 3}.get(thread.partition(" ")[0], _PLAIN)


class Timeline:
    """Collects what the threads of a run record; see the module.

    Parameters
    ----------
    path
        The file that it will be written to.
    started
        When the run began, by `time.perf_counter`.
    """

    def __init__(self, path: Path, started: float) -> None:
        self.path = path
        self._started = started
        self._log: Log | None = None
        self._counts: dict[str, int] = {}
        self._seconds: dict[str, float] = {}
        self._account = DeviceAccount()
        self._first: list[Recorded] = []
        self._last: deque[Recorded] = deque()
        self._n_first = self._n_last = self.n_spans = 0
        self._skew: dict[str, float] = {}

    @contextmanager
    def recording(self) -> Iterator[Timeline]:
        """Record what the calling thread does meanwhile."""
        with recording(thread=MAIN) as self._log:
            yield self

    def take(self, recorded: Recorded | None = None) -> None:
        """Take what a task recorded, and what the run's own thread did since it was last asked; no span is open."""
        if recorded is not None:
            self._add(recorded)
        if self._log is not None and (self._log.marks or self._log.helpers):
            self._add(self._log.take())

    def _add(self, recorded: Recorded) -> None:
        spans = [*recorded.spans()]
        own = [span for span in spans if span.thread not in (DEVICE, HELPER)]
        if not spans:
            return
        segments = innermost(own)
        helped = [(span.start_s, span.stop_s, span.name) for span in spans if span.thread == HELPER]
        for span in spans:
            if span.thread != DEVICE:
                self._counts[span.name] = self._counts.get(span.name, 0) + 1
        for start, stop, name in (*segments, *helped):
            self._seconds[name] = self._seconds.get(name, 0.0) + stop - start
        self._account.add(spans, segments)
        age = time_of_day(time.perf_counter()) - max(span.stop_s for span in spans)
        self._skew[recorded.worker] = min(age, self._skew.get(recorded.worker, age))
        self._keep(recorded, len(spans))

    def _keep(self, recorded: Recorded, count: int) -> None:
        self.n_spans += count
        if not self._last and self._n_first + count <= KEPT_SPANS // 2:
            self._first.append(recorded)
            self._n_first += count
            return
        self._last.append(recorded)
        self._n_last += count
        while self._n_last > KEPT_SPANS // 2 and len(self._last) > 1:
            gone = self._last.popleft()
            self._n_last -= gone.count

    def finish(self, *, title: str, facts: Mapping[str, str], part: str | None) -> Drawing:
        """Return what is to be put into a file, and what it adds up to. Nothing can be taken after."""
        self.take()
        run_s = time.perf_counter() - self._started
        stages = (
            Stage(name=name, count=count, seconds=self._seconds.get(name, 0.0)) for name, count in self._counts.items()
        )
        use = self._account.result()
        gaps = (
            replace(gap, start_s=gap.start_s + (by := self._shift(gap.worker)), stop_s=gap.stop_s + by)
            for gap in use.gaps
        )
        profile = Profile(
            path=self.path,
            run_s=run_s,
            stages=tuple(sorted(stages, key=lambda stage: -stage.seconds)),
            device=replace(use, gaps=tuple(gaps)),
            n_spans=self.n_spans,
            n_left_out=self.n_spans - self._n_first - self._n_last,
            part=part,
        )
        spans = [
            replace(span, start_s=span.start_s + by, stop_s=span.stop_s + by)
            for recorded in (*self._first, *self._last)
            for by in [self._shift(recorded.worker)]
            for span in recorded.spans()
        ]
        apart = tuple(set_apart(spans))
        return Drawing(title=title, facts=facts, profile=profile, spans=apart, own_worker=this_worker())

    def _shift(self, worker: str) -> float:
        """Return what makes times of a worker s from the run's start, even where its clock is wrong."""
        skew = 0.0 if worker == this_worker() else self._skew.get(worker, 0.0)
        return (0.0 if -0.001 <= skew <= MOST_SKEW_S else skew) - time_of_day(self._started)


def set_apart(spans: Iterable[Span]) -> Iterator[Span]:
    """Yield spans; those of an engine and of helpers overlap, and get as few lanes as they need: helper, helper 2."""
    free_from: dict[tuple[str, str], list[float]] = {}
    for span in sorted(spans, key=lambda span: span.start_s):
        if span.thread not in (DEVICE, HELPER):
            yield span
            continue
        lanes = free_from.setdefault((span.worker, span.thread), [])
        number = next((i for i, at in enumerate(lanes) if at <= span.start_s), len(lanes))
        lanes[number : number + 1] = [span.stop_s]
        yield replace(span, thread=f"{span.thread} {number + 1}") if number else span
