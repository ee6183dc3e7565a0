"""What the tests of this folder share: a real engine each, or none and one line that says why."""

from __future__ import annotations

import pytest

from tests.contract.engines import ON_A_GPU
from tests.gpu.engines import GpuEngines, require_engine


@pytest.fixture(scope="module", params=sorted(ON_A_GPU))
def gpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GpuEngines:
    """The makers of an engine; its plans are kept for the module."""
    return require_engine(request.param, tmp_path_factory.mktemp(f"plans-{request.param}"))
