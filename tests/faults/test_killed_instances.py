"""Objects are numbered as by one undisturbed process, though workers die in any pass, or the whole run does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.labelled import read_ids, whole, write_labels
from tests.tiny import make_pixels, write_image
from unet_deploy.runtime import Progress, segment
from unet_deploy.runtime.instances import InstanceRule, number_instances
from unet_deploy.runtime.journal import journal_path
from unet_deploy.runtime.output_paths import read_provenance
from unet_deploy.runtime.scheduling import connect

PLANES = 6
RULE = InstanceRule(classes=(1, 2), dimensions=3, neighbours="full", min_size=2)
BLOCK = (2, 16, 16)
DIES = """
import os, sys
import numpy as np
from pathlib import Path
from unet_deploy.card import ClassInfo
from unet_deploy.runtime.instances import InstanceRule, number_instances
from unet_deploy.runtime.layout import OutputSpec
from unet_deploy.runtime.plan import Extents, WriteGrid
from unet_deploy.runtime.scheduling import connect

def main():
    classes = tuple(ClassInfo(name=n, colour="#000000") for n in ("background", "nucleus", "membrane", "debris"))
    spec = OutputSpec(
        path=sys.argv[1], zarr_format=3, ome_version="0.5", kinds=("labels",), name="made up", axes="tzyx",
        extents=Extents(t=1, z=6, y=50, x=70), grid=WriteGrid(chunk=(2, 16, 16)), block=(2, 16, 16), classes=classes,
        scale=(1.0,) * 4, translation=(0.0,) * 4, units=(None,) * 4,
    )
    rule = InstanceRule(classes=(1, 2), dimensions=3, neighbours="full", min_size=2)
    def progress(now):
        if now.done == int(sys.argv[2]):
            os._exit(9)  # as a kill: nothing is tidied up
    with connect(None) as client:
        number_instances(spec, rule, client, progress=progress)

if __name__ == "__main__":
    main()
"""


def make_labels() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 4, (1, 6, 50, 70)).astype(np.uint8)


@pytest.mark.slow
def test_workers_may_die_in_any_pass(tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    labels = make_labels()
    spec = write_labels(tmp_path / "out.zarr", labels, BLOCK)
    n_blocks = 3 * 4 * 5
    killed: list[int] = []
    with (
        warnings.catch_warnings(action="ignore"),  # what dask's own processes leave open at their end is theirs
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):

        def progress(now: Progress) -> None:
            if now.done in (n_blocks // 2, n_blocks + n_blocks // 2, 2 * n_blocks + n_blocks // 2):
                client.wait_for_workers(2, timeout=60)  # the one killed before has been replaced
                running = set(client.run(os.getpid, on_error="ignore").values()) - {*killed}
                killed.append(max(running))  # the newer: `run_tasks` may have given the job to the older alone
                os.kill(killed[-1], signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)

        result = number_instances(spec, RULE, client, table=tmp_path / "objects.csv", progress=progress)
    assert len(set(killed)) == 3
    expected = whole(labels, RULE)
    assert result.count == expected.max() > 10
    assert np.array_equal(read_ids(spec), expected)
    assert len((tmp_path / "objects.csv").read_text().splitlines()) == 1 + result.count


@pytest.mark.slow
def test_a_run_that_died_is_done_again(tmp_path: Path) -> None:
    labels = make_labels()
    spec = write_labels(tmp_path / "out.zarr", labels, BLOCK)
    (tmp_path / "dies.py").write_text(DIES)
    for done in (30, 150):  # in the first pass, and in the last
        ended = subprocess.run(
            [sys.executable, tmp_path / "dies.py", spec.path, str(done)],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 9, ended.stderr
        assert any((tmp_path / "out.zarr/unet_deploy_run/instances").iterdir())
    with connect(None) as client:
        result = number_instances(spec, RULE, client)
    assert not (tmp_path / "out.zarr/unet_deploy_run/instances").exists()
    assert result.dropped > 0
    assert np.array_equal(read_ids(spec), whole(labels, RULE))


SEGMENTS = """
import os, sys
from unet_deploy.runtime import segment

def main():
    volume, model, place, name, killed_at = sys.argv[1:]
    def progress(now):
        if now.stage == "instances" and now.done == int(killed_at):
            os._exit(9)
    options = {place: name}
    segment(volume, model=model, write=("labels", "instances"), threads=1, progress=progress, **options)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["output", "into_labels"])
def test_a_segmentation_killed_while_objects_are_numbered_goes_on(tmp_path: Path, tiny_model: Path, place: str) -> None:
    volume, whole_run = tmp_path / "v.zarr", tmp_path / "whole.zarr"
    write_image(volume, make_pixels((PLANES, 130, 150)))
    segment(volume, model=tiny_model, output=whole_run, write=("labels", "instances"), threads=1)
    (tmp_path / "segments.py").write_text(SEGMENTS)
    name = str(tmp_path / "out.zarr") if place == "output" else "cells"
    target = Path(name) if place == "output" else volume / "labels" / "cells"
    labels_path, ids_path = (
        ("labels/segmentation", "labels/instances") if place == "output" else ("", "../cells_instances")
    )
    blocks = []
    for killed_at in (PLANES // 2, 2 * PLANES + 1):  # in the first pass, and in the last
        ended = subprocess.run(
            [sys.executable, tmp_path / "segments.py", volume, tiny_model, place, name, str(killed_at)],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 9, ended.stderr
        said = read_provenance(target)
        assert said is not None
        assert said["status"] == "running"
        listing = target / "labels" if place == "output" else target.parent
        attributes = zarr.open_group(listing, mode="r").attrs.asdict()
        assert attributes.get("ome", {}).get("labels", []) == []
        assert "ome" not in zarr.open_group(target, mode="r").attrs
        blocks.append(journal_path(target).read_bytes())
        assert np.array_equal(read_array(target / labels_path / "0"), read_array(whole_run / "labels/segmentation/0"))
    assert blocks[0] == blocks[1]  # none was done again
    options: Any = {place: name}
    result = segment(volume, model=tiny_model, write=("labels", "instances"), threads=1, **options)
    assert (result.blocks_found, result.pixels) == (PLANES, 0)
    assert result.status == "complete"
    assert result.instances is not None
    assert result.instances.count > 10
    said = read_provenance(target)
    assert said is not None
    assert said["status"] == "complete"
    for inside, expected in ((labels_path, "labels/segmentation"), (ids_path, "labels/instances")):
        assert np.array_equal(read_array(target / inside / "0"), read_array(whole_run / expected / "0"))


def read_array(path: Path) -> Any:
    return np.asarray(zarr.open_array(path.resolve(), mode="r")[...])
