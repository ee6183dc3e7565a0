"""What was measured is kept for this machine, this engine and these sizes; a file that is anything else is no file."""

from __future__ import annotations

import errno
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.failing_files import failing
from unet_deploy.card import Network
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_costs import EngineCosts, TileSample
from unet_deploy.runtime.kept_costs import Forgotten, count_costs, forget_costs, has_costs, keep_costs, read_costs
from unet_deploy.runtime.machine import Gpu, Gpus

SAMPLE = TileSample(tile_y=204, tile_x=300, batch=1, seconds=0.25, memory_bytes=10**6)
Maker = Callable[..., Artifact]

WRITER = """
import sys
from pathlib import Path
from dataclasses import replace
from tests.conftest import _fake_artifact
from tests.unit.test_kept_costs import make_costs, SAMPLE
from unet_deploy.runtime.kept_costs import keep_costs
for n in range(1, 16):
    samples = (replace(SAMPLE, seconds=float(n)),) * (20 * int(sys.argv[2]))
    assert keep_costs(_fake_artifact(), make_costs(samples=samples), folder=Path(sys.argv[1])) is not None
"""


def make_costs(**changes: Any) -> EngineCosts:
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    costs = EngineCosts(
        engine="onnxruntime-cpu",
        device="cpu",
        precision="fp32",
        threads=0,
        versions={"onnxruntime": "1.0"},
        samples=(SAMPLE,),
        measured="2026-11-21",
    )
    return replace(costs, **changes)


def gpus(name: str = "NVIDIA L4", driver: str = "for CUDA 13.0") -> Callable[[], Gpus]:
    gpu = Gpu(name=name, driver=driver, memory_bytes=2**34, compute_capability=None)
    return lambda: Gpus(found=(gpu, replace(gpu, name="another")), note="made up")


def no_gpus() -> Gpus:
    return Gpus(found=(), note="none")


def test_what_was_kept_is_read(fake_artifact: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    artifact, costs = fake_artifact(), make_costs()
    assert not has_costs(folder)
    assert read_costs(artifact, engine=costs.engine, folder=folder) is None
    assert not folder.exists()
    path = keep_costs(artifact, costs, folder=folder)
    assert path is not None
    assert path.parent == folder
    assert has_costs(folder)
    for device in ("auto", "cpu"):
        assert read_costs(artifact, engine=costs.engine, device=device, folder=folder) == costs
    later = make_costs(samples=(SAMPLE, SAMPLE), measured="2026-11-22")
    assert keep_costs(artifact, later, folder=folder) == path
    assert read_costs(artifact, engine=costs.engine, folder=folder) == later
    assert [file.name for file in folder.iterdir()] == [path.name]


def test_weights_do_not_matter(fake_artifact: Maker, tmp_path: Path) -> None:
    keep_costs(fake_artifact(mean=0.0), make_costs(), folder=tmp_path)
    assert read_costs(fake_artifact(mean=7.0), engine="onnxruntime-cpu", folder=tmp_path) == make_costs()


@pytest.mark.parametrize(
    "other",
    [{"engine": "openvino"}, {"engine": "nothing"}, {"threads": 2}, {"base_width": 2}, {"precision": "int8"}],
)
def test_anything_else_was_not_measured(other: dict[str, Any], fake_artifact: Maker, tmp_path: Path) -> None:
    keep_costs(fake_artifact(), make_costs(), folder=tmp_path)
    artifact = fake_artifact(base_width=other.get("base_width", 1))
    artifact = replace(artifact, card=replace(artifact.card, precision=other.get("precision", "fp32")))
    engine = other.get("engine", "onnxruntime-cpu")
    assert read_costs(artifact, engine=engine, threads=other.get("threads", 0), folder=tmp_path) is None


def test_costs_of_no_engine_of_ours_are_not_kept(fake_artifact: Maker, tmp_path: Path) -> None:
    assert keep_costs(fake_artifact(), make_costs(engine="fake"), folder=tmp_path) is None
    assert [*tmp_path.iterdir()] == []


def edit(path: Path, *keys: str, value: Any) -> None:
    """Change what stands under the keys of a JSON file."""
    found = json.loads(path.read_text())
    inner = found
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("key", "machine", "processor"), "another CPU"),
        (("key", "machine", "usable_cores"), 999),
        (("key", "versions", "onnxruntime"), "0.1"),
        (("key", "network", "depth"), 3),
        (("key",), None),
        (("format",), 0),
        (("costs", "engine"), "openvino"),
        (("costs", "samples"), []),
        (("costs", "samples", 0, "seconds"), 0),
        (("costs", "samples", 0, "seconds"), float("nan")),
        (("costs", "samples"), 7),
        (("costs",), None),
    ],
)
def test_a_file_of_something_else_is_none(
    keys: tuple[Any, ...], value: Any, fake_artifact: Maker, tmp_path: Path
) -> None:
    path = keep_costs(fake_artifact(), make_costs(), folder=tmp_path)
    assert path is not None
    edit(path, *keys, value=value)
    assert read_costs(fake_artifact(), engine="onnxruntime-cpu", folder=tmp_path) is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 10**5, b" " * (2**20 + 1)])
def test_a_damaged_file_is_none(data: bytes, fake_artifact: Maker, tmp_path: Path) -> None:
    path = keep_costs(fake_artifact(), make_costs(), folder=tmp_path)
    assert path is not None
    path.write_bytes(data)
    assert read_costs(fake_artifact(), engine="onnxruntime-cpu", folder=tmp_path) is None
    assert count_costs(tmp_path).count == 0
    assert keep_costs(fake_artifact(), make_costs(), folder=tmp_path) == path
    assert read_costs(fake_artifact(), engine="onnxruntime-cpu", folder=tmp_path) == make_costs()


def test_where_nothing_can_be_kept(fake_artifact: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    assert keep_costs(fake_artifact(), make_costs(), folder=tmp_path / "file") is None
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)
    if sys.platform != "win32":
        monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    assert read_costs(fake_artifact(), engine="onnxruntime-cpu") is None
    assert not has_costs()
    assert not has_costs(tmp_path / ("no such name" * 50))  # to look is an error already
    assert (count_costs().count, count_costs().last, forget_costs()) == (0, None, Forgotten(count=0))
    assert forget_costs(tmp_path / "file") == Forgotten(count=0)


def test_two_processes_may_keep_at_once(fake_artifact: Maker, tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(n)], cwd=Path(__file__).parents[2])
        for n in (1, 2)
    ]
    while any(writer.poll() is None for writer in writers):
        if any(tmp_path.glob("*.json")):
            assert read_costs(fake_artifact(), engine="onnxruntime-cpu", folder=tmp_path) is not None
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len([*tmp_path.iterdir()]) == 1


def test_a_gpu_is_known_by_its_name_and_driver(
    fake_artifact: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, folder = tmp_path / "packages", tmp_path / "costs"
    description = packages / "onnxruntime_gpu-1.0.dist-info"
    description.mkdir(parents=True)
    (description / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(packages)
    costs = make_costs(engine="onnxruntime-cuda", device="cuda:1")

    def read(device: str, ask: Callable[[], Gpus]) -> EngineCosts | None:
        return read_costs(fake_artifact(), engine="onnxruntime-cuda", device=device, folder=folder, ask=ask)

    assert keep_costs(fake_artifact(), costs, folder=folder, ask=no_gpus) is None
    assert keep_costs(fake_artifact(), costs, folder=folder, ask=gpus("first")) is not None
    assert read("cuda:1", gpus("first")) == costs
    assert read("cuda:1", gpus("also another in front")) == costs
    assert read("cuda", gpus("another")) == costs  # it stands first now
    for device, ask in (("cuda:0", gpus()), ("cuda:2", gpus()), ("cuda:1", gpus(driver="1.0")), ("auto", no_gpus)):
        assert read(device, ask) is None
    assert count_costs(folder, ask=gpus()).count == 1
    assert forget_costs(folder, ask=no_gpus).count == 0
    assert forget_costs(folder, ask=gpus()).count == 1


def test_machines_do_not_mix(fake_artifact: Maker, tmp_path: Path) -> None:
    """A home folder may serve several machines."""
    path = keep_costs(fake_artifact(), make_costs(measured="2026-01-01"), folder=tmp_path)
    assert path is not None
    edit(path, "key", "machine", "processor", value="another CPU")
    path.rename(tmp_path / "another.json")
    (tmp_path / "foreign.json").write_text("{}")
    keep_costs(fake_artifact(), make_costs(), folder=tmp_path)
    keep_costs(fake_artifact(base_width=2), make_costs(measured="2026-11-20"), folder=tmp_path)
    kept = count_costs(tmp_path)
    assert (kept.count, kept.last) == (2, "2026-11-21")
    (tmp_path / "folder.json").mkdir()
    assert forget_costs(tmp_path) == Forgotten(count=2)
    (tmp_path / "folder.json").rmdir()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["another.json", "foreign.json"]
    assert count_costs(tmp_path).count == 0


def test_versions_that_were_measured_before_are_forgotten_too(fake_artifact: Maker, tmp_path: Path) -> None:
    path = keep_costs(fake_artifact(), make_costs(), folder=tmp_path)
    assert path is not None
    edit(path, "key", "versions", "onnxruntime", value="0.1")
    assert count_costs(tmp_path).count == 1
    assert forget_costs(tmp_path).count == 1


def test_what_cannot_be_forgotten_is_told_with_the_reason(fake_artifact: Maker, tmp_path: Path) -> None:
    kept = [keep_costs(fake_artifact(base_width=n), make_costs(), folder=tmp_path) for n in (1, 2, 3)]
    first, second, third = (path for path in kept if path is not None)
    with (
        failing(re.escape(first.name), code=errno.EACCES, event="os.remove"),
        failing(re.escape(second.name), code=errno.EACCES),
    ):
        forgotten = forget_costs(tmp_path)
    assert forgotten.count == 1
    assert dict(forgotten.left) == {
        first: "it cannot be deleted: Permission denied",
        second: "it cannot be read, and may be of this machine: Permission denied",
    }
    assert first.exists()
    assert second.exists()
    assert not third.exists()
    with failing("", code=errno.EACCES, event="os.scandir"):
        assert forget_costs(tmp_path).left == ((tmp_path, "it cannot be looked into: Permission denied"),)
        assert count_costs(tmp_path).count == 0
    assert forget_costs(tmp_path) == Forgotten(count=2)


def test_what_another_process_forgets_is_forgotten(fake_artifact: Maker, tmp_path: Path) -> None:
    """It may be gone when it is to be read, or when it is to be deleted."""
    path = keep_costs(fake_artifact(), make_costs(), folder=tmp_path)
    assert path is not None
    with failing(re.escape(path.name), code=errno.ENOENT):
        assert forget_costs(tmp_path) == Forgotten(count=0)
    with failing(re.escape(path.name), code=errno.ENOENT, event="os.remove"):
        assert forget_costs(tmp_path).left == ()


def test_the_key_names_what_counts(fake_artifact: Maker, tmp_path: Path) -> None:
    path = keep_costs(fake_artifact(), make_costs(threads=3), folder=tmp_path)
    assert path is not None
    key = json.loads(path.read_text())["key"]
    assert key["machine"]["system"].startswith(platform.system())
    assert (key["engine"], key["precision"], key["threads"], key["device"]) == ("onnxruntime-cpu", "fp32", 3, "cpu")
    network = Network(depth=2, base_width=1, in_channels=1, classes=2)
    assert key["network"] == {
        "kind": "Network",
        "depth": network.depth,
        "base_width": 1,
        "in_channels": 1,
        "classes": 2,
    }
