"""What each thread did when: spans of time, recorded only where somebody asked for a profile.

1. `span` says what the lines below it are: *read*, *infer*. Where nothing is recorded it does nothing.
2. `recording` makes this thread record, a block or a run. What it noted is `Recorded`: small tuples, which travel back
   with a block's report.
3. The engine has a lane of its own: what it computes while threads do something else is said by `marker`. So have the
   threads that a task hands work to, by `carried`.
4. Times are those of a clock that only goes on, moved once in each process to the time of day: processes share an axis,
   machines as far as their clocks agree.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MAIN = "main"
"""The thread that called `segment`."""
DEVICE = "device"
"""The lane of a worker's engine, among those of its threads."""
HELPER = "helper"
"""The lane of threads that a task hands work to."""

Mark = tuple[str, float, float, str]
"""Name, start and stop in s of `time.perf_counter`, note."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What a thread of a worker did from `start_s` to `stop_s`, in s of the time of day; spans of a thread nest.

    `worker` names a process, `thread` one of its threads, or its `DEVICE` or some `HELPER`, whose spans may overlap.
    `block` is None where it was for none.
    """

    name: str
    worker: str
    thread: str
    start_s: float
    stop_s: float
    block: int | None = None
    note: str = ""

    @property
    def seconds(self) -> float:
        """How long it took, what is nested in it included."""
        return self.stop_s - self.start_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What one thread noted of one block, or of the run; an inner mark comes before that which holds it.

    Times are s of `time.perf_counter`; `epoch_s` makes them the time of day.
    """

    worker: str
    thread: str
    epoch_s: float
    block: int | None
    marks: tuple[Mark, ...]
    device: tuple[Mark, ...] = ()
    helpers: tuple[Mark, ...] = ()

    @property
    def count(self) -> int:
        """How many spans it has."""
        return len(self.marks) + len(self.device) + len(self.helpers)

    def spans(self) -> Iterator[Span]:
        """Yield them on the axis that all processes share."""
        for thread, marks in ((self.thread, self.marks), (DEVICE, self.device), (HELPER, self.helpers)):
            for name, start, stop, note in marks:
                yield Span(
                    name=name,
                    worker=self.worker,
                    thread=thread,
                    start_s=start + self.epoch_s,
                    stop_s=stop + self.epoch_s,
                    block=self.block,
                    note=note,
                )


class Log:
    """What a thread has noted since it was last asked."""

    __slots__ = ("block", "device", "helpers", "marks", "name", "thread")

    def __init__(self, block: int | None, thread: str) -> None:
        self.block, self.thread = block, thread
        self.marks: list[Mark] = []
        self.device: list[Mark] = []
        self.helpers: list[Mark] = []
        self.name = ""  # of the innermost span that is open

    def take(self) -> Recorded:
        """Return what was noted, and forget it. To be asked by the thread itself, where no span is open."""
        marks, self.marks = tuple(self.marks), []
        device, self.device = tuple(self.device), []
        helpers, self.helpers = tuple(self.helpers), []
        return Recorded(
            worker=this_worker(),
            thread=self.thread,
            epoch_s=_epoch(),
            block=self.block,
            marks=marks,
            device=device,
            helpers=helpers,
        )


class _Here(threading.local):
    log: Log | None = None


_HERE = _Here()


class _Nothing:
    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class _Open:
    __slots__ = ("_is_device", "_log", "_name", "_note", "_outer", "_start")

    def __init__(self, log: Log, name: str, note: str, *, is_device: bool) -> None:
        self._log, self._name, self._note, self._is_device = log, name, note, is_device

    def __enter__(self) -> None:
        self._outer, self._log.name = self._log.name, self._name
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        mark = (self._name, self._start, time.perf_counter(), self._note)
        self._log.name = self._outer
        self._log.marks.append(mark)
        if self._is_device:
            self._log.device.append(mark)


_NOTHING = _Nothing()


def span(name: str, note: str = "", *, is_device: bool = False) -> AbstractContextManager[None]:
    """Note how long what is done under it takes, where this thread records; else do nothing, in a fraction of a µs.

    Parameters
    ----------
    name
        What is done; those of `unet_deploy.runtime.timeline_page.GROUPS` have a colour of their own.
    note
        What more there is to say of it.
    is_device
        Whether the thread waits for the engine meanwhile, so that it is in the engine's lane too.

    Examples
    --------
    >>> with recording() as log:
    ...     with span("read"), span("decode"):
    ...         pass
    >>> [mark[0] for mark in log.take().marks]
    ['decode', 'read']
    """
    log = _HERE.log
    return _NOTHING if log is None else _Open(log, name, note, is_device=is_device)


def marker() -> Callable[[str, float, float], None]:
    """Return what notes for this thread, in whatever thread, what the engine did; in s of `time.perf_counter`."""
    log = _HERE.log

    def mark(name: str, start_s: float, stop_s: float) -> None:
        if log is not None:
            log.device.append((name, start_s, stop_s, ""))

    return mark


def carried(function: Callable[Arguments, Result], name: str | None = None) -> Callable[Arguments, Result]:
    """Return a function that does the same in another thread, and notes it, by default as the span that is open."""
    log = _HERE.log
    if log is None:
        return function
    noted = log.name if name is None else name

    def run(*arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        start = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            log.helpers.append((noted, start, time.perf_counter(), ""))

    return run


@contextmanager
def recording(block: int | None = None, *, thread: str | None = None) -> Iterator[Log]:
    """Let this thread record what is done below, for a block or for none; under its own name, or another."""
    before, _HERE.log = _HERE.log, Log(block, thread or threading.current_thread().name)
    try:
        yield _HERE.log
    finally:
        _HERE.log = before


def time_of_day(perf_counter_s: float) -> float:
    """Return a time of `time.perf_counter` of this process on the axis of spans."""
    return perf_counter_s + _epoch()


@cache
def this_worker() -> str:
    """Return a name of this process that no other has."""
    return f"{socket.gethostname()}:{os.getpid()}"


@cache
def _epoch() -> float:
    return time.time() - time.perf_counter()
