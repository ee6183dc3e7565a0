"""The ISBI test slices in nine stores that five other libraries wrote: the bundled network says the same of each."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.contract.other_writers import WRITERS, Pixels
from tests.tiny import read_arrays
from unet_deploy.geometry import Interval
from unet_deploy.runtime import open_volume, segment

STORES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "zarr_isbi"
GIVEN = ("ngff_zarr_v04.ome.zarr", "ngff_zarr_v05_sharded.ome.zarr", "ome_zarr_py_v05.ome.zarr")
MADE = {
    # Chunks thick and thin, none of them as in the stores that were given.
    "tensorstore_v2": (1, 200, 130),
    "tensorstore_v3": (4, 64, 64),
    "acquire_v05": (2, 128, 256),
    "bioio_v04": (8, 96, 96),
    "bioio_v05": (1, 256, 256),
    "ome_zarr_py_v04": (3, 512, 100),
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the writers' own
    pytest.mark.skipif(not STORES.is_dir(), reason=f"the ISBI stores are not at {STORES}"),
]


def write_plain(path: Path, pixels: Pixels) -> Path:
    zarr.create_array(str(path), data=pixels, chunks=(1, 256, 256), dimension_names=["z", "y", "x"])
    return path


STORES_OF_ALL = {
    "plain": write_plain,
    **{name: (lambda _path, _pixels, name=name: STORES / name) for name in GIVEN},
    **{name: partial(WRITERS[name], chunk=chunk) for name, chunk in MADE.items()},
}


@pytest.fixture(scope="module")
def slices() -> Pixels:
    """All eight slices, as the first of the given stores holds them."""
    volume = open_volume(STORES / GIVEN[0])
    return volume.read(**{axis: Interval(0, volume.extent(axis)) for axis in "zyx"})[0, 0]


@pytest.fixture(scope="module")
def expected(slices: Pixels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pixels]:
    """What the network says of the slices in a plain array."""
    folder = tmp_path_factory.mktemp("expected")
    return run(STORES_OF_ALL["plain"](folder / "plain.zarr", slices), folder)


def run(store: Path, folder: Path) -> dict[str, Pixels]:
    result = segment(store, output=folder / "result.zarr", model="membrane", level=0)
    assert not result.failed
    arrays = read_arrays(folder / "result.zarr")
    return {name: arrays[name] for name in ("0", "labels/segmentation/0")}


@pytest.mark.parametrize("name", [*GIVEN, *MADE])
def test_each_gives_the_same(name: str, slices: Pixels, expected: dict[str, Pixels], tmp_path: Path) -> None:
    store = STORES_OF_ALL[name](tmp_path / "store.zarr", slices)
    volume = open_volume(store)
    assert volume.info.axes == "zyx"
    whole = volume.read(**{axis: Interval(0, volume.extent(axis)) for axis in "zyx"})[0, 0]
    assert whole.tobytes() == slices.tobytes()
    came = run(store, tmp_path)
    formats = [zarr.open(path, mode="r").metadata.zarr_format for path in (store, tmp_path / "result.zarr")]
    assert formats[0] == formats[1]
    assert came["labels/segmentation/0"].shape == slices.shape
    for array, wanted in expected.items():
        assert came[array].dtype == wanted.dtype
        assert came[array].tobytes() == wanted.tobytes(), array


def test_nine_stores_by_five_libraries(expected: dict[str, Pixels]) -> None:
    """The numbers promised; and what is compared is a segmentation."""
    assert len(GIVEN) + len(MADE) == 9
    libraries = {name.rpartition("_v0")[0] or name.rpartition("_v")[0] for name in (*GIVEN, *MADE)}
    assert libraries == {"ngff_zarr", "ome_zarr_py", "tensorstore", "acquire", "bioio"}
    assert 0.1 < np.mean(expected["labels/segmentation/0"]) < 0.4  # about as much membrane as there is
