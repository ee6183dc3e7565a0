"""Every input that docs/inputs.md promises is segmented: alike, however its pixels are stored.

What is read is what was written: that is tested in `test_volume`, `test_tiff` and `test_remote`. Here the whole command
is run, with the integer fake for a network, and compared with that over the same pixels in the plainest array.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.contract.test_remote import Site, bucket, no_proxy, site, upload
from tests.contract.volumes import AXES, DTYPES, EXTENTS, KINDS, StoreKind, make_pixels, write_array, write_image
from tests.tiny import read_arrays
from tests.tiny import write_image as write_tiny_image
from unet_deploy.errors import UnsupportedDtypeError
from unet_deploy.runtime import open_volume, segment

__all__ = ["bucket", "no_proxy", "site"]  # fixtures

Pixels = Any
Run = Callable[..., dict[str, Pixels]]
CHANNEL = 1
RANGES = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-32768, 32767), "float16": (-3, 3), "float32": (-3, 3)}


@pytest.fixture
def run(tmp_path: Path, fake_artifact: Any, fake_factory: Any) -> Run:
    """Segment a volume's second channel, or its only one."""

    def segment_one(volume: str | Path, **options: Any) -> dict[str, Pixels]:
        info = open_volume(volume, axes=options.get("axes")).info
        channels = (CHANNEL,) if "c" in info.axes else ()
        output = tmp_path / f"result-{len([*tmp_path.iterdir()])}"
        low, high = RANGES[info.dtype]
        segment(
            volume,
            output=output,
            model=fake_artifact(depth=1),
            engine_factory=fake_factory,
            channels=channels,
            input_range=(float(low), float(high)),
            level=0,
            **options,
        )
        return read_arrays(output)

    return segment_one


def write_plainest(path: Path, pixels: Pixels, axes: str) -> Path:
    zarr.create_array(path, data=np.asarray(pixels), chunks=pixels.shape, compressors=None, dimension_names=[*axes])
    return path


def require_same(came: dict[str, Pixels], wanted: dict[str, Pixels]) -> None:
    for name in ("0", "labels/segmentation/0"):
        np.testing.assert_array_equal(came[name], wanted[name])
    assert len(np.unique(wanted["labels/segmentation/0"])) > 1  # or it would prove little


@pytest.mark.parametrize("axes", AXES)
def test_every_set_of_axes_is_segmented_plane_by_plane(axes: str, tmp_path: Path, run: Run) -> None:
    pixels = make_pixels(axes, "uint8")
    came = run(write_array(tmp_path / "v", pixels, axes=axes, kind=KINDS[0]), axes=axes)
    kept = [axis for axis in axes if axis != "c"]
    labels = came["labels/segmentation/0"]
    assert labels.shape == tuple(EXTENTS[axis] for axis in kept)
    only = np.take(pixels, CHANNEL, axis=axes.index("c")) if "c" in axes else pixels
    for number, (plane, wanted) in enumerate(
        zip(only.reshape(-1, *only.shape[-2:]), labels.reshape(-1, *labels.shape[-2:]), strict=True)
    ):
        alone = run(write_plainest(tmp_path / f"plane-{number}", plane, "yx"))
        np.testing.assert_array_equal(alone["labels/segmentation/0"], wanted)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_of_store_gives_the_same(kind: StoreKind, tmp_path: Path, run: Run) -> None:
    """Compressed or not, F order, big-endian, sharded, dots and slashes; chunks are cut at the far edges."""
    dtype = DTYPES[KINDS.index(kind) % len(DTYPES)]
    pixels = make_pixels("zyx", dtype)
    came = run(write_array(tmp_path / "v", pixels, axes="zyx", kind=kind))
    require_same(came, run(write_plainest(tmp_path / "plain", pixels, "zyx")))


@pytest.mark.parametrize("chunks", [(1, 21, 19), (5, 3, 4), (64, 64, 64), (1, 1, 19)], ids=str)
@pytest.mark.parametrize("name", ["v2-fortran", "v3-zstd", "v3-sharded"])
def test_thick_and_thin_chunks_give_the_same(name: str, chunks: tuple[int, ...], tmp_path: Path, run: Run) -> None:
    kind = next(kind for kind in KINDS if kind.name == name)
    pixels = make_pixels("zyx", "uint16")
    came = run(write_array(tmp_path / "v", pixels, axes="zyx", kind=kind, chunks=chunks))
    require_same(came, run(write_plainest(tmp_path / "plain", pixels, "zyx")))


@pytest.mark.parametrize("name", ["v2-blosc", "v3-zstd", "v3-sharded"])
def test_missing_chunks_are_the_fill_value(name: str, tmp_path: Path, run: Run) -> None:
    kind = next(kind for kind in KINDS if kind.name == name)
    pixels = np.full((5, 21, 19), 7, np.int16)
    pixels[2:4, 8:16, 7:14] = make_pixels("zyx", "int16")[2:4, 8:16, 7:14]
    came = run(write_array(tmp_path / "v", pixels, axes="zyx", kind=kind, fill_value=7))
    require_same(came, run(write_plainest(tmp_path / "plain", pixels, "zyx")))


@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "int64", "uint32", "uint64", "float64"])
def test_other_data_types_are_refused_by_name(dtype: str, tmp_path: Path, run: Run) -> None:
    pixels = make_pixels("zyx", "uint8") > 127 if dtype == "bool" else make_pixels("zyx", dtype)
    write_array(tmp_path / "v", pixels, axes="zyx", kind=KINDS[-1])
    with pytest.raises(
        UnsupportedDtypeError, match=f"data type '{dtype}' came, one of {', '.join(DTYPES)} was expected"
    ):
        segment(tmp_path / "v", output=tmp_path / "out")


@pytest.mark.parametrize("ome", [True, False], ids=["ome", "plain"])
@pytest.mark.parametrize("layout", ["strips", "tiles", "deflate", "big-endian"])
def test_tiff_gives_the_same(ome: bool, layout: str, tmp_path: Path, run: Run) -> None:
    tifffile = pytest.importorskip("tifffile", reason="comes with the extra 'tiff'")
    options: dict[str, Any] = {
        "strips": {"rowsperstrip": 4},
        "tiles": {"tile": (16, 16)},
        "deflate": {"compression": "zlib"},
        "big-endian": {"byteorder": ">"},
    }[layout]
    pixels = make_pixels("zyx", "uint16")
    path = tmp_path / ("v.ome.tif" if ome else "v.tif")
    tifffile.imwrite(path, pixels, ome=ome, metadata={"axes": "ZYX"} if ome else None, **options)
    require_same(run(path), run(write_plainest(tmp_path / "plain", pixels, "zyx")))


def test_a_bucket_gives_the_same(tmp_path: Path, bucket: Any, run: Run) -> None:
    pixels = make_pixels("czyx", "uint16")
    image = write_image(tmp_path / "v.zarr", pixels, axes="czyx", version="0.5", sharded=True)
    require_same(run(upload(bucket, image, "data/v.zarr")), run(image))


def test_a_web_server_gives_the_same(site: Site, run: Run) -> None:
    image = write_tiny_image(site.folder / "v.zarr", make_pixels("zyx", "uint8"))
    require_same(run(f"{site.url}/v.zarr"), run(image))
