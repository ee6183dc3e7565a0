"""A run that is killed leaves something that does not look like a result, and that can be replaced."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.conftest import Outcome
from tests.tiny import make_pixels, read_arrays, read_provenance, write_huge, write_image

Cli = Callable[..., Outcome]


@pytest.fixture
def killed(tmp_path: Path, tiny_model: Path) -> Path:
    """The output of a run that was killed, not interrupted, in the midst of writing blocks."""
    write_huge(tmp_path / "long.zarr", (50_000, 256, 256))
    output = tmp_path / "out.zarr"
    program = subprocess.Popen(
        [sys.executable, "-m", "unet_deploy", "segment", "long.zarr", "-m", tiny_model, "-o", output, "--tile", "204"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        for _ in range(600):
            if (output / "0" / "c").exists():
                break
            assert program.poll() is None, program.communicate()
            time.sleep(0.1)
        time.sleep(0.3)
        assert program.poll() is None, program.communicate()  # still at work, or this shows nothing
    finally:
        program.kill()
        program.communicate()
    return output


@pytest.mark.slow
def test_a_killed_run(killed: Path, cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    """One test for all that follows a kill, since each kill takes seconds."""
    # 1. It does not look like a result: no viewer finds an image in it.
    assert read_provenance(killed)["status"] == "running"
    attributes = dict(zarr.open_group(killed, mode="r").attrs)
    assert list(attributes) == ["unet_deploy"]
    assert dict(zarr.open_group(killed, path="labels", mode="r").attrs) == {}
    assert (killed / "0" / "c").exists()

    # 2. `inspect` says what it is.
    shown = cli("inspect", killed)
    assert shown.code == 0
    assert "running: being written, or the run was killed: not a result" in shown.out
    assert json.loads(cli("inspect", killed, "--json").out)["segmentation"]["status"] == "running"

    # 3. It is no volume to segment.
    refused = cli("segment", killed, "--model", tiny_model)
    assert (refused.code, refused.out) == (3, "")
    assert "error[not-a-volume]" in refused.err

    # 4. It is in the way until --overwrite, and then replaced by what an unbroken run writes.
    write_image(tmp_path / "v.zarr", make_pixels((2, 100, 90)))
    assert cli("segment", "v.zarr", "--model", tiny_model, "-o", killed).code == 3
    assert cli("segment", "v.zarr", "--model", tiny_model, "-o", killed, "--overwrite").code == 0
    assert cli("segment", "v.zarr", "--model", tiny_model, "-o", "clean.zarr").code == 0
    came, clean = read_arrays(killed), read_arrays(tmp_path / "clean.zarr")
    assert came.keys() == clean.keys()
    assert all(np.array_equal(came[name], clean[name]) for name in clean)
    assert read_provenance(killed)["status"] == "complete"
