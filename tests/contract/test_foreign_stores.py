"""Every store that other programs left us is segmented, or refused with a reason; docs/inputs.md says which.

The network is the integer fake, so that all of them take seconds; what it says of a store is compared with what it says
of the same pixels in an array of our own.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.tiny import read_arrays
from unet_deploy.errors import SeveralImagesError, UnetDeployError
from unet_deploy.geometry import Interval
from unet_deploy.runtime import Volume, list_images, open_volume, segment

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ROOT.parent / "shared" / "data" / "zarr_foreign"
NEUROGLANCER = "neuroglancer/testdata/datasource/zarr"
V06 = f"{NEUROGLANCER}/ome_zarr/all_0.6"
NO_IMAGE = "refused: is a Zarr group without an OME-Zarr image, an array or an image was expected"
WRONG_DTYPE = "refused: data type {!r} came, one of uint8, uint16, int16, float16, float32 was expected"
ONE_AXIS = "refused: shape [1] came, 2 to 5 axes (of t, c, z, y, x) were expected"
TRANSFORMED = "refused: transformation {!r} came, scale or translation was expected"
OUTCOMES = {
    "mobie-viewer-fiji/minimal-mobie-project/data/blobs/images/blobs.ome.zarr": "segmented: yx, uint8, OME-Zarr 0.4",
    "mobie-viewer-fiji/mri-stack.ome.zarr": "segmented: zyx, uint8, OME-Zarr 0.4",
    "mobie-viewer-fiji/single-plane-hcs.zarr": "each of 2 fields segmented: cyx, uint16, OME-Zarr 0.4",
    "mobie-viewer-fiji/skimage-2dt-zarr/image.ome.zarr": "segmented: tyx, uint8, OME-Zarr 0.4",
    "mobie-viewer-fiji/skimage-2dt-zarr/segmentation.ome.zarr": WRONG_DTYPE.format("<i4"),
    f"{V06}/axis_dependent/mapAxis.zarr": TRANSFORMED.format("mapAxis"),
    f"{V06}/basic/identity.zarr": "segmented: zyx, uint8, OME-Zarr 0.6.dev1",
    f"{V06}/basic/scale.zarr": "segmented: zyx, uint8, OME-Zarr 0.6.dev1",
    f"{V06}/basic/sequenceScaleTranslation.zarr": "segmented: zyx, uint8, OME-Zarr 0.6.dev1",
    f"{V06}/basic/translation.zarr": "segmented: zyx, uint8, OME-Zarr 0.6.dev1",
    f"{V06}/simple/affine.zarr": TRANSFORMED.format("affine"),
    f"{V06}/simple/anisotropic_rotation.zarr": (
        "refused: transformation 'affine' of the image to the coordinate system 'world' came, "
        "only those of its arrays were expected"
    ),
    f"{V06}/simple/rotation.zarr": TRANSFORMED.format("rotation"),
    f"{NEUROGLANCER}/ome_zarr/simple_0.4": "segmented: yx, uint16, OME-Zarr 0.4",
    f"{NEUROGLANCER}/ome_zarr/simple_0.5": "segmented: yx, uint16, OME-Zarr 0.5",
    f"{NEUROGLANCER}/zarr_v2/from_zarr-python/data.zarr": NO_IMAGE,
    f"{NEUROGLANCER}/zarr_v3/examples/single_res": "segmented: yx, uint16, Zarr v3",
    f"{NEUROGLANCER}/zarr_v3/from_zarrita/data.zarr": NO_IMAGE,
    "ome-zarr-models-py/tests/data/examples/v04/hcs_example.ome.zarr": "segmented: czyx, uint16, OME-Zarr 0.4",
    "ome-zarr-models-py/tests/data/examples/v06/stitched_tiles_2d.zarr": (
        "each of 2 images segmented: yx, uint8, OME-Zarr 0.6.dev4"
    ),
    "ome-zarr-py/tests/data/v1": "segmented: tczyx, uint8, OME-Zarr 0.1",
    "ome-zarr-py/tests/data/v2": "segmented: tczyx, uint8, OME-Zarr 0.2",
    "ome2024-ngff-challenge/tests/data/2d.zarr": "segmented: tczyx, uint8, OME-Zarr 0.4",
    "ome2024-ngff-challenge/tests/data/bf2raw.zarr": "each of 2 series segmented: tczyx, uint8, OME-Zarr 0.4",
    "ome2024-ngff-challenge/tests/data/hcs.zarr": "each of 8 fields segmented: tczyx, uint8, OME-Zarr 0.4",
    "zarr-java/testdata/ome/v0.4": "segmented: tczyx, float32, OME-Zarr 0.4",
    "zarr-java/testdata/ome/v0.4_hcs": "segmented: tczyx, float32, OME-Zarr 0.4",
    "zarr-java/testdata/ome/v0.5": "segmented: tczyx, float32, OME-Zarr 0.5",
    "zarr-java/testdata/ome/v0.5_hcs": "segmented: tczyx, float32, OME-Zarr 0.5",
    "zarr-java/testdata/ome/v0.6_scene/example1_instrument_registration.zarr": (
        "each of 2 images segmented: zyx, uint16, OME-Zarr 0.6.dev3"
    ),
    "zarr-java/testdata/ome/v0.6_scene/example2_multi_instrument_chain.zarr": (
        "each of 3 images segmented: zyx, uint16, OME-Zarr 0.6.dev3"
    ),
    "zarr-java/testdata/sharding_index_location/end": WRONG_DTYPE.format("int32"),
    "zarr-java/testdata/sharding_index_location/start": WRONG_DTYPE.format("int32"),
    "zarr-java/testdata/storage_transformer/empty": ONE_AXIS,
    "zarr-java/testdata/storage_transformer/exists": ONE_AXIS,
    "zarr-java/testdata/v2_sample": NO_IMAGE,
}
ENOUGH = 2_000_000
"""Pixels: of an image with more, the first level with fewer is taken, where there is one."""
KINDS = {"field": "fields", "series": "series", "nested": "images"}

needs_stores = pytest.mark.skipif(
    not FOREIGN.is_dir(), reason="the stores by other programs are not beside the checkout"
)


def table() -> str:
    """Return the outcomes as docs/inputs.md shows them."""
    rows = [f"| `{store}` | {outcome} |" for store, outcome in OUTCOMES.items()]
    return "\n".join(["| Store | What happens |", "|---|---|", *rows])


@pytest.fixture
def run(tmp_path: Path, fake_artifact: Any, fake_factory: Any) -> Any:
    """Segment an image's first channel, and the same pixels from an array of ours; they must agree."""

    def segment_both(store: Path, image: str | None) -> Volume:
        levels = open_volume(store, image=image).info.levels
        small = [number for number, level in enumerate(levels) if level.shape and math.prod(level.shape) < ENOUGH]
        volume = open_volume(store, image=image, level=small[0] if small else 0)
        dtype = volume.info.dtype
        options = {
            "model": fake_artifact(depth=1),
            "engine_factory": fake_factory,
            "input_range": (0.0, 1.0) if dtype == "float32" else (0.0, 65535.0) if dtype == "uint16" else None,
            "channels": (0,) if volume.extent("c") > 1 else (),
        }
        number = len([*tmp_path.iterdir()])
        segment(store, image=image, output=tmp_path / f"{number}-theirs", level=volume.info.level, **options)
        spans = {axis: Interval(0, volume.extent(axis)) for axis in "tzyx"}
        pixels = volume.read(**spans).reshape(volume.info.shape)
        ours = tmp_path / f"{number}-ours.zarr"
        zarr.create_array(ours, data=pixels, chunks=pixels.shape, dimension_names=[*volume.info.axes])
        segment(ours, output=tmp_path / f"{number}-expected", **options)
        came, wanted = (read_arrays(tmp_path / f"{number}-{which}") for which in ("theirs", "expected"))
        for name in ("0", "labels/segmentation/0"):
            np.testing.assert_array_equal(came[name], wanted[name])
        return volume

    return segment_both


def outcome_of(store: Path, run: Any) -> str:
    refused: UnetDeployError | None = None
    try:
        volume, words = run(store, None), "segmented"
    except SeveralImagesError:
        entries = list_images(store)
        assert len(entries) > 1
        for entry in entries:
            volume = run(store, entry.name)
        words = f"each of {len(entries)} {KINDS[entries[0].kind]} segmented"
    except UnetDeployError as error:
        refused = error
    if refused is not None:
        assert refused.exit_code == 3
        assert refused.fix
        assert str(store) in str(refused)
        return f"refused: {refused.headline.removeprefix(f'{store} ')}"
    info = volume.info
    version = f"OME-Zarr {info.ome_version}" if info.ome_version else f"Zarr v{info.zarr_format}"
    return f"{words}: {info.axes}, {info.dtype}, {version}"


@needs_stores
@pytest.mark.parametrize("store", OUTCOMES)
def test_each_is_segmented_or_refused_with_a_reason(store: str, run: Any) -> None:
    assert outcome_of(FOREIGN / store, run) == OUTCOMES[store]


@needs_stores
def test_none_is_left_out() -> None:
    nodes = {file.parent for name in ("zarr.json", ".zarray", ".zgroup", ".zattrs") for file in FOREIGN.rglob(name)}
    stores = {node for node in nodes if nodes.isdisjoint(node.parents)}
    assert {store.relative_to(FOREIGN).as_posix() for store in stores} == OUTCOMES.keys()


def test_the_page_has_the_table() -> None:
    page = (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- foreign stores -->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert found is not None
    assert found[1] == table()
