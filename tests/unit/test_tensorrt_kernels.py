"""What TensorRT-RTX compiled is kept beside the plan, and is read only if it can be relied on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ArtifactFactory
from tests.cuda_fake import FakeCudart
from tests.tensorrt_runtime_fake import FakeTensorrt, plan_maker
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.base import EngineOptions
from unet_deploy.runtime.engines.tensorrt import TensorrtEngine, profiles_of
from unet_deploy.runtime.engines.tensorrt_cudart import read_device_facts
from unet_deploy.runtime.engines.tensorrt_kernels import MAX_BYTES, KernelFile

SHAPE = (1, 1, 44, 44)


@pytest.fixture
def artifact(fake_artifact: ArtifactFactory) -> Artifact:
    return fake_artifact(depth=2)


def run(artifact: Artifact, folder: Path, *, driver: int = 13000, shape: tuple[int, ...] = SHAPE) -> bytes:
    """Run one batch, and return the kernels that TensorRT-RTX was given at the start."""
    rt = FakeCudart(driver=driver)
    trt = FakeTensorrt(rt, is_rtx=True)
    engine = TensorrtEngine(
        artifact,
        EngineOptions(batch_shape=(1, 1, 60, 60)),
        flavour="tensorrt-rtx",
        get_plan=plan_maker(trt, folder=folder),
        modules=(trt, rt),
    )
    engine.open()
    engine.infer(np.zeros(shape, np.float32))
    engine.close()
    assert rt.leaks() == {}
    return trt.kernels


def only_file(folder: Path) -> Path:
    (file,) = folder.glob("*.kernels")
    return file


def test_the_next_run_is_given_what_this_one_compiled(
    artifact: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(artifact, tmp_path) == b""
    first = only_file(tmp_path)
    kept = run(artifact, tmp_path)
    assert kept.startswith(b"kernels:")
    assert kept in first.read_bytes()
    before = first.stat().st_mtime_ns
    assert run(artifact, tmp_path) == kept
    assert only_file(tmp_path).stat().st_mtime_ns == before  # nothing new, nothing written
    run(artifact, tmp_path, shape=(1, 1, 60, 44))
    assert run(artifact, tmp_path) == kept + b";{'image': (1, 1, 60, 44)}"
    assert caplog.text == ""
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".engine", ".kernels"]


def test_another_driver_has_a_file_of_its_own(artifact: Artifact, tmp_path: Path) -> None:
    run(artifact, tmp_path)
    assert run(artifact, tmp_path, driver=12080) == b""
    assert len(list(tmp_path.glob("*.kernels"))) == 2
    assert run(artifact, tmp_path)


@pytest.mark.parametrize("damage", ["a flipped bit", "truncated", "empty", "of another GPU", "grown"])
def test_a_damaged_file_is_not_used(
    artifact: Artifact, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(artifact, tmp_path)
    file = only_file(tmp_path)
    good = file.read_bytes()
    if damage == "of another GPU":
        run(artifact, tmp_path, driver=12080)
        (other,) = set(tmp_path.glob("*.kernels")) - {file}
        bad = other.read_bytes()
        other.unlink()
    else:
        flipped = good[:-1] + bytes([good[-1] ^ 1])
        bad = {"a flipped bit": flipped, "truncated": good[:-1], "empty": b"", "grown": good + b";"}[damage]
    file.write_bytes(bad)
    assert run(artifact, tmp_path) == b""
    assert f"{file} is not used, the kernels are compiled again: it is damaged" in caplog.text
    assert file.read_bytes() == good  # and it is mended


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such rights")
@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ("others write", "others have access to it: mode 666"),
        ("link", "it is a link, and a link can be turned to another file"),
        ("hard link", "it has 2 names (hard links)"),
    ],
)
def test_a_file_that_others_can_change_is_not_used(
    artifact: Artifact, tmp_path: Path, attack: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(artifact, tmp_path)
    file = only_file(tmp_path)
    if attack == "others write":
        file.chmod(0o666)
    elif attack == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / "elsewhere").hardlink_to(file)
    assert run(artifact, tmp_path) == b""
    assert "is not used, the kernels are compiled again: " + said in caplog.text


def test_what_tensorrt_does_not_take_is_compiled_again(
    artifact: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(artifact, tmp_path)
    file_of(artifact, tmp_path).write(b"of a version that it does not read")
    run(artifact, tmp_path)
    assert "the kernels are compiled again: TensorRT-RTX does not take it" in caplog.text
    caplog.clear()
    assert run(artifact, tmp_path).startswith(b"kernels:")
    assert caplog.text == ""


def file_of(artifact: Artifact, folder: Path) -> KernelFile:
    """Return the very file that the engine uses."""
    rt = FakeCudart()
    facts = read_device_facts(rt, 0)
    get_plan = plan_maker(FakeTensorrt(rt, is_rtx=True), folder=folder)
    plan = get_plan(artifact, flavour="tensorrt-rtx", profiles=profiles_of(artifact, (1, 1, 60, 60)), device=facts)
    file = KernelFile.of_plan(plan, facts)
    assert file is not None
    return file


def test_what_cannot_be_written_costs_only_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = KernelFile(tmp_path / "gone" / "x.kernels", key="k")
    assert file.read() is None
    file.write(b"kernels")
    assert "x.kernels cannot be written, the next run compiles again: " in caplog.text


def test_too_much_is_neither_written_nor_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.kernels"
    KernelFile(path, key="k").write(bytes(MAX_BYTES))
    KernelFile(path, key="k").write(b"")
    assert not path.exists()
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert KernelFile(path, key="k").read() is None
    assert "at most 268435456 were expected" in caplog.text
