"""Measure an engine on this machine: seconds and memory of tiles of several sizes, in a process of its own.

1. The engine is opened in a new process, as a segmentation opens it: its test tensor is replayed. So memory is that of
   the engine alone, and an engine that dies there, for want of memory or of itself, is an answer, not the end.
2. Tiles are run in growing size, so that the peak of each is its own (`runtime._measuring_child`). The time of a tile
   is foretold from that of the last one, by their operations: one that would not end in time is not begun.
3. The process is a plain one that is given its work through a pipe: nothing of the caller's program runs again in it,
   so a script without ``if __name__ == "__main__"`` and an interactive session will do, on Windows too.
4. `EngineProbe` is the engine in its process; several can be open, to take turns: then what else the machine does
   meanwhile strikes all of them alike.
"""

from __future__ import annotations

import datetime
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing import spawn
from pathlib import Path
from typing import IO, Any

from unet_deploy import errors
from unet_deploy.errors import DeviceError, DeviceMemoryError, UnetDeployError
from unet_deploy.runtime._measuring_child import SLOW_SECONDS, WARM_UP
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.cost import tile_flops
from unet_deploy.runtime.engine_costs import EngineCosts, TileSample
from unet_deploy.runtime.engines.cache import EngineFactory, EngineRequest
from unet_deploy.runtime.engines.choice import ENGINES

PATIENCE_S = 60.0
"""What opening an engine, or a tile beyond the time it was given, may take before the process is stopped."""
_SIGKILL = 9
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from unet_deploy.runtime._measuring_child import main; main()"
)


class EngineProbe:
    """An engine in a process of its own, that times tiles when it is asked to; used as a context.

    Parameters
    ----------
    artifact
        A checked artifact; its weights change nothing.
    engine, device, threads
        As for `open_engine`; the engine is named, since it is one engine that is measured.
    largest
        Input sides (y, x) of the largest tile that will come, for engines that are built for one.
    batch
        Tiles of a forward pass.
    patience_s
        How long an answer may take beyond the time that it was given, before the process is stopped; may be changed
        between answers.
    engine_factory
        Makes the engine, in place of the one of that name; importable by another process.

    Raises
    ------
    DeviceError
        If there is no Python to start, as in a program that Python is only a part of, or none can be started. When
        the process dies, or is stopped, before it has answered: DeviceMemoryError where the system did it, as it does
        for want of memory. What opening the engine or running a tile raises there is raised here.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        engine: str,
        device: str = "auto",
        threads: int = 0,
        largest: tuple[int, int],
        batch: int = 1,
        patience_s: float = PATIENCE_S,
        engine_factory: EngineFactory | None = None,
    ) -> None:
        self._name, self._artifact, self.patience_s = engine, artifact, patience_s
        self._threads, self._batch = threads, batch
        self._words, self._process = _start(_find_python(engine), engine)
        self.samples: list[TileSample] = []
        try:
            is_of_cpu = any(kind.name == engine and kind.device == "cpu" for kind in ENGINES)  # opened for each tile
            request = EngineRequest(
                artifact=artifact,
                device=device,
                engine=engine,
                threads=threads,
                batch_shape=None if is_of_cpu else (batch, artifact.card.network.in_channels, *largest),
                factory=engine_factory,
            )
            where = json.dumps([*map(str, sys.path)]).encode() + b"\n"
            asked = where + pickle.dumps(request, protocol=pickle.HIGHEST_PROTOCOL)
            answer = self._ask(asked, 0.0, when="when it was opened")
            self._opened: dict[str, Any] = answer["opened"]
            self._again_s: float = answer["seconds"] if self._opened["device"] == "cpu" else 0.0
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> EngineProbe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def foretell(self, tile: tuple[int, int]) -> float:
        """Return about how long a tile will take to be measured, if only just; 0 before the first."""
        if not self.samples:
            return 0.0
        last, network = self.samples[-1], self._artifact.card.network
        seconds = last.seconds * tile_flops(network, *tile) / tile_flops(network, last.tile_y, last.tile_x)
        return self._again_s + (2 if seconds > SLOW_SECONDS else WARM_UP + 1) * seconds

    def measure(self, tile: tuple[int, int], *, seconds: float) -> TileSample:
        """Return seconds and memory of a tile, no smaller than the last one; `seconds` are what it should take."""
        item = {"tile": tile, "batch": self._batch, "seconds": seconds}
        answer = self._ask(json.dumps(item).encode() + b"\n", seconds, when=f"on a tile of {tile[0]} x {tile[1]} px")
        sample = TileSample(tile_y=tile[0], tile_x=tile[1], batch=self._batch, **answer)
        self.samples.append(sample)
        return sample

    def costs(self) -> EngineCosts:
        """Return what was measured so far; there must be something."""
        return EngineCosts(
            engine=self._opened["engine"],
            device=self._opened["device"],
            precision=self._opened["precision"],
            threads=self._threads,
            versions=self._opened["versions"],
            samples=tuple(self.samples),
            measured=datetime.datetime.now().astimezone().date().isoformat(),
        )

    def close(self) -> None:
        """End the process; may be called twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._words):
            assert pipe is not None
            with suppress(OSError):  # what it did not read
                pipe.close()

    def _ask(self, data: bytes, seconds: float, *, when: str) -> dict[str, Any]:
        """Return the answer to what is sent."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        was_stopped = threading.Event()

        def stop() -> None:
            was_stopped.set()
            self._process.kill()

        timer = threading.Timer(seconds + self.patience_s, stop)
        timer.daemon = True
        timer.start()
        try:
            with suppress(OSError):  # it died before it had read all: its answer, or none, tells why
                self._process.stdin.write(data)
                self._process.stdin.flush()
            answer = next(filter(None, map(_read_answer, self._process.stdout)), None)
            code = None if answer is not None else self._process.wait()
        finally:
            timer.cancel()
        if answer is None:
            raise _no_answer(self._name, when, None if was_stopped.is_set() else code, _last_words(self._words))
        if "error" not in answer:
            return answer
        told = answer["error"]
        kind: type[UnetDeployError] = getattr(errors, told["class"])
        raise kind(told["headline"], *told["details"], fix=told["fix"])


def measure_engine(
    artifact: Artifact,
    *,
    engine: str,
    device: str = "auto",
    threads: int = 0,
    tiles: Sequence[tuple[int, int]],
    batch: int = 1,
    seconds_limit: float = 20.0,
    patience_s: float = PATIENCE_S,
    engine_factory: EngineFactory | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> EngineCosts:
    """Time tiles on an engine, and measure what it holds, in a process of its own.

    Parameters
    ----------
    artifact, engine, device, threads, batch, patience_s, engine_factory
        As for `EngineProbe`.
    tiles
        Input sides (y, x) of the tiles, legal for the network; run from the smallest on.
    seconds_limit
        A tile that would not be done in this time, opening the engine included, is left out; the first is tried anyway.
    should_stop
        Asked before each tile but the first; once it says so, what was measured is all.

    Returns
    -------
    EngineCosts
        With a sample for each tile that was run. `memory_bytes` is 0 on a GPU: the engines do not tell what they hold
        there, and what the process holds beside it says nothing of a tile.

    Raises
    ------
    TileNotLegalError
        If a tile is none of the network's.
    DeviceError
        If the process died, or was too slow, before the first tile was done; other errors as of `open_engine`.
    """
    deadline = time.monotonic() + seconds_limit
    ordered = order_tiles(artifact, tiles)
    with EngineProbe(
        artifact,
        engine=engine,
        device=device,
        threads=threads,
        largest=ordered[-1],
        batch=batch,
        patience_s=patience_s,
        engine_factory=engine_factory,
    ) as probe:
        for tile in ordered:
            left = deadline - time.monotonic()
            if probe.foretell(tile) > max(left, 0.0) or (probe.samples and should_stop()):
                break
            try:
                probe.measure(tile, seconds=max(left, 0.0))
            except DeviceError:
                if not probe.samples:
                    raise
                break  # nor would a larger one do
        return probe.costs()


def order_tiles(artifact: Artifact, tiles: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return tiles in growing size, each once.

    Raises
    ------
    TileNotLegalError
        If one is none of the network's.
    """
    geometry, network = artifact.card.geometry, artifact.card.network
    ordered = sorted(set(tiles), key=lambda tile: tile_flops(network, *tile))
    assert ordered, "no tile to measure"
    for tile in ordered:
        for axis, side in zip("yx", tile, strict=True):
            geometry.require_legal(side, axis=axis)
    return ordered


def _find_python(engine: str) -> str:
    """Return the interpreter to start; another program, into which Python was built, must not be started once more."""
    program = os.fsdecode(spawn.get_executable() or "")
    if not getattr(sys, "frozen", False) and Path(program).name.lower().startswith(("python", "pypy")):
        return program
    raise DeviceError(
        f"{engine} cannot be measured: there is no Python interpreter to do it in",
        f"this program is {Path(program or sys.executable or 'unknown').name}, a part of which Python is",
        fix="run unet-deploy bench where it was installed with pip, or call multiprocessing.set_executable",
    )


def _start(program: str, engine: str) -> tuple[IO[bytes], subprocess.Popen[bytes]]:
    """Start the process; return the file of what it says to people, and the process."""
    try:
        with ExitStack() as unless_started:
            words = unless_started.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(  # noqa: S603  # this very Python, with a program of ours
                [program, "-P", "-c", _PROGRAM],  # or a json.py in the current folder would be the first thing to run
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # none for a program with windows
            )
            unless_started.pop_all()
    except OSError as error:
        raise DeviceError(
            f"{engine} cannot be measured: no process can be started to do it in",
            f"{type(error).__name__}: {error}",
            fix="let this program start others, and write to the folder for temporary files",
        ) from error
    return words, process


def _read_answer(line: bytes) -> dict[str, Any] | None:
    """Return an answer; None for a line that was cut off, or that something wrote before stdout was taken from it."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _last_words(words: IO[bytes]) -> str:
    words.seek(0)
    lines = words.read()[-4096:].decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _no_answer(engine: str, when: str, code: int | None, words: str) -> DeviceError:
    """Return what to say of a process that ended without an answer; `code` is None if it was stopped here."""
    said = [f"it said: {words}"] if words else []
    if code is None:
        return DeviceError(
            f"{engine} did not answer in time {when}, and was stopped",
            *said,
            fix="give it more time (--seconds), or measure smaller tiles",
        )
    if code == -_SIGKILL:
        return DeviceMemoryError(
            f"{engine} was killed by the system {when}",
            "a system does that to a process that takes more memory than there is",
            *said,
            fix="free memory, or measure smaller tiles",
        )
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return DeviceError(
        f"the process of {engine} ended {when}: {how}",
        *said,
        fix=f"use another engine, or install {engine} again: a segmentation would end so too",
    )
