"""A block that is tried twice at once: what one attempt wrote stays, whatever becomes of the other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.tiny import make_pixels, write_array
from unet_deploy.runtime import prepare
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.block_runs import run_blocks
from unet_deploy.runtime.engines.cache import EngineRequest, drop_engine
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.execute import Job, run_block
from unet_deploy.runtime.output import create_output
from unet_deploy.runtime.scheduling import connect


def test_an_attempt_that_fails_late_leaves_what_another_wrote(
    tmp_path: Path,
    fake_artifact: Callable[..., Artifact],
    fake_factory: Callable[[Artifact], FakeEngine],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only the first report on a block counts, and who has it makes what failed 0."""
    path = write_array(tmp_path / "v.zarr", make_pixels((2, 40, 40)))
    artifact = fake_artifact()
    ready = prepare(path, model=artifact)
    spec = ready.output_spec(tmp_path / "out.zarr", ("labels",), is_label_group=False)
    assert ready.normaliser is not None
    request = EngineRequest(artifact=artifact, factory=fake_factory)
    job = Job(
        plan=ready.plan,
        volume=ready.volume,
        channels=ready.channels,
        normaliser=ready.normaliser,
        engine=request,
        output=spec,
    )

    def labels() -> Any:
        return np.asarray(zarr.open_array(spec.path, path=spec.array_path("labels", 0), mode="r")[...])

    try:
        with create_output(spec, fingerprint={}, provenance={}, overwrite=False) as journal, connect() as client:
            assert run_block(job, 0).record.status == "done"
            before = labels()
            assert before[0].any()
            (path / "c" / "0" / "0" / "0").write_bytes(b"damaged meanwhile")
            with caplog.at_level(logging.CRITICAL):
                assert run_block(job, 0).record.status == "failed"
                np.testing.assert_array_equal(labels(), before)
                run_blocks(job, client, journal, [0, 1], total=2, progress=None)
            assert (journal.status_of(0), journal.status_of(1)) == ("failed", "done")
            assert not labels()[0].any()
            assert labels()[1].any()
    finally:
        drop_engine(request)
