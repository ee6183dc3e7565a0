"""What every test shares: hypothesis without a clock, a tiny network, and the command line in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A shared machine may pause for a second at any time: slowness is pytest-timeout's business, not each example's.
settings.register_profile(
    "unet-deploy", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("unet-deploy")


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
