"""What is written without zarr is what zarr would write, file by file; each is whole or not there, and reads back."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import ZstdCodec

from tests.faults.failing_files import failing
from tests.tiny import no_file_above
from tests.unit.test_output_unit import make_spec
from unet_deploy.errors import NoSpaceError
from unet_deploy.geometry import Interval
from unet_deploy.runtime.chunk_writer import ChunkWriter, Place, read_back, read_storage
from unet_deploy.runtime.journal import FOLDER
from unet_deploy.runtime.output import create_array, create_output, write_block
from unet_deploy.runtime.output_paths import remove_partial_files

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Format = Literal[2, 3]
FORMATS: tuple[Format, ...] = (2, 3)


def make_array(
    path: Path, shape: Shape, chunks: Shape, *, shards: Shape | None = None, zarr_format: Format = 3, **options: Any
) -> zarr.Array[Any]:
    """Make an array as `output.create_array` does."""
    is_v3 = zarr_format == 3
    options = {
        "dtype": "uint8",
        "compressors": ZstdCodec(level=1) if is_v3 else numcodecs.Zstd(level=1),
        "fill_value": 0,
        "chunk_key_encoding": {"name": "default" if is_v3 else "v2", "separator": "/"},
        **options,
    }
    return zarr.create_array(path, shape=shape, chunks=chunks, shards=shards, zarr_format=zarr_format, **options)


def write(path: Path, place: Place, values: Array) -> bool:
    with ChunkWriter() as writer:
        return writer.write(path, place, values, where="while writing it")


def files_of(path: Path) -> dict[str, tuple[bytes, int]]:
    """Return the content of every file, and who may read and write it."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return {file.relative_to(path).as_posix(): (file.read_bytes(), file.stat().st_mode) for file in files}


def whole(shape: Shape) -> Place:
    return tuple(slice(0, n) for n in shape)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[dict[str, Any], Place]:
    """Return how an array is made, and a box of whole units of it."""
    zarr_format = draw(st.sampled_from(FORMATS))
    n_axes = draw(st.integers(1, 4))
    shape, chunks, units, place = [], [], [], []
    for _ in range(n_axes):
        n, chunk = draw(st.integers(1, 20)), draw(st.integers(1, 8))
        unit = chunk * (draw(st.integers(1, 3)) if zarr_format == 3 else 1)
        count = -(-n // unit)
        first = draw(st.integers(0, count - 1))
        last = draw(st.integers(first + 1, count))
        shape.append(n)
        chunks.append(chunk)
        units.append(unit)
        place.append(slice(first * unit, min(last * unit, n)))
    is_sharded = zarr_format == 3 and draw(st.booleans())
    options = {
        "shape": tuple(shape),
        "chunks": tuple(chunks if is_sharded else units),
        "shards": tuple(units) if is_sharded else None,
        "zarr_format": zarr_format,
        "dtype": draw(st.sampled_from(["uint8", "uint16", "uint32"])),
    }
    return options, tuple(place)


@given(made=boxes(), seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.02, 1.0]))
@settings(max_examples=60, deadline=None)
def test_files_are_those_of_zarr(tmp_path_factory: Any, made: tuple[Any, Place], seed: int, share: float) -> None:
    options, place = made
    folder = tmp_path_factory.mktemp("arrays")
    random = np.random.default_rng(seed)
    before = random.integers(0, 3, options["shape"]).astype(options["dtype"])
    shape = tuple(side.stop - side.start for side in place)
    values = (random.integers(0, 200, shape) * (random.random(shape) < share)).astype(options["dtype"])
    for name in ("ours", "zarr"):
        make_array(folder / name, **options)[...] = before
    assert write(folder / "ours", place, values)
    zarr.open_array(folder / "zarr", mode="r+")[place] = values
    assert files_of(folder / "ours") == files_of(folder / "zarr")
    before[place] = values
    np.testing.assert_array_equal(zarr.open_array(folder / "ours", mode="r")[...], before)
    for box in (place, whole(options["shape"])):
        found = read_back(folder / "ours", box)
        assert (found is None) == (options["shards"] is not None)
        if found is not None:
            np.testing.assert_array_equal(found, before[box], strict=True)


@pytest.mark.parametrize(("zarr_format", "shard"), [(2, None), (3, None), (3, (1, 32, 32))])
@pytest.mark.parametrize("dtype", ["uint8", "uint32"])
def test_what_is_made_here_is_written_here(tmp_path: Path, zarr_format: Format, dtype: Any, shard: Any) -> None:
    """The fast path is taken, in every layout that an output may have."""
    spec = make_spec(tmp_path, zarr_format=zarr_format, ome_version="0.5" if zarr_format == 3 else "0.4", shard=shard)
    create_array(spec, spec.path, "0", kind="probabilities", level=0, dtype=dtype)
    storage = read_storage(Path(spec.path, "0"))
    assert storage is not None
    assert storage.shape == (2, 2, 40, 50)
    assert storage.unit == (1, *spec.grid.unit)
    assert storage.dtype == np.dtype(dtype)
    assert storage.level == 1
    assert (storage.inner is None) == (shard is None)


def test_a_view_with_holes_is_written_as_it_reads(tmp_path: Path) -> None:
    make_array(tmp_path / "a", (8, 6), (4, 4))
    values = np.arange(400, dtype=np.uint8).reshape(20, 20)[2:18:2, 19:1:-3]
    assert write(tmp_path / "a", whole((8, 6)), values)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a")[...], values)


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": ZstdCodec(level=1, checksum=True)},
        {"compressors": numcodecs.Zstd(level=1, checksum=True), "zarr_format": 2},
        {"compressors": numcodecs.Blosc(), "zarr_format": 2},
        {"compressors": None},
        {"compressors": None, "zarr_format": 2},
        {"filters": [numcodecs.Delta("u1")], "zarr_format": 2},
        {"order": "F", "zarr_format": 2},
        {"fill_value": 1},
        {"fill_value": 1, "zarr_format": 2},
        {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
        {"chunk_key_encoding": {"name": "default", "separator": "."}},
        {"chunk_key_encoding": {"name": "v2", "separator": "."}, "zarr_format": 2},
        {"dtype": "float32"},
        {"dtype": ">u2", "zarr_format": 2},
        {"dtype": "float32", "zarr_format": 2},
    ],
    ids=str,
)
def test_what_is_stored_otherwise_is_left_to_zarr(tmp_path: Path, options: dict[str, Any]) -> None:
    array = make_array(tmp_path / "a", (4, 4), (2, 2), **options)
    before = files_of(tmp_path / "a")
    assert not write(tmp_path / "a", whole((4, 4)), np.ones((4, 4), array.dtype))
    assert read_back(tmp_path / "a", whole((4, 4))) is None
    assert files_of(tmp_path / "a") == before


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    edit(document)
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(storage_transformers=[{"name": "x"}]),
        lambda d: d.update(something_new=1),
        lambda d: d.update(codecs=[]),
        lambda d: d.update(codecs=[*d["codecs"], {"name": "crc32c"}]),
        lambda d: d.update(chunk_grid={"name": "rectilinear", "configuration": {"chunk_shape": [2, 2]}}),
        lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[2]),
        lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[2, 0]),
        lambda d: d.update(data_type=["uint8"]),
        lambda d: d.update(node_type="group"),
        lambda d: d.pop("codecs"),
        lambda d: d["codecs"][1]["configuration"].update(level="1"),
    ],
)
def test_metadata_that_says_anything_else_is_left_to_zarr(tmp_path: Path, edit: Any) -> None:
    make_array(tmp_path / "a", (4, 4), (2, 2))
    assert read_storage(tmp_path / "a") is not None
    change(tmp_path / "a" / "zarr.json", edit)
    assert read_storage(tmp_path / "a") is None


@pytest.mark.parametrize("place", [(0, 3, 0, 4), (1, 4, 0, 4), (0, 2, 0, 6), (0, 0, 0, 4), (0, 4)])
def test_a_box_of_parts_of_chunks_is_left_to_zarr(tmp_path: Path, place: tuple[int, ...]) -> None:
    make_array(tmp_path / "a", (5, 4), (2, 4))
    sides = tuple(slice(start, stop) for start, stop in zip(place[::2], place[1::2], strict=True))
    assert read_back(tmp_path / "a", sides) is None
    assert not write(tmp_path / "a", sides, np.ones([side.stop - side.start for side in sides], np.uint8))
    assert write(tmp_path / "a", (slice(4, 5), slice(0, 4)), np.ones((1, 4), np.uint8))  # the last is whole there


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 2), (5, 4)])
def test_values_of_another_shape_are_left_to_zarr(tmp_path: Path, shape: Shape) -> None:
    """It broadcasts or refuses them; a part of a box would else be 0."""
    make_array(tmp_path / "a", (4, 4), (2, 2))[...] = 3
    before = files_of(tmp_path / "a")
    assert not write(tmp_path / "a", whole((4, 4)), np.ones(shape, np.uint8))
    assert files_of(tmp_path / "a") == before


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"zarr_format": 3}', '{"zarr_format": 2}', "[" * 100_000])
def test_metadata_that_is_none_is_left_to_zarr(tmp_path: Path, text: str) -> None:
    (tmp_path / "zarr.json").write_text(text, encoding="utf-8")
    assert read_storage(tmp_path) is None
    assert read_storage(tmp_path / "absent") is None


def test_an_array_that_is_gone_is_no_success(tmp_path: Path) -> None:
    """Nothing is written where the output was deleted while a run goes on."""
    spec = make_spec(tmp_path)
    create_output(spec, fingerprint={}, provenance={}, overwrite=False).close()
    shutil.rmtree(spec.path)
    with pytest.raises(FileNotFoundError):
        write_block(
            spec,
            t=0,
            z=Interval(0, 1),
            y=Interval(0, 16),
            x=Interval(0, 16),
            labels=np.ones((1, 16, 16), np.uint8),
            probabilities=None,
        )
    assert not Path(spec.path).exists()


def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    make_array(tmp_path / "a", (8, 8), (2, 2))[...] = 1
    before = files_of(tmp_path / "a")
    with (
        failing(r"/a/c/2/1\.[0-9a-f]{32}\.partial$", code=errno.ENOSPC, writing=True) as fault,
        pytest.raises(NoSpaceError, match=r"^the disk is full: .*\n  while writing it\n") as caught,
    ):
        write(tmp_path / "a", whole((8, 8)), np.full((8, 8), 2, np.uint8))
    assert len(fault.failed) == 1
    assert caught.value.fix == "free space, then give the same command again"
    after = files_of(tmp_path / "a")
    assert after.keys() == before.keys()
    assert after["c/2/1"] == before["c/2/1"]
    assert after["c/0/0"] != before["c/0/0"]


def test_a_disk_that_fills_in_the_middle_of_a_file_leaves_the_chunk_that_was_there(tmp_path: Path) -> None:
    make_array(tmp_path / "a", (256, 256), (256, 256))[...] = 1
    before = files_of(tmp_path / "a")
    values = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    with (
        no_file_above(10_000),
        pytest.raises(NoSpaceError, match=r"^the disk is full: File too large\n  while writing it\n"),
    ):
        write(tmp_path / "a", whole((256, 256)), values)
    assert files_of(tmp_path / "a") == before


def test_another_error_passes_and_the_chunk_that_was_there_stays(tmp_path: Path) -> None:
    make_array(tmp_path / "a", (2, 2), (2, 2))[...] = 1
    before = files_of(tmp_path / "a")
    with (
        failing(r"\.partial$", code=errno.EACCES, writing=True),
        pytest.raises(PermissionError, match="Permission denied"),
    ):
        write(tmp_path / "a", whole((2, 2)), np.full((2, 2), 2, np.uint8))
    assert files_of(tmp_path / "a") == before


def test_what_a_kill_leaves_is_no_chunk_and_is_removed(tmp_path: Path) -> None:
    array = make_array(tmp_path / "a", (2, 4), (2, 2))
    with failing(r"\.partial$", writing=True, times=1) as fault, pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "a", (slice(0, 2), slice(0, 2)), np.ones((2, 2), np.uint8))
    drafts = [*fault.failed]  # where a kill would leave a part of a file
    assert len(drafts) == 1
    Path(drafts[0]).write_bytes(b"half")
    assert not array[...].any()
    remove_partial_files(tmp_path / "a")
    assert {*files_of(tmp_path / "a")} == {"zarr.json"}


def test_what_fails_in_the_context_ends_it(tmp_path: Path) -> None:
    make_array(tmp_path / "a", (4, 4), (2, 2))

    def fail() -> None:
        with ChunkWriter() as writer:
            assert writer.write(tmp_path / "a", whole((4, 4)), np.ones((4, 4), np.uint8), where="it")
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert not [name for name in files_of(tmp_path / "a") if name.endswith(".partial")]


@pytest.mark.parametrize("content", [b"", b"no chunk", bytes(numcodecs.Zstd().encode(b"short"))])
def test_a_damaged_chunk_is_never_read_as_something(tmp_path: Path, content: bytes) -> None:
    make_array(tmp_path / "a", (4, 4), (2, 2))[...] = 1
    (tmp_path / "a/c/1/1").write_bytes(content)
    with pytest.raises((RuntimeError, ValueError)):
        read_back(tmp_path / "a", whole((4, 4)))


def test_an_output_of_zeros_stores_no_chunks(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, block=(1, 48, 64))
    create_output(spec, fingerprint={}, provenance={}, overwrite=False).close()
    for value in (3, 0):
        write_block(
            spec,
            t=0,
            z=Interval(0, 1),
            y=Interval(0, 40),
            x=Interval(0, 50),
            labels=np.full((1, 40, 50), value, np.uint8),
            probabilities=np.full((2, 1, 40, 50), value, np.uint8),
        )
        chunks = [name for name in files_of(Path(spec.path)) if "c/" in name and FOLDER not in name]
        assert len(chunks) == (3 * 12 if value else 0)
