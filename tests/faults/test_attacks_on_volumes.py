"""Volumes made to do harm: metadata that asks for the impossible, chunks that inflate, links that lead away.

Metadata is refused when the volume is opened; a chunk is refused when it is read, before it is inflated, and costs the
blocks that need it. Nothing in a volume is ever run, and the input is never written to.

What is promised of links: a chunk that is a symbolic link is read, since large stores are built of links, and reading
is all that happens to it. A result never goes through a link: an output that is one is refused, whether or not it
leads anywhere, and replacing a result deletes links in it, not what they lead to. A folder on the way to the output may
be a link; whoever can plant one there owns the folder.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, GzipCodec, ShardingCodec, ZstdCodec

from tests.conftest import Outcome
from tests.tiny import make_pixels, read_arrays, read_provenance, snapshot, write_image
from unet_deploy.errors import (
    InputDataError,
    OutputPathError,
    ReadError,
    UnboundedMetadataError,
    UnsupportedAxesError,
    UnsupportedCodecError,
    UnsupportedDtypeError,
    UnsupportedMetadataError,
)
from unet_deploy.geometry import Interval
from unet_deploy.runtime import open_volume, segment
from unet_deploy.runtime._chunk_guard import DamagedChunkError, check_zstd, inflate
from unet_deploy.runtime.volume import Volume

Cli = Callable[..., Outcome]
Document = dict[str, Any]
SIDE = 64
BOMB = 2**28
"""What a bomb inflates to; its chunk holds 4096 bytes."""
MEMORY = 2**26


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


# ---- metadata


def write_v2(folder: Path, **changes: Any) -> Path:
    array = zarr.create_array(
        folder,
        shape=(1, SIDE, SIDE),
        chunks=(1, SIDE, SIDE),
        dtype="uint8",
        zarr_format=2,
        compressors=numcodecs.Zstd(),
    )
    array[...] = 1
    return edit(folder / ".zarray", changes)


def write_v3(folder: Path, **changes: Any) -> Path:
    array = zarr.create_array(
        folder, shape=(1, SIDE, SIDE), chunks=(1, SIDE, SIDE), dtype="uint8", compressors=ZstdCodec()
    )
    array[...] = 1
    return edit(folder / "zarr.json", changes)


def edit(file: Path, changes: Document) -> Path:
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, **changes}))
    return file.parent


def grid(*chunk: int) -> Document:
    return {"name": "regular", "configuration": {"chunk_shape": chunk}}


def write_filtered(folder: Path, *, name: str) -> Path:
    """Write an array that wants a filter of numcodecs."""
    return write_v2(folder, filters=[{"id": name}])


def sharding(inner: list[Document], *, index: list[Document] | None = None) -> Document:
    """Return the codec of shards of one chunk."""
    index = index or [{"name": "bytes", "configuration": {"endian": "little"}}]
    configuration = {"chunk_shape": [1, SIDE, SIDE], "codecs": inner, "index_codecs": index}
    return {"name": "sharding_indexed", "configuration": configuration}


def write_ome(folder: Path, path: str) -> Path:
    """Write an image whose array is said to lie at `path`."""
    write_image(folder, make_pixels((1, SIDE, SIDE)))
    text = (folder / "zarr.json").read_text()
    (folder / "zarr.json").write_text(text.replace('"path": "0"', f'"path": {json.dumps(path)}'))
    return folder


PICKLES = {"name": "numcodecs.pickle", "configuration": {"protocol": 5}}
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
METADATA: dict[str, tuple[Callable[[Path], Path], type[InputDataError], str]] = {
    "pickle-v2": (lambda p: write_v2(p, compressor={"id": "pickle"}), UnsupportedCodecError, "codec 'pickle' came"),
    "pickle-filter": (lambda p: write_v2(p, filters=[{"id": "pickle"}]), UnsupportedCodecError, "codec 'pickle' came"),
    "pickle-v3": (lambda p: write_v3(p, codecs=[BYTES, PICKLES]), UnsupportedCodecError, "'numcodecs.pickle' came"),
    "codec-of-a-plugin": (
        lambda p: write_v3(p, codecs=[BYTES, {"name": "com.example.run", "configuration": {}}]),
        UnsupportedCodecError,
        "'com.example.run' came",
    ),
    "bz2": (lambda p: write_v2(p, compressor={"id": "bz2", "level": 1}), UnsupportedCodecError, "codec 'bz2' came"),
    "lzma": (lambda p: write_v2(p, compressor={"id": "lzma"}), UnsupportedCodecError, "codec 'lzma' came"),
    "bz2-v3": (
        lambda p: write_v3(p, codecs=[BYTES, {"name": "numcodecs.bz2", "configuration": {"level": 1}}]),
        UnsupportedCodecError,
        "codec 'numcodecs.bz2' came, one of blosc, bytes, crc32c, gzip, sharding_indexed, transpose, zstd was",
    ),
    **{
        f"filter-{name}": (
            partial(write_filtered, name=name),
            UnsupportedCodecError,
            f"codec '{name}' came, no filter was expected",
        )
        for name in ("delta", "fixedscaleoffset", "vlen-utf8", "vlen-bytes", "json2", "msgpack2", "categorize", "zfpy")
    },
    "delta-v3": (
        lambda p: write_v3(p, codecs=[{"name": "numcodecs.delta"}, BYTES]),
        UnsupportedCodecError,
        "codec 'numcodecs.delta' came",
    ),
    "vlen-v3": (
        lambda p: write_v3(p, codecs=[{"name": "vlen-bytes", "configuration": {}}]),
        UnsupportedCodecError,
        "codec 'vlen-bytes' came",
    ),
    "shards-in-shards": (
        lambda p: write_v3(p, codecs=[sharding([sharding([BYTES])])]),
        UnsupportedCodecError,
        "codec 'sharding_indexed' came, one of blosc, bytes, crc32c, gzip, transpose, zstd was expected",
    ),
    "compressed-index": (
        lambda p: write_v3(p, codecs=[sharding([BYTES], index=[BYTES, {"name": "gzip", "configuration": {}}])]),
        UnsupportedCodecError,
        "codec 'gzip' came, one of bytes, crc32c was expected",
    ),
    "strings": (lambda p: write_v3(p, data_type="string"), UnsupportedDtypeError, "data type 'string' came"),
    "bytes-of-any-length": (
        lambda p: write_v3(p, data_type="variable_length_bytes"),
        UnsupportedDtypeError,
        "data type 'variable_length_bytes' came",
    ),
    "long-strings": (lambda p: write_v2(p, dtype="|S100000000"), UnsupportedDtypeError, "data type '|S1+0+' came"),
    "dates": (lambda p: write_v2(p, dtype="<M8[ns]"), UnsupportedDtypeError, "data type '<M8.ns.' came"),
    "separator": (
        lambda p: write_v2(p, dimension_separator="/../../"),
        UnsupportedMetadataError,
        "zarr cannot open the array: .*separator",
    ),
    "separator-v3": (
        lambda p: write_v3(p, chunk_key_encoding={"name": "default", "configuration": {"separator": "/../"}}),
        UnsupportedMetadataError,
        "zarr cannot open the array: .*separator",
    ),
    "names-of-a-plugin": (
        lambda p: write_v3(p, chunk_key_encoding={"name": "com.example.names", "configuration": {}}),
        UnsupportedMetadataError,
        "zarr cannot open the array: .*com.example.names",
    ),
    "long-fill-value": (
        lambda p: write_v3(p, fill_value="f" * 2**20),
        UnsupportedMetadataError,
        r"zarr cannot open the array: .{290,297}\.\.\.\n",
    ),
    "many-axes": (
        lambda p: write_v3(p, shape=[1] * 10**5),
        UnsupportedAxesError,
        "2 to 5 axes",
    ),
    "objects": (lambda p: write_v2(p, dtype="|O"), UnsupportedDtypeError, r"data type '\|O' came"),
    "records": (lambda p: write_v2(p, dtype=[["a", "<u1"]]), UnsupportedDtypeError, "data type .* came"),
    "objects-v3": (lambda p: write_v3(p, data_type="object"), UnsupportedDtypeError, "data type 'object' came"),
    "huge-chunk-v2": (
        lambda p: write_v2(p, shape=[1, 2**30, 2**30], chunks=[1, 2**20, 2**20]),
        UnboundedMetadataError,
        "need 1,099,511,627,776 bytes each, at most",
    ),
    "huge-chunk-v3": (
        lambda p: write_v3(p, chunk_grid=grid(1, 2**20, 2**20)),
        UnboundedMetadataError,
        "need 1,099,511,627,776 bytes each, at most",
    ),
    "wrapping-chunk": (
        lambda p: write_v3(p, chunk_grid=grid(2**32, 2**32, 2**32)),
        UnboundedMetadataError,
        "need 79,228,162,514,264,337,593,543,950,336 bytes each",
    ),
    "huge-extent": (lambda p: write_v3(p, shape=[1, 2**60, 2**60]), UnboundedMetadataError, "pixels an axis"),
    "huge-document": (
        lambda p: write_v3(p, attributes={"text": "A" * 2**24}),
        UnboundedMetadataError,
        "the metadata is larger than 16,777,216 bytes",
    ),
    "deep-document": (lambda p: deepen(write_v3(p)), UnsupportedMetadataError, "the metadata is not valid JSON"),
    "path-above": (lambda p: write_ome(p, "../secret.zarr/0"), UnsupportedMetadataError, "path inside the group"),
    "path-absolute": (lambda p: write_ome(p, "/secret.zarr/0"), UnsupportedMetadataError, "path inside the group"),
    "path-of-windows": (lambda p: write_ome(p, "..\\secret"), UnsupportedMetadataError, "path inside the group"),
}


def deepen(folder: Path) -> Path:
    (folder / "zarr.json").write_text("[" * 100_000)
    return folder


@pytest.mark.parametrize("name", METADATA)
def test_hostile_metadata_is_refused(name: str, tmp_path: Path, cli: Cli, tiny_model: Path) -> None:
    mount, error, words = METADATA[name]
    mount(tmp_path / "v.zarr")
    before = snapshot(tmp_path)
    with pytest.raises(error, match=words) as caught:
        open_volume(tmp_path / "v.zarr")
    assert caught.value.exit_code == 3
    assert caught.value.fix
    for words_ in (("segment", "v.zarr", "-m", tiny_model, "-o", "out.zarr"), ("inspect", "v.zarr")):
        outcome = cli(*words_)
        assert (outcome.code, outcome.out) == (3, "")
        assert f"error[{error.code}]" in outcome.err
        assert "\n  fix: " in outcome.err
    assert snapshot(tmp_path) == before


def test_pickled_objects_in_a_chunk_are_pixels_or_damage_never_objects(tmp_path: Path) -> None:
    write_v2(tmp_path / "v.zarr")
    (chunk,) = (path for path in (tmp_path / "v.zarr").rglob("0*") if path.is_file())
    chunk.write_bytes(pickle.dumps(Payload(tmp_path / "canary")))
    with pytest.raises(ReadError, match="a zstd chunk has no frame at byte 0"):
        read(open_volume(tmp_path / "v.zarr"))
    assert not (tmp_path / "canary").exists()


# ---- chunks that inflate


def read(volume: Volume) -> Any:
    return volume.read(z=Interval(0, 1), y=Interval(0, SIDE), x=Interval(0, SIDE))


def repeating_frame(n_bytes: int, *, declared: int | None = None, value: int = 7) -> bytes:
    """Return a zstd frame in which every 4 bytes stand for up to 128 KiB (RFC 8878, sections 3.1.1.1 and 3.1.1.2)."""
    frame = bytearray(b"\x28\xb5\x2f\xfd")
    frame += b"\x00\x58" if declared is None else b"\x80\x58" + declared.to_bytes(4, "little")
    while n_bytes:
        size = min(n_bytes, 2**17)
        n_bytes -= size
        frame += ((not n_bytes) | 1 << 1 | size << 3).to_bytes(3, "little") + bytes([value])
    return bytes(frame)


def full_blocks_frame(count: int) -> bytes:
    """Return a zstd frame without a size, of compressed blocks: cut out of one that was compressed whole."""
    frame = bytes(numcodecs.Zstd().encode(bytes(2**17)))
    start = 4 + 1 + 4  # magic, descriptor of a single segment, size
    block = frame[start:]
    kind = int.from_bytes(block[:3], "little")
    if kind >> 1 & 3 != 2:  # this library repeats where it could compress
        block = (1 | 2 << 1 | 5 << 3).to_bytes(3, "little") + b"\x03\x00\x00\x00\x00"
        kind = int.from_bytes(block[:3], "little")
    first = (kind & ~1).to_bytes(3, "little") + block[3:]
    return b"\x28\xb5\x2f\xfd\x00\x58" + first * (count - 1) + block


SKIPPED = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
ZEROS = bytes(BOMB)


@cache
def gzip_bomb() -> bytes:
    return gzip.compress(ZEROS, 9, mtime=0)


BOMBS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "blosc": ("blosc", lambda: bytes(numcodecs.Blosc("zstd", 9).encode(ZEROS)), "a blosc chunk declares 268,435,456"),
    "zstd": ("zstd", lambda: bytes(numcodecs.Zstd().encode(ZEROS)), "a zstd chunk declares 268,435,456 bytes"),
    "zstd-without-a-size": ("zstd", lambda: repeating_frame(BOMB), "a zstd chunk may inflate to"),
    "zstd-behind-another": (
        "zstd",
        lambda: bytes(numcodecs.Zstd().encode(bytes(100))) + repeating_frame(BOMB),
        "a zstd chunk may inflate to",
    ),
    "zstd-behind-nothing": ("zstd", lambda: SKIPPED + repeating_frame(BOMB), "a zstd chunk may inflate to"),
    "zstd-that-lies": ("zstd", lambda: repeating_frame(BOMB, declared=4096), "cannot be read"),
    "zstd-of-full-blocks": ("zstd", lambda: full_blocks_frame(2048), "a zstd chunk may inflate to"),
    "gzip": ("gzip", gzip_bomb, "a gzip chunk inflates beyond the [0-9,]+ bytes it may hold"),
    "gzip-of-members": (
        "gzip",
        lambda: gzip.compress(bytes(100), mtime=0) + gzip_bomb(),
        "a gzip chunk inflates beyond the [0-9,]+ bytes it may hold",
    ),
    "lz4": ("lz4", lambda: bytes(numcodecs.LZ4().encode(ZEROS)), "a lz4 chunk declares 268,435,456 bytes"),
    "zlib": ("zlib", lambda: zlib.compress(ZEROS, 9), "a zlib chunk inflates beyond the [0-9,]+ bytes it may hold"),
}


@cache
def bomb(name: str) -> bytes:
    """Return a chunk of `BOMBS`."""
    return BOMBS[name][1]()


V2 = {
    "blosc": numcodecs.Blosc(),
    "zstd": numcodecs.Zstd(),
    "gzip": numcodecs.GZip(),
    "lz4": numcodecs.LZ4(),
    "zlib": numcodecs.Zlib(),
}
V3: dict[str, Any] = {"blosc": zarr.codecs.BloscCodec(), "zstd": ZstdCodec(), "gzip": GzipCodec()}
KINDS = [(name, kind) for name in BOMBS for kind in ("v2", "v3", "shard") if kind == "v2" or BOMBS[name][0] in V3]


def mount(folder: Path, codec: str, kind: str, chunk: bytes) -> Path:
    """Write an array of one chunk with these bytes in the chunk's place."""
    if kind == "v2":
        zarr.create_array(
            folder, shape=(1, SIDE, SIDE), chunks=(1, SIDE, SIDE), dtype="uint8", zarr_format=2, compressors=V2[codec]
        )[...] = 1
        (place,) = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".z"))
        place.write_bytes(chunk)
        return folder
    inner = [BytesCodec(), V3[codec]]
    sharding = ShardingCodec(chunk_shape=(1, SIDE, SIDE), codecs=inner, index_codecs=[BytesCodec()])
    zarr.create_array(
        folder,
        shape=(1, SIDE, SIDE),
        chunks=(1, SIDE, SIDE),
        dtype="uint8",
        **({"serializer": sharding, "compressors": None} if kind == "shard" else {"compressors": V3[codec]}),
    )[...] = 1
    index = np.array([0, len(chunk)], "<u8").tobytes() if kind == "shard" else b""
    (folder / "c" / "0" / "0" / "0").write_bytes(chunk + index)
    return folder


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_chunk_that_inflates_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    codec, _, words = BOMBS[name]
    assert len(bomb(name)) < BOMB // 50  # or it is none
    path = mount(tmp_path / "v.zarr", codec, kind, bomb(name))
    with pytest.raises(ReadError, match=words) as caught:
        read(open_volume(path))
    assert caught.value.exit_code == 3
    assert "copy the volume again" in caught.value.fix


@pytest.mark.parametrize("kind", ["v2", "v3", "shard"])
def test_a_sparse_file_in_a_chunks_place_is_not_read(kind: str, tmp_path: Path) -> None:
    """It costs whoever sends it nothing."""
    pixels = make_pixels((1, SIDE, SIDE))
    path = mount(tmp_path / "v.zarr", "zstd", kind, bytes(V2["zstd"].encode(pixels.tobytes())))
    make_sparse(path)
    with pytest.raises(ReadError, match=r"0: 17,179,869,184 bytes would be read, at most 1,057,792 were expected"):
        read(open_volume(path))


def make_sparse(path: Path, size: int = 2**34) -> None:
    """Make an array's only chunk (or shard) a file that is empty for long."""
    (place,) = (file for file in path.rglob("0*") if file.is_file())
    with place.open("r+b") as stream:
        try:
            stream.truncate(size)
        except OSError:
            pytest.skip("the file system has no sparse files of this size")


OFFSETS = {
    "behind-the-end": (2**40, 4096, "is cut short: 0 bytes came, 4096 were expected"),
    "long": (0, 2**40, "1,099,511,627,776 bytes would be read, at most 1,060,864 were expected"),
    "wrapping": (2**64 - 2, 4096, "cannot be read"),
    "wrapping-length": (16, 2**64 - 2, "cannot be read"),
    "into-the-index": (8, 4096, "cannot be read"),
}


@pytest.mark.parametrize("name", OFFSETS)
@pytest.mark.parametrize("side", [SIDE, SIDE // 2], ids=["all-of-it", "a-part"])
def test_a_shards_index_that_lies(name: str, side: int, tmp_path: Path) -> None:
    """Whether the shard is read whole or by its parts."""
    offset, length, words = OFFSETS[name]
    path = tmp_path / "v.zarr"
    half = SIDE // 2
    codec = ShardingCodec(chunk_shape=(1, half, half), codecs=[BytesCodec(), ZstdCodec()], index_codecs=[BytesCodec()])
    zarr.create_array(
        path, shape=(1, SIDE, SIDE), chunks=(1, SIDE, SIDE), dtype="uint8", serializer=codec, compressors=None
    )[...] = make_pixels((1, SIDE, SIDE))
    shard = path / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[-64:-48] = np.array([offset, length], "<u8").tobytes()
    shard.write_bytes(data)
    with pytest.raises(ReadError, match=words if side < SIDE else "cannot be read"):
        open_volume(path).read(z=Interval(0, 1), y=Interval(0, side), x=Interval(0, side))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = mount(tmp_path / "v.zarr", "zstd", "v3", bomb("zstd"))
    chunk = path / "c" / "0" / "0" / "0"
    volume = open_volume(path)
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(ReadError, match="c/0/0/0 is there, but is no file"):
        read(volume)
    (path / "zarr.json").unlink()
    os.mkfifo(path / "zarr.json")
    with pytest.raises(ReadError, match=r"the metadata cannot be read\n.*zarr\.json\n.*it is no regular file"):
        open_volume(path)


def test_a_blosc_header_does_not_say_how_much_memory_is_taken(tmp_path: Path) -> None:
    """Its third number is the size of a block, for which decoders take memory of their own."""
    chunk = bytearray(numcodecs.Blosc("zstd", 9).encode(make_pixels((1, SIDE, SIDE)).tobytes()))
    chunk[8:12] = (2**31 - 1).to_bytes(4, "little")
    path = mount(tmp_path / "v.zarr", "blosc", "v3", bytes(chunk))
    with pytest.raises(ReadError, match="cannot be read"):
        read(open_volume(path))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_an_honest_chunk_of_the_same_kind_is_read(name: str, kind: str, tmp_path: Path) -> None:
    """Or the test above would prove nothing."""
    pixels = make_pixels((1, SIDE, SIDE))
    codec = BOMBS[name][0]
    path = mount(tmp_path / "v.zarr", codec, kind, bytes(V2[codec].encode(pixels.tobytes())))
    assert np.array_equal(read(open_volume(path))[0, 0, 0], pixels[0])


PROGRAM = """
import json, resource, sys
from unet_deploy.geometry import Interval
from unet_deploy.runtime import open_volume
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
window = {"z": Interval(0, 1), "y": Interval(0, 64), "x": Interval(0, 64)}
open_volume(sys.argv[1]).read(**window)
before, errors = peak(), []
for path in sys.argv[2:]:
    try:
        open_volume(path).read(**window)
    except Exception as error:
        errors.append(type(error).__name__)
print(json.dumps([errors, peak() - before]))
"""


def test_no_bomb_takes_memory(tmp_path: Path) -> None:
    """All of them in one process, whose greatest size is the system's to say."""
    pytest.importorskip("resource", reason="Windows does not say how large a process was")
    honest = mount(tmp_path / "honest", "gzip", "v3", gzip.compress(bytes(SIDE * SIDE)))
    paths = [mount(tmp_path / f"{name}-{kind}", BOMBS[name][0], kind, bomb(name)) for name, kind in KINDS]
    for kind in ("v2", "v3", "shard"):
        paths.append(mount(tmp_path / f"sparse-{kind}", "zstd", kind, bomb("zstd")))
        make_sparse(paths[-1])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, honest, *paths], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    errors, grown = json.loads(done.stdout)
    assert errors == ["ReadError"] * len(paths)
    assert grown < MEMORY


def test_a_bomb_costs_its_block_and_no_more(tmp_path: Path, cli: Cli, tiny_model: Path) -> None:
    write_image(tmp_path / "v.zarr", make_pixels((3, 60, 60)))
    chunk = tmp_path / "v.zarr" / "0" / "c" / "1" / "0" / "0"
    chunk.write_bytes(repeating_frame(BOMB))
    outcome = cli("segment", "v.zarr", "-m", tiny_model, "-o", "out.zarr", "--device", "cpu")
    assert outcome.code == 6
    assert "1 of 3 blocks failed" in outcome.err
    (failed,) = read_provenance(tmp_path / "out.zarr")["failed_blocks"]
    assert "the window z 1:2, y 0:60, x 0:60 cannot be read" in failed["reason"]
    labels = read_arrays(tmp_path / "out.zarr")["0"]
    assert [bool(labels[:, z].any()) for z in range(3)] == [True, False, True]


# ---- what is no bomb


def test_a_stream_without_a_size_is_read(tmp_path: Path) -> None:
    """As other libraries write it: in one frame, in several, and behind one to be skipped."""
    half = SIDE * SIDE // 2
    frames = repeating_frame(half, value=3) + SKIPPED + repeating_frame(half, value=9)
    path = mount(tmp_path / "v.zarr", "zstd", "v3", frames)
    assert sorted(np.unique(read(open_volume(path)))) == [3, 9]
    members = gzip.compress(bytes([3]) * half, mtime=0) + gzip.compress(bytes([9]) * half, mtime=0) + bytes(10)
    for kind in ("v2", "v3", "shard"):
        path = mount(tmp_path / f"{kind}.zarr", "gzip", kind, members)
        assert sorted(np.unique(read(open_volume(path)))) == [3, 9]


def test_frames_are_counted_without_being_inflated() -> None:
    check_zstd(b"", 0)
    check_zstd(repeating_frame(1000), 1000)
    check_zstd(SKIPPED, 0)
    check_zstd(full_blocks_frame(100), 4096)  # 12.5 MiB, if they were full: a stream that was flushed early and often
    with pytest.raises(
        DamagedChunkError, match=r"^a zstd chunk may inflate to 1,001 bytes or more, at most 1,000 were"
    ):
        check_zstd(repeating_frame(1001), 1000)
    with pytest.raises(DamagedChunkError, match=r"^a zstd chunk has no frame at byte 12$"):
        check_zstd(SKIPPED + b"something else", 1000)
    for cut in (4, 5, 6, 8):
        with pytest.raises(DamagedChunkError, match=rf"^a zstd chunk of {cut} bytes is cut short$"):
            check_zstd(repeating_frame(1000)[:cut], 1000)


@pytest.mark.parametrize("codec", ["gzip", "zlib"])
def test_deflated_bytes_are_whole_or_refused(codec: str) -> None:
    data = make_pixels((1, SIDE, SIDE)).tobytes()
    packed = gzip.compress(data, mtime=0) if codec == "gzip" else zlib.compress(data)
    assert inflate(packed, len(data), codec=codec) == data
    assert inflate(b"", 10, codec=codec) == b""
    with pytest.raises(DamagedChunkError, match=rf"^a {codec} chunk inflates beyond the 4,095 bytes it may hold$"):
        inflate(packed, len(data) - 1, codec=codec)
    with pytest.raises(DamagedChunkError, match=rf"^a {codec} chunk of {len(packed) - 1} bytes is cut short$"):
        inflate(packed[:-1], len(data), codec=codec)
    with pytest.raises(DamagedChunkError, match=rf"^a {codec} chunk of \d+ bytes is damaged: Error -3 while"):
        inflate(packed[:-3] + b"abc", len(data), codec=codec)


# ---- links


def link(place: Path, target: Path) -> Path:
    try:
        place.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("this user may not make symbolic links")
    return place


def test_a_chunk_that_is_a_link_is_read_and_never_written(tmp_path: Path, tiny_model: Path) -> None:
    pixels = make_pixels((1, SIDE, SIDE))
    write_image(tmp_path / "v.zarr", pixels)
    chunk = tmp_path / "v.zarr" / "0" / "c" / "0" / "0" / "0"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(chunk.read_bytes())
    chunk.unlink()
    link(chunk, elsewhere)
    before = snapshot(tmp_path)
    assert np.array_equal(read(open_volume(tmp_path / "v.zarr"))[0, 0, 0], pixels[0])
    segment(tmp_path / "v.zarr", model=tiny_model, output=tmp_path / "out.zarr", device="cpu")
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("target", ["nothing", "folder", "result"])
def test_a_result_does_not_go_through_a_link(target: str, tmp_path: Path, cli: Cli, tiny_model: Path) -> None:
    write_image(tmp_path / "v.zarr", make_pixels((1, 30, 30)))
    precious = tmp_path / "precious"
    if target == "folder":
        precious.mkdir()
        (precious / "key").write_text("secret")
    elif target == "result":
        segment(tmp_path / "v.zarr", model=tiny_model, output=precious, device="cpu")
    link(tmp_path / "out.zarr", precious)
    before = snapshot(tmp_path)
    for more in ((), ("--overwrite",)):
        outcome = cli("segment", "v.zarr", "-m", tiny_model, "-o", "out.zarr", "--device", "cpu", *more)
        assert outcome.code == 3, outcome
        assert "error[output-path]: the output out.zarr is a link" in outcome.err
        assert "\n  fix: --output " in outcome.err
    assert (tmp_path / "out.zarr").is_symlink()
    assert snapshot(tmp_path) == before


def test_a_link_into_the_volume_is_seen_through(tmp_path: Path, tiny_model: Path) -> None:
    volume = write_image(tmp_path / "v.zarr", make_pixels((1, 30, 30)))
    link(tmp_path / "results", volume)
    before = snapshot(tmp_path)
    with pytest.raises(OutputPathError, match="lie inside each other") as caught:
        segment(volume, model=tiny_model, output=tmp_path / "results" / "out.zarr", device="cpu")
    assert "would change or delete the input" in caught.value.details[0]
    assert snapshot(tmp_path) == before


def test_replacing_a_result_deletes_links_not_what_they_lead_to(tmp_path: Path, tiny_model: Path) -> None:
    volume = write_image(tmp_path / "v.zarr", make_pixels((1, 30, 30)))
    output = tmp_path / "out.zarr"
    segment(volume, model=tiny_model, output=output, device="cpu")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "key").write_text("secret")
    link(output / "more", precious)
    segment(volume, model=tiny_model, output=output, device="cpu", overwrite=True)
    assert (precious / "key").read_text() == "secret"
    assert not (output / "more").exists()
    assert [path.name for path in precious.iterdir()] == ["key"]


@pytest.mark.parametrize("size", [0, 1, 16 * 1024 - 30, 16 * 1024, 100_000])
@pytest.mark.parametrize("padding", [0, 5, 40_000])
def test_members_of_gzip_are_read_wherever_they_end(size: int, padding: int) -> None:
    """What is read in pieces must not lose what lies across two of them."""
    noise = np.random.default_rng(size).bytes(size)
    data = (gzip.compress(noise) + b"\0" * padding) * 3 + gzip.compress(b"end")
    assert inflate(data, 3 * size + 3, codec="gzip") == noise * 3 + b"end"
    with pytest.raises(DamagedChunkError, match="inflates beyond"):
        inflate(data, 3 * size + 2, codec="gzip")
    with pytest.raises(DamagedChunkError, match="is cut short"):
        inflate(data[:-1], 3 * size + 3, codec="gzip")
