"""A GPU comes before the CPU where there is one; where there is none, nothing of it is imported, and it is said why."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest

from unet_deploy.cli._report import describe_engine
from unet_deploy.errors import DeviceError, MissingDependencyError, TestTensorError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.base import Engine, EngineDescription, EngineOptions, Verdict
from unet_deploy.runtime.engines.choice import CUDA_ORDER, NO_GPU, EngineKind, choose, on_gpu
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.machine import Gpu, Gpus

PACKAGES = ("no-such-package", "numpy")
NONE = Gpus(found=(), note="no NVIDIA driver: libcuda.so.1 is not there")
ONE = Gpus(
    found=(Gpu(name="NVIDIA H200", driver="580", memory_bytes=None, compute_capability="9.0"),), note="by libcuda.so.1"
)
NOT_INSTALLED = MissingDependencyError.of_extra("onnxruntime-gpu", extra="gpu", purpose="the engine onnxruntime-cuda")


class Opening(FakeEngine):
    def __init__(self, artifact: Artifact, options: EngineOptions, error: Exception | None) -> None:
        super().__init__(artifact.card.network)
        self.options, self.error = options, error

    def open(self) -> None:
        if self.error is not None:
            raise self.error


def kind(gpus: Gpus | None = None, error: Exception | None = None) -> EngineKind:
    def make(artifact: Artifact, options: EngineOptions) -> Engine:
        return Opening(artifact, options, error)

    if gpus is None:
        return EngineKind(name="fake", device="cpu", make=make)
    return EngineKind(name="fake", device="cuda", make=on_gpu(make, packages=PACKAGES, extra="gpu", ask=lambda: gpus))


def test_a_gpu_is_taken_before_the_cpu(fake_artifact: Any) -> None:
    engine = choose([kind(ONE), kind()], fake_artifact())
    assert [(v.verdict, v.is_taken, v.is_tried) for v in engine.choice] == [
        (f"first of those that work ({CUDA_ORDER.why})", True, True),
        ("not tried: fake comes first", False, False),
    ]


def test_without_a_gpu_it_is_the_cpu_and_says_why(fake_artifact: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="unet_deploy"):
        engine = choose([kind(NONE), kind(NONE), kind()], fake_artifact())
    assert engine.choice[0].verdict == f"{NO_GPU}; no NVIDIA driver: libcuda.so.1 is not there"
    assert engine.choice[2].is_taken
    assert not caplog.records  # most machines have none


def test_a_gpu_that_does_not_work_is_warned_of(fake_artifact: Any, caplog: pytest.LogCaptureFixture) -> None:
    wrong = TestTensorError("it computes something else", "by 7", fix="report this")
    with caplog.at_level(logging.WARNING, logger="unet_deploy"):
        engine = choose([kind(ONE, wrong), kind()], fake_artifact())
    assert engine.choice[1].is_taken
    assert "passed over: it computes something else" in caplog.text


@pytest.mark.parametrize("count", [1, 3])
def test_a_gpu_asked_for_and_not_there_is_an_error(fake_artifact: Any, count: int) -> None:
    with pytest.raises(
        DeviceError,
        match=r"^no NVIDIA GPU can be used here\n  no NVIDIA driver: libcuda\.so\.1 is not there\n"
        r"  numpy [\d.]+ is installed\n  fix: --device cpu; for the GPU, install its driver",
    ) as caught:
        choose([kind(NONE)] * count, fake_artifact())
    assert caught.value.exit_code == 5


def test_a_package_that_is_missing_as_well_is_told_at_once(fake_artifact: Any) -> None:
    make = on_gpu(kind().make, packages=("no-such-package",), extra="gpu", ask=lambda: NONE)
    with pytest.raises(
        DeviceError, match=r"\n  no-such-package is not installed either: pip install 'unet-deploy\[gpu\]'"
    ):
        choose([EngineKind(name="fake", device="cuda", make=make)], fake_artifact())


def test_a_gpu_of_another_number(fake_artifact: Any) -> None:
    with pytest.raises(
        DeviceError,
        match=r"^device cuda:2 was asked for, and there is none of that number\n"
        r"  there: cuda:0 NVIDIA H200; GPUs that CUDA_VISIBLE_DEVICES hides do not count\n  fix: --device cuda:0$",
    ):
        choose([kind(ONE)], fake_artifact(), EngineOptions(device_index=2))


def test_a_missing_package_tells_more_than_a_missing_gpu(fake_artifact: Any) -> None:
    with pytest.raises(
        MissingDependencyError, match=r"\n  fake, fake: no NVIDIA GPU can be used here; no NVIDIA driver"
    ):
        choose([kind(NONE), kind(NONE), kind(error=NOT_INSTALLED)], fake_artifact())


def test_with_a_gpu_the_command_that_installs_it_is_said(fake_artifact: Any) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        choose([kind(ONE, NOT_INSTALLED), kind(ONE, NOT_INSTALLED)], fake_artifact())
    assert caught.value.fix == "pip install 'unet-deploy[gpu]'"


def test_a_driver_that_is_not_there_costs_no_import() -> None:
    code = (
        "import sys\n"
        "from unet_deploy.runtime import load_bundled_artifact\n"
        "from unet_deploy.runtime.engines.choice import ENGINES, NO_GPU, on_gpu\n"
        "from unet_deploy.runtime.engines.base import EngineOptions\n"
        "from unet_deploy.runtime.machine import ask_driver\n"
        "from unet_deploy.errors import DeviceError\n"
        "if ask_driver().found: sys.exit()\n"
        "for kind in ENGINES:\n"
        "    if kind.device == 'cuda':\n"
        "        try: kind.make(None, EngineOptions())\n"
        "        except DeviceError as error: assert error.headline == NO_GPU\n"
        "        else: sys.exit('made')\n"
        "heavy = {'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'cuda'} & {*sys.modules}\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_people_read_each_reason_once() -> None:
    said = EngineDescription(
        engine="openvino",
        device="cpu",
        precision="fp32",
        provider="CPU",
        versions={"openvino": "2026.4.1"},
        choice=(
            Verdict(engine="onnxruntime-cuda", verdict="no GPU"),
            Verdict(engine="tensorrt", verdict="no GPU"),
            Verdict(engine="x", verdict="not installed (pip install x)"),
            Verdict(engine="openvino", verdict="first of those that work (it is fast)", is_taken=True),
            Verdict(engine="onnxruntime-cpu", verdict="not tried: openvino comes first", is_tried=False),
        ),
    )
    assert describe_engine(said) == [
        ("engine", "openvino 2026.4.1 on cpu, fp32"),
        ("chosen", "first of those that work (it is fast)"),
        ("not used", "onnxruntime-cuda, tensorrt: no GPU"),
        ("not used", "x: not installed (pip install x)"),
    ]
    assert len(said.to_object()["choice"]) == 5
