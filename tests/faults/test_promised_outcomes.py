"""Faults, and what was promised of each: how the run ends, what the output then says of itself, how it is finished.

`PROMISES` is the table, of which docs/faults.md tells users. Each row is run as a user would: the command under the
fault; the same command again, when the fault has passed; what its message says, where that is more. In the end the
result is that of a run without faults.

Other rows of the same table are tested where their means are: workers that die or run out of memory in `test_workers`,
kills in `test_killed_run` and `test_resumed_run`, a device without memory in `tests/unit/test_memory.py`, damage in
volumes that are no shards in `test_damaged_volume`.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.conftest import Outcome
from tests.faults.failing_files import failing
from tests.set_clock import SET_BACK
from tests.tiny import edit_card, make_pixels, read_arrays, read_provenance, snapshot
from unet_deploy.errors import InterruptedRunError, PartialResultError
from unet_deploy.runtime import Artifact, segment
from unet_deploy.runtime.engines import Engine, EngineDescription
from unet_deploy.runtime.engines.base import Batch
from unet_deploy.runtime.engines.onnxruntime_cpu import OnnxruntimeCpuEngine

Cli = Callable[..., Outcome]
PLANES = 5
BAD = 2
"""The plane, and so the block, that each fault meets."""
EIO = os.strerror(errno.EIO)
PARTIAL = f"error[partial-result]: 1 of {PLANES} blocks failed; they are 0 in out.zarr"
MEND = "fix: mend the cause, then give the same command with --retry-failed"
EXISTS = "exists, and 1 of its blocks failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What a fault leads to.

    `fault` is around the first command. `says` is what is on stderr then; `status`, `failed` and their `reason` what
    the output says of itself. `then` is the exit code and a word of the same command given again; `finish` what is
    added to get the whole result.
    """

    fault: Callable[[Path], AbstractContextManager[Any]]
    code: int
    says: tuple[str, ...] = ()
    status: str
    failed: tuple[int, ...] = ()
    reason: str = ""
    then: tuple[int, str]
    finish: tuple[str, ...] = ()


def shard_of(folder: Path, plane: int = BAD) -> Path:
    return folder / "v.zarr" / "c" / str(plane) / "0" / "0"


def replaced(change: Callable[[bytes], bytes]) -> Callable[[Path], AbstractContextManager[Any]]:
    """Return a fault that changes a shard's bytes, and puts them back."""

    @contextmanager
    def fault(folder: Path) -> Any:
        shard = shard_of(folder)
        whole = shard.read_bytes()
        shard.write_bytes(change(whole))
        yield
        shard.write_bytes(whole)

    return fault


def overwritten(data: bytes) -> bytes:
    """Return a shard with another first chunk, as long as it was: its index is whole."""
    return b"\xff" * 200 + data[200:]


def files(pattern: str, **options: Any) -> Callable[[Path], AbstractContextManager[Any]]:
    return lambda _folder: failing(pattern, **options)


WRITTEN = rf"out\.zarr/labels/segmentation/0/c/{BAD}/"
READ = rf"v\.zarr/c/{BAD}/0/0$"
PROMISES = {
    "a corrupt chunk": Promise(
        fault=replaced(overwritten),
        code=6,
        says=(PARTIAL, f"  block {BAD}: ReadError: the window z 2:3, y 0:100, x 0:90 cannot be read", MEND),
        status="partial",
        failed=(BAD,),
        then=(3, EXISTS),
        finish=("--retry-failed",),
    ),
    "an empty shard": Promise(
        fault=replaced(lambda _: b""),
        code=6,
        says=(PARTIAL, MEND),
        status="partial",
        failed=(BAD,),
        reason="is cut short: 0 bytes came",
        then=(3, EXISTS),
        finish=("--retry-failed",),
    ),
    "a shard cut short": Promise(
        fault=replaced(lambda data: data[: len(data) // 2]),
        code=6,
        says=(PARTIAL, "ReadError: the window z 2:3", MEND),
        status="partial",
        failed=(BAD,),
        then=(3, EXISTS),
        finish=("--retry-failed",),
    ),
    "a read that fails twice, then works": Promise(
        fault=files(READ, times=2),
        code=0,
        status="complete",
        then=(3, "exists"),
    ),
    "a read that fails": Promise(
        fault=files(READ),
        code=6,
        says=(PARTIAL, MEND),
        status="partial",
        failed=(BAD,),
        reason=f"OSError: [Errno {errno.EIO}] {EIO}",
        then=(3, EXISTS),
        finish=("--retry-failed",),
    ),
    "a write that fails": Promise(
        fault=files(WRITTEN, writing=True),
        code=6,
        says=(PARTIAL, f"  block {BAD}: OSError: [Errno {errno.EIO}] {EIO}", MEND),
        status="partial",
        failed=(BAD,),
        then=(3, EXISTS),
        finish=("--retry-failed",),
    ),
    "a write that fails when a part of the block is written": Promise(
        fault=files(rf"out\.zarr/0/c/1/{BAD}/", writing=True),
        code=6,
        says=(PARTIAL, f"  block {BAD}: OSError: [Errno {errno.EIO}] {EIO}", MEND),
        status="partial",
        failed=(BAD,),
        then=(3, EXISTS),
        finish=("--retry-failed",),
    ),
    "a write of the output's own metadata that fails": Promise(
        fault=files(r"out\.zarr/zarr\.[0-9a-f]+\.partial", writing=True, spared=2),
        code=3,
        says=(f"error[output-path]: the output {{output}} cannot be written: {EIO}",),
        status="running",
        then=(0, ""),
    ),
    "a full disk": Promise(
        fault=files(WRITTEN, writing=True, code=errno.ENOSPC),
        code=3,
        says=(
            f"error[no-space]: the disk is full: {os.strerror(errno.ENOSPC)}",
            "fix: free space, then give the same command again",
        ),
        status="running",
        then=(0, ""),
    ),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volume: a shard a plane, each of four chunks; not to be changed."""
    folder = tmp_path_factory.mktemp("source")
    array = zarr.create_array(
        folder / "v.zarr",
        shape=(PLANES, 100, 90),
        shards=(1, 128, 128),
        chunks=(1, 64, 64),
        dtype="uint8",
        dimension_names=["z", "y", "x"],
    )
    array[...] = make_pixels((PLANES, 100, 90))
    return folder


@pytest.fixture(scope="module")
def clean(source: Path, tiny_model: Path) -> dict[str, np.ndarray]:
    """What a run without faults gives."""
    segment(source / "v.zarr", model=tiny_model, output=source / "clean.zarr", threads=1)
    return read_arrays(source / "clean.zarr")


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A copy of the volume, to be damaged."""
    for file in (source / "v.zarr").rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return tmp_path


def require_clean(output: Path, clean: dict[str, np.ndarray]) -> None:
    came = read_arrays(output)
    assert came.keys() == clean.keys()
    assert all(came[name].tobytes() == clean[name].tobytes() for name in clean)
    assert read_provenance(output)["status"] == "complete"


@pytest.mark.parametrize("name", PROMISES)
def test_what_was_promised(name: str, folder: Path, clean: dict[str, np.ndarray], cli: Cli, tiny_model: Path) -> None:
    promise, output = PROMISES[name], folder / "out.zarr"
    command = ("segment", "v.zarr", "-m", tiny_model, "-o", "out.zarr", "--threads", "1", "--device", "cpu")
    with promise.fault(folder):
        first = cli(*command)
    assert first.code == promise.code, first
    for words in promise.says:
        assert words.format(output=output) in first.err
    said = read_provenance(output)
    assert said["status"] == promise.status
    if promise.status != "running":
        assert tuple(failed["block"] for failed in said["failed_blocks"]) == promise.failed
        assert all(promise.reason in failed["reason"] for failed in said["failed_blocks"])
        require_holes(output, clean, promise.failed)
    before = snapshot(output)
    second = cli(*command)
    code, words = promise.then
    assert second.code == code, second
    assert words in second.err
    if code == 0:
        require_clean(output, clean)
        return
    assert snapshot(output) == before
    if promise.finish:
        assert cli(*command, *promise.finish).code == 0
    require_clean(output, clean)


def test_the_page_has_each_promise() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    shown = {row[0].removeprefix("| "): row[2] for row in rows}
    assert PROMISES.keys() <= shown.keys()
    assert all(shown[name] == str(promise.code) for name, promise in PROMISES.items())


def require_holes(output: Path, clean: dict[str, np.ndarray], failed: tuple[int, ...]) -> None:
    """Failed planes are 0, and no pixel of the others is touched."""
    for name, array in read_arrays(output).items():
        planes, wanted = (np.moveaxis(a, -3, 0) for a in (array, clean[name]))
        for z in range(PLANES):
            assert np.array_equal(planes[z], np.zeros_like(wanted[z]) if z in failed else wanted[z]), (name, z)


def test_a_missing_shard_is_no_fault(folder: Path, clean: dict[str, np.ndarray], cli: Cli, tiny_model: Path) -> None:
    """Zarr defines that it reads as the fill value, and so does docs/inputs.md."""
    shard_of(folder).unlink()
    assert cli("segment", "v.zarr", "-m", tiny_model, "-o", "out.zarr", "--device", "cpu").code == 0
    pixels = make_pixels((PLANES, 100, 90))
    pixels[BAD] = 0
    zarr.create_array(folder / "filled.zarr", data=pixels, chunks=(1, 64, 64), dimension_names=["z", "y", "x"])
    segment(folder / "filled.zarr", model=tiny_model, output=folder / "filled.out.zarr")
    require_clean(folder / "out.zarr", read_arrays(folder / "filled.out.zarr"))
    assert not np.array_equal(read_arrays(folder / "out.zarr")["0"], clean["0"])


class FailingEngine:
    """onnxruntime, until its third tile."""

    def __init__(self, artifact: Artifact) -> None:
        self._engine = OnnxruntimeCpuEngine(artifact.data, precision=artifact.card.precision, threads=1)
        self._tiles = 0

    def open(self) -> None:
        self._engine.open()

    def infer(self, batch: Batch) -> Batch:
        self._tiles += len(batch)
        if self._tiles == 3:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return self._engine.infer(batch)

    def close(self) -> None:
        self._engine.close()

    def describe(self) -> EngineDescription:
        return self._engine.describe()


def test_an_engine_that_fails_on_one_tile(folder: Path, clean: dict[str, np.ndarray], tiny_model: Path) -> None:
    options: dict[str, Any] = {"model": tiny_model, "output": folder / "out.zarr", "threads": 1}

    def factory(artifact: Artifact) -> Engine:
        return FailingEngine(artifact)

    with pytest.raises(PartialResultError, match=f"1 of {PLANES} blocks failed") as caught:
        segment(folder / "v.zarr", engine_factory=factory, **options)
    assert "RuntimeError: CUDA error: an illegal memory access" in str(caught.value)
    said = read_provenance(folder / "out.zarr")
    assert said["status"] == "partial"
    require_holes(folder / "out.zarr", clean, tuple(failed["block"] for failed in said["failed_blocks"]))
    segment(folder / "v.zarr", retry_failed=True, engine="onnxruntime-cpu", **options)
    require_clean(folder / "out.zarr", clean)


def stop_after(count: int) -> Callable[[], bool]:
    asked = iter(range(10**9))
    return lambda: next(asked) >= count


@pytest.fixture
def begun(folder: Path, tiny_model: Path) -> Path:
    """An output of which some blocks are done."""
    with pytest.raises(InterruptedRunError):
        segment(
            folder / "v.zarr",
            model=tiny_model,
            output=folder / "out.zarr",
            threads=1,
            device="cpu",
            should_stop=stop_after(2),
        )
    return folder / "out.zarr"


@pytest.mark.parametrize("change", ["model", "parameter"])
def test_a_changed_run_does_not_go_on(
    change: str, begun: Path, clean: dict[str, np.ndarray], cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    other = edit_card(tiny_model, tmp_path / "other.onnx", lambda card: card.update(description="another"))
    command = ["segment", "v.zarr", "-m", tiny_model, "-o", "out.zarr", "--threads", "1", "--device", "cpu"]
    changed = [other if part == tiny_model else part for part in command] if change == "model" else [*command, "--tta"]
    before = snapshot(begun)
    refused = cli(*changed)
    assert refused.code == 3
    assert "error[journal]" in refused.err
    assert ("model" if change == "model" else "parameters.tta: begun with false, now true") in refused.err
    assert snapshot(begun) == before
    assert cli(*command).code == 0
    require_clean(begun, clean)


def test_two_runs_on_one_output(begun: Path, clean: dict[str, np.ndarray], cli: Cli, tiny_model: Path) -> None:
    """The second is refused while the first runs, whichever it is; the first is not disturbed."""
    command = ("segment", "v.zarr", "-m", tiny_model, "-o", "out.zarr", "--threads", "1", "--device", "cpu")
    refused: list[Outcome] = []

    def run_another(_progress: object) -> None:
        if not refused:
            refused.extend([cli(*command), cli(*command, "--overwrite")])

    segment(begun.parent / "v.zarr", model=tiny_model, output=begun, threads=1, device="cpu", progress=run_another)
    assert [outcome.code for outcome in refused] == [3, 3]
    for outcome in refused:
        assert "error[output-busy]: another run is writing to " in outcome.err
        assert "fix: wait until it ends, or choose another --output" in outcome.err
    require_clean(begun, clean)


CLOCK = """
keep_setting_back()
from unet_deploy.cli import main
sys.argv[0] = "unet-deploy"
sys.exit(main())
"""


def test_a_clock_that_goes_back(begun: Path, clean: dict[str, np.ndarray], tiny_model: Path) -> None:
    """While the run goes on, again and again; and since it began, so the files of its first part are from tomorrow."""
    tomorrow = time.time() + 86400
    for file in begun.rglob("*"):
        os.utime(file, (tomorrow, tomorrow))
    command = ["segment", "v.zarr", "-m", str(tiny_model), "-o", "out.zarr", "--threads", "1", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", SET_BACK + CLOCK, *command, "--json"],
        cwd=begun.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    require_clean(begun, clean)
    said = read_provenance(begun)
    assert 0 <= said["seconds"]["total"] < 120
    assert all(value >= 0 for value in said["seconds"].values())
