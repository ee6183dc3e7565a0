"""The suite that every engine passes, on the engines of a real GPU."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from tests.contract import test_engines as suite
from tests.contract.engines import EngineUnderTest
from tests.gpu.engines import GpuEngines
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.checked import CheckedEngine
from unet_deploy.runtime.machine import ask_driver

if not ask_driver().found:
    pytest.skip(f"no NVIDIA GPU: {ask_driver().note}", allow_module_level=True)


@pytest.fixture
def kind(gpu: GpuEngines, tiny_artifact: Artifact) -> EngineUnderTest:
    """Takes the place of the suite's own, for the tests that are taken over below."""
    side = tiny_artifact.card.geometry.tile_side(6 * tiny_artifact.card.geometry.divisor)
    return EngineUnderTest(
        name=gpu.name,
        card=tiny_artifact.card,
        make=lambda: gpu.make(tiny_artifact, (4, 1, side, side)),
        device="cuda:0",
    )


@pytest.fixture
def engine(kind: EngineUnderTest) -> Iterator[CheckedEngine]:
    opened = kind.open()
    yield opened
    opened.close()


TAKEN = {
    name: test
    for name, test in vars(suite).items()
    if name.startswith("test_") and "kind" in inspect.signature(test).parameters
}
globals().update(TAKEN)


def test_the_suite_was_taken_over() -> None:
    assert len(TAKEN) >= 15
