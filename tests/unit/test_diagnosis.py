"""The doctor's facts: engines tried for real, installations that break each other, and nothing that names anyone."""

from __future__ import annotations

import dataclasses
import getpass
import json
import platform
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unet_deploy.card import TestTensor
from unet_deploy.cli.doctor import require_engine
from unet_deploy.errors import DeviceError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.diagnosis import Cleaner, Diagnosis, diagnose, onnxruntime_problems, read_torch, try_codecs
from unet_deploy.runtime.engines import CheckedEngine, Engine
from unet_deploy.runtime.engines.choice import EngineKind
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.machine import Gpu, parse_nvidia_smi, read_disks, read_gpus, read_memory, read_processor
from unet_deploy.runtime.survey import (
    ORIGINS,
    EngineStatus,
    describe_open_engine,
    first_line,
    install_command,
    installed_versions,
    survey_engines,
)

Artifacts = Callable[..., Artifact]
FAKE = EngineKind(name="fake", device="cpu", make=lambda artifact, threads: FakeEngine(artifact.card.network))


@pytest.fixture
def replayed(fake_artifact: Artifacts) -> Artifact:
    """An artifact with a test tensor, for the integer engine."""
    artifact = fake_artifact(depth=2)
    side = artifact.card.geometry.smallest_tile
    image = np.random.default_rng(0).integers(0, 256, (1, 1, side, side), dtype=np.uint8)
    tensor = TestTensor(image=image, logits=FakeEngine(artifact.card.network).infer(image.astype(np.float32)))
    return dataclasses.replace(artifact, card=dataclasses.replace(artifact.card, test_tensor=tensor))


def by_name(statuses: tuple[EngineStatus, ...]) -> dict[str, EngineStatus]:
    return {status.name: status for status in statuses}


# ---- engines


def test_an_engine_that_works(replayed: Artifact) -> None:
    status = by_name(survey_engines(replayed, kinds=(FAKE,)))["fake"]
    assert (status.works, status.device, status.difference, status.limit) == (True, "cpu", 0.0, 0.0)
    assert (status.reason, status.fix, status.is_wrong) == ("", "", False)
    assert status.seconds is not None
    assert json.loads(json.dumps(status.to_object()))["works"] is True


def test_an_engine_without_a_test_tensor(fake_artifact: Artifacts) -> None:
    artifact = fake_artifact()
    engine = CheckedEngine(FakeEngine(artifact.card.network), artifact.card).open()
    status = describe_open_engine(engine, artifact, installed={"fake": "1"})
    assert (status.works, status.difference, status.limit, status.seconds) == (True, None, None, None)


def test_an_engine_of_another_release(replayed: Artifact) -> None:
    statuses = survey_engines(replayed, kinds=(FAKE,))
    assert [status.name for status in statuses] == [*ORIGINS, "fake"]
    assert {status.reason for status in statuses[:-1]} == {"this release has no such engine"}


def test_an_engine_that_is_not_installed(replayed: Artifact) -> None:
    name = "onnxruntime-cuda"
    if installed_versions(ORIGINS[name].packages):
        pytest.skip("onnxruntime-gpu is installed here")
    kind = EngineKind(name=name, device="cuda", make=FAKE.make)
    status = by_name(survey_engines(replayed, kinds=(kind,)))[name]
    assert (status.works, status.reason) == (False, "not installed: it needs onnxruntime-gpu")
    assert status.fix == "pip install 'unet-deploy[gpu]'"


def test_an_engine_that_refuses(replayed: Artifact) -> None:
    class Refusing(FakeEngine):
        def open(self) -> None:
            raise DeviceError("libcudart.so.13 is missing", "the driver is 550", fix="pip install nvidia-cuda-runtime")

    kind = dataclasses.replace(FAKE, make=lambda artifact, threads: Refusing(artifact.card.network))
    status = by_name(survey_engines(replayed, kinds=(kind,)))["fake"]
    assert (status.works, status.is_wrong) == (False, False)
    assert status.reason == "libcudart.so.13 is missing; the driver is 550"
    assert status.fix == "pip install nvidia-cuda-runtime"


def test_an_engine_that_computes_something_else(replayed: Artifact) -> None:
    class Wrong(FakeEngine):
        def infer(self, batch: Any) -> Any:
            return super().infer(batch) + 3

    kind = dataclasses.replace(FAKE, make=lambda artifact, threads: Wrong(artifact.card.network))
    status = by_name(survey_engines(replayed, kinds=(kind,)))["fake"]
    assert (status.works, status.is_wrong) == (False, True)
    assert "does not compute what the model's parent computed" in status.reason
    assert "largest difference 3, at most 0 was expected" in status.reason


def test_a_package_that_is_broken(replayed: Artifact) -> None:
    """As onnxruntime is, once onnxruntime-gpu was uninstalled beside it."""

    def make(artifact: Artifact, threads: int) -> Engine:
        raise AttributeError("module 'onnxruntime' has no attribute 'SessionOptions'\nand more")

    status = by_name(survey_engines(replayed, kinds=(dataclasses.replace(FAKE, make=make),)))["fake"]
    assert status.reason == "AttributeError: module 'onnxruntime' has no attribute 'SessionOptions'"
    assert (status.works, status.fix) == (False, "report this")
    if "onnxruntime" in installed_versions(["onnxruntime"]):
        kind = EngineKind(name="onnxruntime-cpu", device="cpu", make=make)
        found = by_name(survey_engines(replayed, kinds=(kind,)))["onnxruntime-cpu"]
        assert found.fix.startswith("pip install --force-reinstall onnxruntime")


def test_words() -> None:
    assert first_line(ValueError()) == "no reason given"
    assert first_line(ValueError("one\ntwo")) == "one"
    assert install_command("no such extra", "openvino") == "pip install openvino"
    assert installed_versions(["numpy", "no-such-package-of-ours"]) == {"numpy": np.__version__}


# ---- the whole


def test_this_machine_can_segment() -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    found = diagnose()
    engine = by_name(found.engines)["onnxruntime-cpu"]
    assert engine.works, engine.reason
    assert engine.difference is not None
    assert engine.limit is not None
    assert 0 <= engine.difference <= engine.limit
    assert found.model == "em-membrane (fp32)"
    assert found.packages["numpy"] == np.__version__
    assert {"onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt"} <= set(found.packages)
    assert set(found.disks) == {"here", "temporary files"}
    assert set(found.codecs.values()) == {"works"}
    assert found.works
    require_engine(found)


def test_it_can_be_written_as_json(replayed: Artifact) -> None:
    facts = diagnose(kinds=(FAKE,), artifact=replayed).to_object()
    assert json.loads(json.dumps(facts)).keys() == facts.keys()
    assert (facts["works"], facts["model"]) == (True, "tiny (fp32)")
    wanted = {"packages", "processor", "memory", "gpus", "engines", "torch", "codecs", "disks", "problems", "seconds"}
    assert wanted <= set(facts)


def test_nothing_names_the_user_or_the_machine(replayed: Artifact) -> None:
    def make(artifact: Artifact, threads: int) -> Engine:
        raise OSError(f"cannot open {Path.home() / 'secret' / 'lib.so'} nor {sys.prefix}/lib on {platform.node()}")

    found = diagnose(kinds=(dataclasses.replace(FAKE, make=make),), artifact=replayed)
    text = json.dumps(found.to_object())
    for private in (str(Path.home()), sys.prefix, str(Path.cwd()), tempfile.gettempdir()):
        assert private not in text
    assert "cannot open ~" in by_name(found.engines)["fake"].reason
    assert "<python>" in by_name(found.engines)["fake"].reason


def test_names_are_taken_out_of_a_text() -> None:
    clean, user, host = Cleaner(), getpass.getuser(), platform.node()
    assert clean(f"{Path.home() / 'a'} and {sys.prefix}") == f"{Path('~') / 'a'} and <python>"
    if len(user) > 2:
        assert clean(f"/data/{user}/x") == "/data/<user>/x"
        assert clean(f"chi{user}ky") == f"chi{user}ky"
    if len(host) > 2 and host != "localhost":
        assert clean(f"on {host}, port 1") == "on <host>, port 1"


def test_nothing_works(replayed: Artifact) -> None:
    found = diagnose(kinds=(), artifact=replayed)
    assert not found.works
    with pytest.raises(DeviceError, match="no engine works on this machine") as caught:
        require_engine(found)
    assert caught.value.exit_code == 5
    assert caught.value.details[0] == "onnxruntime-cpu: this release has no such engine"
    assert caught.value.fix == "pip install 'unet-deploy[cpu]'"


def test_the_commands_that_mend_come_first(replayed: Artifact) -> None:
    found: Diagnosis = dataclasses.replace(
        diagnose(kinds=(), artifact=replayed),
        problems=onnxruntime_problems({"onnxruntime": "1.2", "onnxruntime-gpu": "1.3"}),
    )
    with pytest.raises(DeviceError, match=r"onnxruntime 1.2 and onnxruntime-gpu 1.3 are installed at once") as caught:
        require_engine(found)
    assert caught.value.fix == "pip uninstall -y onnxruntime onnxruntime-gpu"


# ---- installations


@pytest.mark.parametrize("names", [(), ("onnxruntime",), ("onnxruntime-gpu",), ("onnxruntime-directml",)])
def test_one_onnxruntime_is_right(names: tuple[str, ...]) -> None:
    assert onnxruntime_problems(dict.fromkeys(names, "1.31.1")) == ()


@pytest.mark.parametrize(
    ("names", "mend"),
    [
        (
            ("onnxruntime", "onnxruntime-gpu"),
            ("pip uninstall -y onnxruntime onnxruntime-gpu", "pip install 'unet-deploy[gpu]'"),
        ),
        (
            ("onnxruntime-directml", "onnxruntime"),
            ("pip uninstall -y onnxruntime onnxruntime-directml", "pip install 'unet-deploy[cpu]'"),
        ),
        (
            ("onnxruntime-openvino", "onnxruntime-gpu", "onnxruntime"),
            (
                "pip uninstall -y onnxruntime onnxruntime-gpu onnxruntime-openvino",
                "pip install 'unet-deploy[gpu]'",
            ),
        ),
    ],
)
def test_two_onnxruntimes_break_each_other(names: tuple[str, ...], mend: tuple[str, ...]) -> None:
    (problem,) = onnxruntime_problems(dict.fromkeys(names, "1.31.1"))
    assert "are installed at once" in problem.headline
    assert "the last installed wins" in problem.detail
    assert problem.fix == mend


def test_torch_is_described_without_being_imported() -> None:
    program = (
        "import sys\n"
        "from unet_deploy.runtime.diagnosis import read_torch, diagnose\n"
        "diagnose(kinds=())\n"
        "print(read_torch())\n"
        "assert 'torch' not in sys.modules and 'dask' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    torch = read_torch()
    assert done.stdout.strip() == repr(torch)
    assert torch is None or torch.version == installed_versions(["torch"])["torch"]
    assert torch is None or not torch.version.endswith("+cpu") or torch.cuda is None


def test_every_codec_of_a_volume_is_tried() -> None:
    assert try_codecs() == dict.fromkeys(("blosc", "crc32c", "gzip", "lz4", "zlib", "zstd"), "works")


# ---- the machine


def test_the_machine_describes_itself() -> None:
    processor, memory = read_processor(), read_memory()
    assert processor.name
    assert processor.cores is not None
    assert processor.usable is not None
    assert 1 <= processor.usable <= processor.cores
    assert memory.total_bytes is None or memory.total_bytes > 2**28
    assert all(0 <= disk.free_bytes <= disk.total_bytes for disk in read_disks().values())


def test_gpus_are_read_from_the_answer_of_nvidia_smi() -> None:
    text = "NVIDIA H200, 580.65.06, 143771, 9.0\nNVIDIA Old, 470.1, [N/A], [N/A]\n\nsomething else\n"
    assert parse_nvidia_smi(text) == (
        Gpu(name="NVIDIA H200", driver="580.65.06", memory_bytes=143771 * 2**20, compute_capability="9.0"),
        Gpu(name="NVIDIA Old", driver="470.1", memory_bytes=None, compute_capability=None),
    )


def test_a_nvidia_smi_that_answers(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("a script is no program on Windows")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.65.06, 143771, 9.0'\n")
    program.chmod(stat.S_IRWXU)
    found = read_gpus(str(program))
    assert ([gpu.name for gpu in found.found], found.note) == (["NVIDIA H200"], "by nvidia-smi")
    program.write_text("#!/bin/sh\n")
    assert read_gpus(str(program)).note == "nvidia-smi names none"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not talk to the driver.'\nexit 9\n")
    assert read_gpus(str(program)).note.startswith("nvidia-smi failed: NVIDIA-SMI has failed because")
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    assert (
        read_gpus(str(program), answer_seconds=0.1).note
        == "nvidia-smi did not answer within 0.1 s: the driver may hang"
    )


def test_a_nvidia_smi_that_cannot_be_run(tmp_path: Path) -> None:
    found = read_gpus(str(tmp_path / "none"))
    assert found.found == ()
    assert found.note.startswith("nvidia-smi cannot be run: ")


def test_a_machine_without_a_driver_says_so() -> None:
    found = read_gpus()
    assert found.note
    assert found.found or "nvidia-smi" in found.note or "GPU" in found.note
