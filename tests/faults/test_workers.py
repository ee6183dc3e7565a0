"""What a block may raise, what then becomes of the run, and runs on workers of their own."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Outcome
from tests.tiny import make_pixels, read_arrays, read_provenance, snapshot, write_image
from unet_deploy.errors import NoSpaceError, PartialResultError, SchedulerError, TestTensorError
from unet_deploy.runtime import Artifact, load_artifact, segment
from unet_deploy.runtime.engines import Engine, EngineDescription
from unet_deploy.runtime.engines.base import Batch
from unet_deploy.runtime.engines.onnxruntime_cpu import OnnxruntimeCpuEngine
from unet_deploy.runtime.execute import Progress

Cli = Callable[..., Outcome]
PLANES = 4
BLACK = 1
"""The plane that is black, which is how an engine below knows that it is to fail."""


class FailingEngine:
    """onnxruntime, until a tile is black everywhere."""

    def __init__(self, artifact: Artifact, error: BaseException) -> None:
        self._engine = OnnxruntimeCpuEngine(artifact.data, precision=artifact.card.precision, threads=1)
        self._error = error
        self.is_closed = False

    def open(self) -> None:
        self._engine.open()

    def infer(self, batch: Batch) -> Batch:
        if batch.min() == batch.max():
            raise self._error
        return self._engine.infer(batch)

    def close(self) -> None:
        self.is_closed = True
        self._engine.close()

    def describe(self) -> EngineDescription:
        return self._engine.describe()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    pixels = make_pixels((PLANES, 100, 90))
    pixels[BLACK] = 0
    return write_image(tmp_path / "v.zarr", pixels)


def run(volume: Path, model: Path, error: BaseException) -> Path:
    """Segment with an engine that fails on the black plane; returns the output."""
    output = volume.with_name("out.zarr")

    def factory(artifact: Artifact) -> Engine:
        return FailingEngine(artifact, error)

    segment(volume, model=model, output=output, engine_factory=factory)
    return output


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("a value that cannot be"),
        KeyError("logits"),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        ZeroDivisionError("division by zero"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_block_that_fails_is_recorded_and_the_run_goes_on(error: Exception, volume: Path, tiny_model: Path) -> None:
    with pytest.raises(PartialResultError, match=f"1 of {PLANES} blocks failed") as caught:
        run(volume, tiny_model, error)
    name = type(error).__name__
    assert f"block {BLACK}: {name}: " in str(caught.value)
    said = read_provenance(volume.with_name("out.zarr"))
    assert said["status"] == "partial"
    assert said["failed_blocks"] == [{"block": BLACK, "reason": f"{name}: {error}"}]
    probabilities = read_arrays(volume.with_name("out.zarr"))["0"]
    assert [bool(probabilities[:, z].any()) for z in range(PLANES)] == [z != BLACK for z in range(PLANES)]


def test_a_block_that_no_memory_is_left_for_says_what_was_tried(volume: Path, tiny_model: Path) -> None:
    with pytest.raises(PartialResultError, match=f"1 of {PLANES} blocks failed") as caught:
        run(volume, tiny_model, MemoryError())
    assert f"block {BLACK}: DeviceMemoryError: there is no memory even for 1 tile of 44 × 44 px" in str(caught.value)
    (failed,) = read_provenance(volume.with_name("out.zarr"))["failed_blocks"]
    assert re.search(r"tried before it: (1 tile of \d+ × \d+ px, )*1 tile of \d+ × \d+ px\n", failed["reason"])


@pytest.mark.parametrize(
    "error",
    [AssertionError("an invariant of ours"), TypeError("a bug"), AttributeError("a bug"), NameError("a bug")],
    ids=lambda error: type(error).__name__,
)
def test_our_own_bug_stops_the_run(error: Exception, volume: Path, tiny_model: Path) -> None:
    """It would fail on every block; and the command line says error[bug]."""
    with pytest.raises(type(error), match=str(error)):
        run(volume, tiny_model, error)
    assert read_provenance(volume.with_name("out.zarr"))["status"] == "running"


def test_a_full_disk_stops_the_run(volume: Path, tiny_model: Path) -> None:
    """Nothing after it could be written either."""
    full = NoSpaceError("the disk is full", "while writing labels", fix="free space, then run again with --overwrite")
    with pytest.raises(NoSpaceError, match="the disk is full") as caught:
        run(volume, tiny_model, full)
    assert caught.value.exit_code == 3
    assert read_provenance(volume.with_name("out.zarr"))["status"] == "running"


def test_an_engine_that_computes_something_else_is_never_used(volume: Path, tiny_model: Path) -> None:
    class Wrong(FailingEngine):
        def infer(self, batch: Batch) -> Batch:
            return self._engine.infer(batch) + np.float32(1e-3)

    made: list[Wrong] = []

    def factory(artifact: Artifact) -> Engine:
        made.append(Wrong(artifact, RuntimeError()))
        return made[-1]

    before = snapshot(volume.parent)
    with pytest.raises(TestTensorError, match="does not compute what the model's parent computed"):
        segment(volume, model=tiny_model, output=volume.with_name("out.zarr"), engine_factory=factory)
    assert [engine.is_closed for engine in made] == [True]
    assert snapshot(volume.parent) == before


def test_a_failure_of_one_run_is_not_remembered_in_the_next(volume: Path, tiny_model: Path) -> None:
    with pytest.raises(PartialResultError):
        run(volume, tiny_model, RuntimeError("once"))
    artifact = load_artifact(tiny_model)
    result = segment(volume, model=artifact, output=volume.with_name("out.zarr"), overwrite=True)
    assert result.failed == ()
    assert read_provenance(result.output)["status"] == "complete"


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a scheduler on loopback with two worker processes."""
    from distributed import LocalCluster

    with (
        warnings.catch_warnings(),  # what dask's own processes leave open at their end is theirs
        LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as found,
    ):
        warnings.simplefilter("ignore")
        yield found.scheduler_address


def is_data(name: str) -> bool:
    """Tell whether a file of a store holds pixels: neither times nor the order of blocks."""
    return "zarr.json" not in name and "journal" not in name


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes(cluster: str, cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "v.zarr", make_pixels((6, 700, 600)))  # large enough for two levels
    here = cli("segment", "v.zarr", "--model", tiny_model, "-o", "here.zarr")
    there = cli("segment", "v.zarr", "--model", tiny_model, "-o", "there.zarr", "--scheduler", cluster)
    assert (here.code, there.code) == (0, 0), there.err
    arrays = {name: files for name, files in snapshot(tmp_path / "here.zarr").items() if is_data(name)}
    assert len([name for name, content in arrays.items() if content]) > 6 * 2
    assert {n: f for n, f in snapshot(tmp_path / "there.zarr").items() if is_data(n)} == arrays
    assert read_arrays(tmp_path / "there.zarr").keys() == {"0", "1", "labels/segmentation/0", "labels/segmentation/1"}


@pytest.mark.slow
def test_a_block_fails_on_a_cluster_as_it_does_here(cluster: str, cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "v.zarr", make_pixels((3, 100, 90)))
    chunk = tmp_path / "v.zarr" / "0" / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    outcome = cli("segment", "v.zarr", "--model", tiny_model, "--scheduler", cluster)
    assert outcome.code == 6, outcome.err
    assert "block 1: ReadError: the window z 1:2" in outcome.err


@pytest.mark.slow
def test_workers_that_are_killed_cost_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """Both are, one after the other: the nanny starts others, what was sent to them is sent again."""
    from distributed import Client, LocalCluster

    write_image(tmp_path / "v.zarr", make_pixels((60, 120, 130)))
    segment(tmp_path / "v.zarr", model=tiny_model, output=tmp_path / "whole.zarr", threads=1)
    killed: list[int] = []
    with (
        warnings.catch_warnings(),
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as found,
        Client(found, set_as_default=False) as client,
    ):
        warnings.simplefilter("ignore")

        def kill(progress: Progress) -> None:
            if progress.stage == "segment" and progress.done in (3, 20):
                pid = sorted(client.run(os.getpid).values())[0]
                killed.append(pid)
                os.kill(pid, signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)

        result = segment(
            tmp_path / "v.zarr",
            model=tiny_model,
            output=tmp_path / "out.zarr",
            threads=1,
            scheduler=client,
            progress=kill,
        )
    assert len(set(killed)) == 2
    assert result.failed == ()
    came, whole = read_arrays(tmp_path / "out.zarr"), read_arrays(tmp_path / "whole.zarr")
    assert came.keys() == whole.keys()
    assert all(np.array_equal(came[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_a_scheduler_without_workers(volume: Path, tiny_model: Path) -> None:
    from distributed import LocalCluster

    before = snapshot(volume.parent)
    with (
        LocalCluster(
            n_workers=0, processes=False, host="127.0.0.1", protocol="tcp", dashboard_address="127.0.0.1:0"
        ) as empty,
        pytest.raises(SchedulerError, match="has no workers") as caught,
    ):
        segment(volume, model=tiny_model, output=volume.with_name("out.zarr"), scheduler=empty.scheduler_address)
    assert f"dask worker {empty.scheduler_address}" in str(caught.value)
    assert snapshot(volume.parent) == before
