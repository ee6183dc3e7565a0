"""An engine is measured in a process of its own, and whatever it does there is an answer."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import pytest

from tests.failing_engines import HELD_BYTES, failing, holding
from tests.golden.artifact_v1.make import HERE
from unet_deploy.errors import DeviceError, DeviceMemoryError, TileNotLegalError, UnetDeployError
from unet_deploy.runtime._measuring_child import held_bytes, peak_bytes
from unet_deploy.runtime.artifact import load_artifact
from unet_deploy.runtime.measuring import EngineProbe, measure_engine

MODEL = HERE / "tiny.onnx"
"""Made before: to train and export one takes longer than all of these tests."""
SMALL, LARGE = (52, 52), (60, 76)
needs_onnxruntime = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="the extra 'cpu' is not installed"
)
needs_sigkill = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to be killed by")

SCRIPT = """
import sys
from unet_deploy.runtime import load_artifact
from unet_deploy.runtime.measuring import measure_engine
print("once")
costs = measure_engine(load_artifact(sys.argv[1]), engine="onnxruntime-cpu", threads=1, tiles=[(52, 52)])
print(len(costs.samples))
"""


@pytest.fixture(autouse=True)
def tests_in_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the other process find what makes the engines of these tests."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


@needs_onnxruntime
def test_tiles_are_measured_in_growing_size() -> None:
    artifact, tiles = load_artifact(MODEL), [(204, 300), SMALL, (204, 300)]
    costs = measure_engine(artifact, engine="onnxruntime-cpu", device="cpu", threads=1, tiles=tiles, batch=2)
    assert [(s.tile_y, s.tile_x, s.batch) for s in costs.samples] == [(*SMALL, 2), (204, 300, 2)]
    assert (costs.engine, costs.device, costs.precision, costs.threads) == ("onnxruntime-cpu", "cpu", "fp32", 1)
    assert list(costs.versions) == ["onnxruntime"]
    small, large = costs.samples
    assert 0 < small.seconds < large.seconds
    if peak_bytes():
        assert 10**6 < small.memory_bytes <= large.memory_bytes < 10**9


@needs_onnxruntime
def test_a_script_without_a_guard_will_do(tmp_path: Path) -> None:
    """Where a process is spawned by multiprocessing, such a script begins anew in it."""
    (tmp_path / "script.py").write_text(SCRIPT)
    programs = [
        subprocess.Popen(
            [sys.executable, what, str(MODEL)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for what in ("script.py", "-")
    ]
    try:
        said = [one.communicate(text, timeout=60) for one, text in zip(programs, ("", SCRIPT), strict=True)]
    finally:
        for one in programs:
            one.kill()
    assert said == [("once\n1\n", "")] * 2


def test_what_does_not_fit_into_the_time_is_left_out(fake_artifact: Any) -> None:
    costs = measure_engine(
        fake_artifact(), engine="fake", tiles=[SMALL, LARGE], seconds_limit=0.0, engine_factory=failing("never")
    )
    assert [(s.tile_y, s.tile_x) for s in costs.samples] == [SMALL]


@pytest.mark.parametrize("how", ["exits", pytest.param("is killed", marks=needs_sigkill), "no memory"])
def test_what_was_measured_before_the_end_is_kept(how: str, fake_artifact: Any) -> None:
    costs = measure_engine(fake_artifact(), engine="fake", tiles=[SMALL, LARGE], engine_factory=failing(how))
    assert [(s.tile_y, s.tile_x) for s in costs.samples] == [SMALL]


@pytest.mark.parametrize(
    ("how", "kind", "says", "fix"),
    [
        (
            "exits",
            DeviceError,
            r"^the process of fake ended on a tile of 52 x 52 px: exit code 7\n  it said: Fatal: no such instruction\n",
            "use another engine, or install fake again: a segmentation would end so too",
        ),
        pytest.param(
            "is killed",
            DeviceMemoryError,
            r"^fake was killed by the system on a tile of 52 x 52 px\n  a system does that to a process",
            "free memory, or measure smaller tiles",
            marks=needs_sigkill,
        ),
        (
            "no memory",
            DeviceMemoryError,
            r"^fake ran out of memory on cpu\n  MemoryError: 8 GB were wanted\n",
            "a smaller tile (--tile) or batch (--batch), or another device (--device cpu)",
        ),
        (
            "hangs when opened",
            DeviceError,
            r"^fake did not answer in time when it was opened, and was stopped\n",
            "give it more time (--seconds), or measure smaller tiles",
        ),
        ("no driver", DeviceError, r"^the driver is too old\n  driver 1.0, 2.0 was expected\n", "update it"),
    ],
)
def test_nothing_at_all_is_an_error(
    how: str, kind: type[UnetDeployError], says: str, fix: str, fake_artifact: Any
) -> None:
    with pytest.raises(kind, match=says) as caught:
        measure_engine(
            fake_artifact(),
            engine="fake",
            tiles=[SMALL],
            seconds_limit=1.0,
            patience_s=0.2 if how == "hangs when opened" else 30.0,
            engine_factory=failing(how, is_at_once=True),
        )
    assert caught.value.fix == fix


def test_a_tile_that_takes_for_ever_is_stopped(fake_artifact: Any) -> None:
    with EngineProbe(
        fake_artifact(), engine="fake", largest=SMALL, engine_factory=failing("hangs", is_at_once=True)
    ) as probe:
        probe.patience_s = 0.1  # now that it is open, however busy the machine is
        with pytest.raises(
            DeviceError, match=r"^fake did not answer in time on a tile of 52 x 52 px, and was stopped\n"
        ) as caught:
            probe.measure(SMALL, seconds=0.1)
    assert caught.value.fix == "give it more time (--seconds), or measure smaller tiles"


def test_each_tile_on_a_cpu_has_an_engine_of_its_own(fake_artifact: Any, tmp_path: Path) -> None:
    """Or the memory of a tile would be that of all before it as well."""
    log, tiles = tmp_path / "log", [SMALL, LARGE, (76, 76)]
    costs = measure_engine(fake_artifact(), engine="fake", tiles=tiles, engine_factory=holding(log))
    assert log.read_text() == "opened\n" * len(tiles)
    if peak_bytes():
        for sample in costs.samples:
            assert HELD_BYTES < sample.memory_bytes < 1.5 * HELD_BYTES


def test_one_engine_on_a_gpu_has_all_tiles(fake_artifact: Any, tmp_path: Path) -> None:
    """TensorRT may build for minutes when it is opened."""
    log, factory = tmp_path / "log", holding(tmp_path / "log", device="cuda:0")
    costs = measure_engine(fake_artifact(), engine="fake", tiles=[SMALL, LARGE], engine_factory=factory)
    assert log.read_text() == "opened\n"
    assert [sample.memory_bytes for sample in costs.samples] == [0, 0]


def test_a_tile_that_is_none_is_refused(fake_artifact: Any) -> None:
    with pytest.raises(TileNotLegalError, match=r"^tile side 250 on axis x "):
        measure_engine(fake_artifact(), engine="fake", tiles=[(252, 250)], engine_factory=failing("never"))


@pytest.mark.parametrize("case", ["frozen", "host"])
def test_a_program_that_holds_python_is_not_started_again(
    case: str, fake_artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = spawn.get_executable()
    if case == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        spawn.set_executable("/opt/Microscope.exe")
    try:
        with pytest.raises(
            DeviceError,
            match=r"^fake cannot be measured: there is no Python interpreter to do it in\n  this program is ",
        ) as caught:
            measure_engine(fake_artifact(), engine="fake", tiles=[SMALL], engine_factory=failing("never"))
    finally:
        spawn.set_executable(own)
    assert "multiprocessing.set_executable" in caught.value.fix


def test_neither_the_current_folder_nor_a_greeting_matters(
    fake_artifact: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said at the start is no answer, and no module that lies beside the data is run."""
    for folder in ("site", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("print('welcome')\nprint(1)\n")
    (tmp_path / "data" / "json.py").write_text("raise SystemExit('of a folder of data')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path / "data")
    costs = measure_engine(fake_artifact(), engine="fake", tiles=[SMALL], engine_factory=failing("never"))
    assert len(costs.samples) == 1


def test_a_process_that_cannot_be_started(fake_artifact: Any, tmp_path: Path) -> None:
    own = spawn.get_executable()
    spawn.set_executable(str(tmp_path / "python3"))
    try:
        with pytest.raises(
            DeviceError,
            match=r"^fake cannot be measured: no process can be started to do it in\n  FileNotFoundError: ",
        ) as caught:
            measure_engine(fake_artifact(), engine="fake", tiles=[SMALL], engine_factory=failing("never"))
    finally:
        spawn.set_executable(own)
    assert "write to the folder for temporary files" in caught.value.fix


def test_who_is_asked_to_stop_measures_no_further_tile(fake_artifact: Any) -> None:
    costs = measure_engine(
        fake_artifact(), engine="fake", tiles=[SMALL, LARGE], engine_factory=failing("never"), should_stop=lambda: True
    )
    assert [(s.tile_y, s.tile_x) for s in costs.samples] == [SMALL]


def test_raw_pixels_are_given_where_they_are_taken(fake_artifact: Any) -> None:
    costs = measure_engine(
        fake_artifact(in_channels=2), engine="fake", tiles=[SMALL], engine_factory=failing("raw pixels")
    )
    assert costs.samples[0].seconds > 0


def test_a_closed_probe_leaves_no_process(fake_artifact: Any) -> None:
    probe = EngineProbe(fake_artifact(), engine="fake", largest=SMALL, engine_factory=failing("never"))
    assert probe.foretell(LARGE) == 0.0
    probe.measure(SMALL, seconds=0.0)
    assert probe.foretell(LARGE) > 2 * probe.samples[0].seconds
    assert len(probe.costs().samples) == 1
    probe.close()
    probe.close()
    assert probe.is_closed


@pytest.mark.parametrize(
    ("engine", "device", "is_opened_for_each"), [("openvino", "cpu", True), ("tensorrt", "cuda", False)]
)
def test_an_engine_of_the_cpu_is_opened_for_each_tile_alone(
    fake_artifact: Any, monkeypatch: pytest.MonkeyPatch, *, engine: str, device: str, is_opened_for_each: bool
) -> None:
    """Opened for the largest, it would hold that one too, whatever it runs."""
    asked: list[bytes] = []

    def answer(_: EngineProbe, data: bytes, *__: Any, **___: Any) -> dict[str, Any]:
        asked.append(data)
        if len(asked) > 1:
            return {"seconds": 0.25, "memory_bytes": 1}
        opened = {"engine": engine, "device": device, "precision": "fp32", "versions": {}}
        return {"opened": opened, "seconds": 8.0}

    monkeypatch.setattr(EngineProbe, "_ask", answer)
    with EngineProbe(fake_artifact(), engine=engine, largest=LARGE) as probe:
        probe.measure(SMALL, seconds=0.0)
        request = pickle.loads(asked[0].partition(b"\n")[2])
        assert request.batch_shape == (None if is_opened_for_each else (1, 1, *LARGE))
        assert (probe.foretell(SMALL) > 8.0) == is_opened_for_each


@pytest.mark.skipif(sys.platform not in ("linux", "win32"), reason="only these tell what a process holds now")
def test_memory_is_told_by_the_system() -> None:
    before = peak_bytes()
    held = bytearray(64 * 2**20)
    held[:: 2**10] = b"x" * 2**16
    assert peak_bytes() >= held_bytes() > 64 * 2**20
    assert peak_bytes() >= before
