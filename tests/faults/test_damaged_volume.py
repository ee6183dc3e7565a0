"""A volume that breaks under the run costs the blocks that need what is broken, and no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.conftest import Outcome
from tests.tiny import make_pixels, read_arrays, read_provenance, write_image
from unet_deploy.errors import PartialResultError, ReadError
from unet_deploy.runtime import Progress, segment
from unet_deploy.runtime.chunk_cache import CHUNKS
from unet_deploy.runtime.region import parse_region

Cli = Callable[..., Outcome]
PLANES = 5
DAMAGED = 2


def cut_short(chunk: Path) -> None:
    chunk.write_bytes(chunk.read_bytes()[:40])


def overwrite(chunk: Path) -> None:
    chunk.write_bytes(b"not what a compressor writes" * 10)


def empty(chunk: Path) -> None:
    chunk.write_bytes(b"")


def replace_by_a_folder(chunk: Path) -> None:
    chunk.unlink()
    chunk.mkdir()


@pytest.fixture
def clean(tmp_path: Path, tiny_model: Path) -> dict[str, np.ndarray]:
    """What a run over the volume gives as long as it is whole."""
    write_image(tmp_path / "v.zarr", make_pixels((PLANES, 100, 90)))
    segment(tmp_path / "v.zarr", model=tiny_model, output=tmp_path / "clean.zarr")
    return read_arrays(tmp_path / "clean.zarr")


def require_one_hole(came: dict[str, np.ndarray], clean: dict[str, np.ndarray]) -> None:
    """Plane `DAMAGED` is 0, all others are as in a clean run."""
    others = [z for z in range(PLANES) if z != DAMAGED]
    assert came.keys() == clean.keys() == {"0", "labels/segmentation/0"}
    for name, array in came.items():
        planes, wanted = (np.moveaxis(a, -3, 0) for a in (array, clean[name]))
        assert wanted[DAMAGED].any()
        assert not planes[DAMAGED].any()
        assert np.array_equal(planes[others], wanted[others])


@pytest.mark.parametrize("damage", [cut_short, overwrite, empty, replace_by_a_folder])
def test_a_chunk_that_cannot_be_read(
    damage: Callable[[Path], None], clean: dict[str, np.ndarray], cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    damage(tmp_path / "v.zarr" / "0" / "c" / str(DAMAGED) / "1" / "0")
    outcome = cli("segment", "v.zarr", "--model", tiny_model)
    output = tmp_path / "v_segmentation.ome.zarr"
    assert (outcome.code, outcome.out) == (6, "")
    assert f"error[partial-result]: 1 of {PLANES} blocks failed; they are 0 in {output.name}" in outcome.err
    assert f"  block {DAMAGED}: ReadError: the window z {DAMAGED}:{DAMAGED + 1}, y 0:100, x 0:90 " in outcome.err
    require_one_hole(read_arrays(output), clean)
    said = read_provenance(output)
    assert said["status"] == "partial"
    assert [failed["block"] for failed in said["failed_blocks"]] == [DAMAGED]
    assert str(tmp_path / "v.zarr" / "0") in said["failed_blocks"][0]["reason"]
    shown = cli("inspect", output)
    assert shown.code == 0
    assert "partial: 1 block(s) failed and are 0" in shown.out


def test_what_cannot_be_compared_is_no_likeness(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    """The blocks of a damaged volume that can be read are done, but not where a likeness to training is insisted on."""
    write_image(tmp_path / "v.zarr", make_pixels((PLANES, 100, 90)))
    cut_short(tmp_path / "v.zarr" / "0" / "c" / str(DAMAGED) / "1" / "0")
    options: dict[str, Any] = {"model": tiny_model, "output": tmp_path / "out.zarr"}
    with pytest.raises(ReadError, match=r"^the window .* cannot be read"):
        segment(tmp_path / "v.zarr", strict=True, **options)
    assert not (tmp_path / "out.zarr").exists()
    with pytest.raises(PartialResultError) as caught:
        segment(tmp_path / "v.zarr", **options)
    result = caught.value.result
    assert (result.findings, result.is_compared) == ((), False)
    assert read_provenance(tmp_path / "out.zarr")["differs_from_training"] is None
    planned = cli("plan", "v.zarr", "--model", tiny_model, "--no-probe", "--json")
    assert json.loads(planned.out)["differs_from_training"] is None
    done = cli("segment", "v.zarr", "--model", tiny_model, "--output", "again.zarr", "--json")
    assert (done.code, json.loads(done.out)["differs_from_training"]) == (6, None)


def test_a_block_that_failed_in_another_region_is_said_and_how_to_mend_it(tiny_model: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "v.zarr", make_pixels((PLANES, 100, 90)))
    chunk = tmp_path / "v.zarr" / "0" / "c" / str(DAMAGED) / "1" / "0"
    whole = chunk.read_bytes()
    cut_short(chunk)
    options: dict[str, Any] = {"model": tiny_model, "output": tmp_path / "out.zarr"}
    for region in (f"z={DAMAGED}", f"z={DAMAGED + 1}"):  # the second does not hold it
        with pytest.raises(PartialResultError, match=rf"^1 of {PLANES} blocks failed") as caught:
            segment(tmp_path / "v.zarr", region=parse_region(region), **options)
        assert caught.value.fix.endswith("with --retry-failed, and with a --region that holds them or none")
        assert read_provenance(tmp_path / "out.zarr")["status"] == "region"
    chunk.write_bytes(whole)
    with pytest.raises(PartialResultError):
        segment(tmp_path / "v.zarr", region=parse_region(f"z={DAMAGED + 1}"), retry_failed=True, **options)
    assert segment(tmp_path / "v.zarr", retry_failed=True, **options).status == "complete"


def test_a_mended_volume_is_segmented_again(
    clean: dict[str, np.ndarray], cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    chunk = tmp_path / "v.zarr" / "0" / "c" / str(DAMAGED) / "1" / "0"
    whole = chunk.read_bytes()
    cut_short(chunk)
    assert cli("segment", "v.zarr", "--model", tiny_model).code == 6
    chunk.write_bytes(whole)
    outcome = cli("segment", "v.zarr", "--model", tiny_model, "--overwrite")
    assert outcome.code == 0
    came = read_arrays(tmp_path / "v_segmentation.ome.zarr")
    assert all(np.array_equal(came[name], clean[name]) for name in clean)
    assert read_provenance(tmp_path / "v_segmentation.ome.zarr")["status"] == "complete"


def test_a_missing_chunk_is_no_damage(clean: dict[str, np.ndarray], cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    """Zarr says so: it means the fill value. The other planes are as before."""
    shutil.rmtree(tmp_path / "v.zarr" / "0" / "c" / str(DAMAGED))
    outcome = cli("segment", "v.zarr", "--model", tiny_model)
    assert outcome.code == 0
    came = read_arrays(tmp_path / "v_segmentation.ome.zarr")["0"]
    others = [z for z in range(PLANES) if z != DAMAGED]
    assert np.array_equal(came[:, others], clean["0"][:, others])
    assert not np.array_equal(came[:, DAMAGED], clean["0"][:, DAMAGED])


def test_a_volume_that_vanishes(tiny_model: Path, tmp_path: Path) -> None:
    """Every chunk of it would read as the fill value, so it must be noticed."""
    volume = write_image(tmp_path / "v.zarr", make_pixels((30, 100, 90)))

    def vanish(progress: Progress) -> None:
        if progress.stage == "segment" and progress.done == 3:
            shutil.rmtree(volume)
            CHUNKS.reset()  # so small a volume is read but once; of a large one most is not yet read

    with pytest.raises(PartialResultError, match="of 30 blocks failed; they are 0 in") as caught:
        segment(volume, model=tiny_model, output=tmp_path / "out.zarr", progress=vanish)
    assert "ReadError: the window z " in str(caught.value)
    said = read_provenance(tmp_path / "out.zarr")
    assert said["status"] == "partial"
    failed = {block["block"] for block in said["failed_blocks"]}
    assert 15 < len(failed) <= 27
    assert all("no longer there" in b["reason"] or "cannot be read" in b["reason"] for b in said["failed_blocks"])
    probabilities = read_arrays(tmp_path / "out.zarr")["0"]
    whole = (probabilities.sum(axis=0) >= 254).all(axis=(1, 2))
    assert {z for z in range(30) if not whole[z]} == failed


def test_a_volume_that_is_swapped_for_another(tiny_model: Path, tmp_path: Path) -> None:
    """A worker reopens the volume; pixels of another one are never mixed in."""
    volume = write_image(tmp_path / "v.zarr", make_pixels((2, 100, 90)))
    from unet_deploy.errors import ReadError
    from unet_deploy.runtime import VolumeInfo, open_volume
    from unet_deploy.runtime.volume import Volume

    opened = open_volume(volume)
    reopen, arguments = opened.__reduce__()[:2]
    assert isinstance(arguments[0], VolumeInfo)
    assert isinstance(reopen(*arguments), Volume)
    shutil.rmtree(volume)
    write_image(volume, make_pixels((2, 100, 91)))
    with pytest.raises(ReadError, match="the volume is not what it was when it was opened"):
        reopen(*arguments)


def test_all_blocks_fail(clean: dict[str, np.ndarray], cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    """No class has a share of nothing, and the listing ends somewhere."""
    pixels = make_pixels((14, 40, 40))
    write_image(tmp_path / "w.zarr", pixels)
    for chunk in (tmp_path / "w.zarr" / "0" / "c").rglob("*"):
        if chunk.is_file():
            cut_short(chunk)
    outcome = cli("segment", "w.zarr", "--model", tiny_model)
    assert outcome.code == 6
    assert "14 of 14 blocks failed" in outcome.err
    assert "and 4 more, listed in the output's attributes" in outcome.err
    said = read_provenance(tmp_path / "w_segmentation.ome.zarr")
    assert len(said["failed_blocks"]) == 14
    assert said["class_fractions"] == {}
    assert not zarr.open_array(tmp_path / "w_segmentation.ome.zarr", path="0", mode="r")[...].any()
