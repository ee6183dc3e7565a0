"""What every test shares: hypothesis without a clock, a tiny network, the integer fake, and the command line."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.tiny import CARD
from unet_deploy.card import ClassInfo, InputContract, ModelCard, Network, Normalisation
from unet_deploy.card_json import dump_card
from unet_deploy.runtime.artifact import Artifact, load_artifact
from unet_deploy.runtime.engines.fake import FakeEngine

# A shared machine may pause for a second at any time: slowness is pytest-timeout's business, not each example's.
settings.register_profile(
    "unet-deploy", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("unet-deploy")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import onnxruntime before we do, who say this too


@pytest.fixture(scope="session", autouse=True)
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let no test see, or change, what `unet-deploy bench` found out about this machine."""
    home = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", home)
        patch.setenv("USERPROFILE", home)
        yield


@pytest.fixture(autouse=True)
def seeded_torch() -> None:
    """Start every test from the same random numbers: a network drawn at random may be dead, and prove nothing."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


CardFactory = Callable[..., ModelCard]
ArtifactFactory = Callable[..., Artifact]


def _card(
    *,
    depth: int = 2,
    base_width: int = 1,
    in_channels: int = 1,
    classes: int = 2,
    dtype: Any = "uint8",
    value_range: tuple[float, float] = (0.0, 255.0),
    mean: float = 0.0,
    std: float = 1.0,
    percentiles: tuple[float, float] | None = None,
) -> ModelCard:
    return replace(
        CARD,
        network=Network(depth=depth, base_width=base_width, in_channels=in_channels, classes=classes),
        input=InputContract(dtype=dtype, value_range=value_range, channels=tuple(f"c{i}" for i in range(in_channels))),
        normalisation=Normalisation(
            mean=(mean,) * in_channels, std=(std,) * in_channels, source="made up", percentiles=percentiles
        ),
        classes=tuple(ClassInfo(name=f"class {i}", colour=f"#{40 * i:02x}8040") for i in range(classes)),
    )


def _fake_artifact(**sizes: Any) -> Artifact:
    card = _card(**sizes)
    sha256 = hashlib.sha256(dump_card(card).encode()).hexdigest()  # the runtime keeps engines by hash
    return Artifact(data=b"", card=card, source="fake", sha256=sha256, n_nodes=0)


def _fake_engine(artifact: Artifact) -> FakeEngine:
    return FakeEngine(artifact.card.network)


@pytest.fixture(scope="session")
def make_card() -> CardFactory:
    """A maker of cards; its keywords are the sizes, the dtype, its range and the constants."""
    return _card


@pytest.fixture(scope="session")
def fake_artifact() -> ArtifactFactory:
    """A maker of artifacts without a graph, for `fake_factory` to run; keywords as of `make_card`."""
    return _fake_artifact


@pytest.fixture(scope="session")
def fake_factory() -> Callable[[Artifact], FakeEngine]:
    """What ``engine_factory`` wants: the integer engine of an artifact's network."""
    return _fake_engine


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network of depth 2 with random weights; not to be changed."""
    pytest.importorskip("torch", reason="the extra 'train' is not installed")
    from tests.tiny import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.pt")


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> Path:
    """The artifact exported from it; not to be changed."""
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    from unet_deploy.exporters.export import export_checkpoint

    return export_checkpoint(tiny_checkpoint, tiny_checkpoint.with_name("tiny.onnx")).path


@pytest.fixture(scope="session")
def tiny_artifact(tiny_model: Path) -> Artifact:
    """The same, loaded and checked."""
    return load_artifact(tiny_model)


@pytest.fixture(scope="session")
def tiny_products(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network in fp32, fp16 and int8, calibrated on a volume of noise; not to be changed."""
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    from tests.tiny import make_pixels, write_image
    from unet_deploy.exporters import CalibrationSource, export_precisions

    folder = tmp_path_factory.mktemp("products")
    volume = write_image(folder / "calibration.zarr", make_pixels((3, 100, 130), seed=1))
    reports = export_precisions(
        tiny_checkpoint,
        {"fp32": folder / "tiny.onnx", "fp16": folder / "tiny.fp16.onnx", "int8": folder / "tiny.int8.onnx"},
        calibrate=CalibrationSource(path=volume),
    )
    return {report.card.precision: report.path for report in reports}


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Outcome]]:
    """The command line, run in this process with an empty folder as the current one and no model in the environment."""
    from unet_deploy.cli.app import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNET_DEPLOY_MODEL", raising=False)
    log = logging.getLogger("unet_deploy")
    before = log.level, log.propagate, log.handlers[:]

    def call(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    yield call
    log.level, log.propagate, log.handlers[:] = before
