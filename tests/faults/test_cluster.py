"""A scheduler and workers as processes of their own: they run out of memory, are stopped, killed, or all gone."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dask_processes import DaskProcesses, dask_processes
from tests.tiny import make_pixels, read_arrays, read_provenance, write_image
from unet_deploy.errors import PartialResultError, SchedulerError
from unet_deploy.runtime import Artifact, segment
from unet_deploy.runtime.engines import Engine, EngineDescription
from unet_deploy.runtime.engines.base import Batch
from unet_deploy.runtime.engines.onnxruntime_cpu import OnnxruntimeCpuEngine
from unet_deploy.runtime.scheduling import Patience, connect, run_tasks

pytestmark = pytest.mark.slow

PLANES = 6
HARD = 2
"""The plane that needs more memory than there is."""


class HungryEngine:
    """onnxruntime, until a tile has two values: then it takes memory until it is killed."""

    def __init__(self, artifact: Artifact) -> None:
        self._engine = OnnxruntimeCpuEngine(artifact.data, precision=artifact.card.precision, threads=1)

    def open(self) -> None:
        self._engine.open()

    def infer(self, batch: Batch) -> Batch:
        if np.unique(batch).size == 2:
            take_memory()
        return self._engine.infer(batch)

    def close(self) -> None:
        self._engine.close()

    def describe(self) -> EngineDescription:
        return self._engine.describe()


def hungry(artifact: Artifact) -> Engine:
    return HungryEngine(artifact)


def take_memory() -> None:
    """Take all that a worker may have; it is killed before the end, which spares the machine."""
    taken = []
    for _ in range(150):
        taken.append(np.ones(2**24, np.uint8))
        time.sleep(0.02)
    raise AssertionError("it was not killed")


def die_at_three(_: str, i: int) -> int:
    time.sleep(0.2)
    if i == 3:
        os._exit(1)
    time.sleep(0.2)
    return i


def work(_: str, i: int) -> int:
    time.sleep(0.05)
    return i


@contextmanager
def client_of(cluster: DaskProcesses, *, workers: int) -> Iterator[Any]:
    """Give a client once so many workers are there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what distributed leaves open when its peers are killed is its own
        for _ in range(600):
            try:
                with connect(scheduler_file=cluster.scheduler_file) as client:
                    client.wait_for_workers(workers, timeout=60)
                    yield client
                    return
            except SchedulerError as error:
                if "has no workers" not in str(error):
                    raise
                time.sleep(0.1)
        raise AssertionError([cluster.log(i) for i in range(len(cluster.processes))])


def test_a_block_that_takes_too_much_memory_fails_and_the_run_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    """The nanny kills its worker, twice: among others and alone. Exit 6, and the reason in the output."""
    pixels = make_pixels((PLANES, 100, 90))
    pixels[HARD] = np.indices((100, 90)).sum(axis=0) % 2 * 255
    write_image(tmp_path / "v.zarr", pixels)
    output = tmp_path / "out.zarr"
    options = ("--nthreads", "2", "--memory-limit", "600MB")
    with (
        dask_processes(tmp_path / "dask", workers=1, options=options, SCHEDULER__ALLOWED_FAILURES="0") as cluster,
        client_of(cluster, workers=1) as client,
        pytest.raises(PartialResultError, match=f"1 of {PLANES} blocks failed") as caught,
    ):
        segment(
            tmp_path / "v.zarr", model=tiny_model, output=output, threads=1, scheduler=client, engine_factory=hungry
        )
    assert "exceeded 95% memory budget" in cluster.log(1)
    assert caught.value.exit_code == 6
    (failed,) = read_provenance(output)["failed_blocks"]
    assert failed["block"] == HARD
    assert failed["reason"].startswith("the workers that ran it died: 1 of them, the last at tcp://127.0.0.1:")
    assert failed["reason"].endswith("their logs say why, most often that memory ran out")
    probabilities = read_arrays(output)["0"]
    assert [bool(probabilities[:, z].any()) for z in range(PLANES)] == [z != HARD for z in range(PLANES)]


def test_a_task_is_not_blamed_for_its_neighbour(tmp_path: Path) -> None:
    """The scheduler blames a death on all tasks that the worker had; each gets a second try, alone."""
    lost: dict[int, str] = {}
    with (
        dask_processes(
            tmp_path / "dask", workers=1, options=("--nthreads", "2"), SCHEDULER__ALLOWED_FAILURES="0"
        ) as cluster,
        client_of(cluster, workers=1) as client,
    ):
        found = list(run_tasks(client, die_at_three, ("x",), 8, on_killed=lost.setdefault))
    assert sorted(i for i in found if isinstance(i, int)) == [0, 1, 2, 4, 5, 6, 7]
    assert list(lost) == [3]
    assert lost[3].startswith("1 of them, the last at tcp://127.0.0.1:")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that stops a process")
@pytest.mark.parametrize(
    ("nanny", "ttl", "stall_s", "comes_back"),
    [
        pytest.param("--nanny", "5s", 3600.0, False, id="the scheduler restarts it"),
        pytest.param("--no-nanny", "5s", 3600.0, True, id="the scheduler removes it"),
        pytest.param("--nanny", "1h", 6.0, True, id="its tasks are done by others"),
    ],
)
def test_a_worker_that_is_stopped_is_survived(
    nanny: str, ttl: str, stall_s: float, comes_back: bool, tmp_path: Path
) -> None:
    """What the scheduler does after its worker-ttl, five minutes by default, and what is done here before that."""
    found: list[int] = []
    with (
        dask_processes(
            tmp_path / "dask", workers=2, options=("--nthreads", "1", nanny), SCHEDULER__WORKER_TTL=ttl
        ) as cluster,
        client_of(cluster, workers=2) as client,
    ):
        stopped = sorted(client.run(os.getpid).values())[0]
        try:
            for i in run_tasks(client, work, ("x",), 60, patience=Patience(check_s=0.5, stall_s=stall_s)):
                found.append(i)
                if len(found) == 10:
                    os.kill(stopped, signal.SIGSTOP)
        finally:
            is_there = True
            try:
                os.kill(stopped, signal.SIGCONT)
            except ProcessLookupError:
                is_there = False
    assert sorted(found) == list(range(60))
    assert is_there == comes_back


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that stops a process")
def test_a_worker_that_is_stopped_before_the_run_is_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the tasks share cannot be sent to it, nor is the scheduler told so before its worker-ttl."""
    with (
        caplog.at_level(logging.WARNING, "unet_deploy"),
        dask_processes(
            tmp_path / "dask", workers=2, options=("--nthreads", "1"), SCHEDULER__WORKER_TTL="1h"
        ) as cluster,
        client_of(cluster, workers=2) as client,
    ):
        stopped = sorted(client.run(os.getpid).values())[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            found = list(run_tasks(client, work, ("x",), 30, patience=Patience(check_s=0.5, stall_s=4.0)))
        finally:
            os.kill(stopped, signal.SIGCONT)
    assert sorted(found) == list(range(30))
    assert any("what the tasks share could not be sent" in record.getMessage() for record in caplog.records)


def test_a_worker_that_is_killed_is_replaced_by_one_that_joins(tmp_path: Path) -> None:
    """Without a nanny nobody restarts it, and for a moment no worker is there."""
    found: list[int] = []
    with (
        dask_processes(tmp_path / "dask", workers=1, options=("--nthreads", "1", "--no-nanny")) as cluster,
        client_of(cluster, workers=1) as client,
    ):
        for i in run_tasks(client, work, ("x",), 40, patience=Patience(check_s=0.5)):
            found.append(i)
            if len(found) == 10:
                cluster.processes[1].kill()
                cluster.start_worker("--nthreads", "1", "--no-nanny")
    assert sorted(found) == list(range(40))


def test_a_scheduler_that_is_killed_ends_the_run(tmp_path: Path) -> None:
    with (
        dask_processes(tmp_path / "dask", workers=1, options=("--nthreads", "1")) as cluster,
        client_of(cluster, workers=1) as client,
    ):
        address = client.scheduler.address
        run = run_tasks(client, work, ("x",), 1000, patience=Patience(check_s=0.5))
        next(run)
        cluster.scheduler.kill()
        begun = time.monotonic()
        with pytest.raises(SchedulerError, match=r"^the connection to the Dask scheduler was lost\n") as caught:
            list(run)
    assert time.monotonic() - begun < 60
    assert caught.value.details == (f"the scheduler was {address}",)
    assert caught.value.fix.endswith("then give the same command: it goes on with what is done")
