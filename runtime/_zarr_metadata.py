"""Zarr metadata documents, read and checked before zarr sees them.

1. `read_node` reads ``zarr.json``, or ``.zarray``/``.zgroup`` with ``.zattrs``, of a bounded size: array or group.
2. `check_array` refuses what the runtime cannot read or must not allocate: data types, codecs outside the allow-list,
   chunks above 2 GiB, grids that are not regular.
3. It returns the document that zarr is then given, so what was checked is what is used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from unet_deploy.errors import (
    ReadError,
    UnboundedMetadataError,
    UnsupportedAxesError,
    UnsupportedCodecError,
    UnsupportedDtypeError,
    UnsupportedMetadataError,
)
from unet_deploy.runtime._remote import Location, RemoteDirectory
from unet_deploy.runtime._retry import read_again

Document = dict[str, Any]

INPUT_DTYPES = ("uint8", "uint16", "int16", "float16", "float32")
"""What a network is given; labels and scores of other programs have more."""
ITEM_BYTES = {
    "bool": 1,
    **{f"{sign}{bits}": bits // 8 for sign in ("uint", "int") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": bits // 8 for bits in (16, 32, 64)},
}
"""Every data type that can be read, for those who ask for it."""
V2_COMPRESSORS = ("blosc", "gzip", "lz4", "zlib", "zstd")
V3_CODECS = ("blosc", "bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zstd")
INDEX_CODECS = ("bytes", "crc32c")
MAX_DOCUMENT_BYTES = 16 * 2**20
MAX_CHUNK_BYTES = 2 * 2**30
MAX_SHARD_CHUNKS = 2**22
MAX_EXTENT = 2**40
MAX_DIMENSIONS = 5

_V2_DTYPES = {"b1" if name == "bool" else f"{name[0]}{size}": name for name, size in ITEM_BYTES.items()}
_FIX_METADATA = "write the array again with a current Zarr library"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An array's or group's documents, not yet checked."""

    kind: Literal["array", "group"]
    zarr_format: Literal[2, 3]
    file: Location
    document: Document
    attributes: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayMetadata:
    """A checked array; `document` is what zarr is given, `file` where it came from."""

    zarr_format: Literal[2, 3]
    file: Location
    document: Document
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    codecs: tuple[str, ...]
    names: tuple[str | None, ...] | None


def read_node(directory: Location) -> Node | None:
    """Return the Zarr node at a directory, None if there is none.

    Where v2 and v3 documents stand side by side, v3 is read.

    Raises
    ------
    UnsupportedMetadataError
        If a document is no JSON object, or its ``zarr_format`` or ``node_type`` is unknown.
    UnboundedMetadataError
        If a document is larger than 16 MiB.
    ReadError
        If a document exists and cannot be read.
    """
    file = directory / "zarr.json"
    document = _load(file)
    if document is not None:
        kind = document.get("node_type")
        _require(document.get("zarr_format") == 3, file, f"zarr_format is {document.get('zarr_format')!r}, not 3")
        if kind not in ("array", "group"):
            raise _refuse(file, f"node_type is {kind!r}, 'array' or 'group' was expected")
        attributes = document.get("attributes", {})
        _require(isinstance(attributes, dict), file, "attributes are no object")
        return Node(kind=kind, zarr_format=3, file=file, document=document, attributes=attributes)
    attributes = _load(directory / ".zattrs")
    kinds: tuple[Literal["array", "group"], ...] = ("array", "group")
    for kind, name in zip(kinds, (".zarray", ".zgroup"), strict=True):
        file = directory / name
        document = _load(file)
        if document is not None:
            _require(document.get("zarr_format") == 2, file, f"zarr_format is {document.get('zarr_format')!r}, not 2")
            return Node(kind=kind, zarr_format=2, file=file, document=document, attributes=attributes or {})
    if attributes is not None:
        return Node(kind="group", zarr_format=2, file=directory / ".zattrs", document={}, attributes=attributes)
    return None


def _load(file: Location) -> Document | None:
    try:
        raw = _read_bytes(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ReadError:
        raise  # it says it itself
    except OSError as error:
        fix = "check the file's permissions and the disk"
        raise ReadError("the metadata cannot be read", f"in {file}", str(error), fix=fix) from error
    if raw is None:
        return None
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise UnboundedMetadataError(
            f"the metadata is larger than {MAX_DOCUMENT_BYTES:,} bytes", f"in {file}", fix=_FIX_METADATA
        )
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UnsupportedMetadataError(
            "the metadata is not valid JSON", f"in {file}", str(error), fix=_FIX_METADATA
        ) from error
    _require(isinstance(document, dict), file, "the metadata is no JSON object")
    return dict(document)


def _read_bytes(file: Location) -> bytes | None:
    if isinstance(file, RemoteDirectory):
        return file.read(MAX_DOCUMENT_BYTES)
    return read_again(partial(_read_start, file))


def _read_start(file: Path) -> bytes:
    if file.exists() and not (file.is_file() or file.is_dir()):  # a pipe would never end
        raise ReadError(
            "the metadata cannot be read",
            f"in {file}",
            "it is no regular file",
            fix="copy the volume again from its source",
        )
    with file.open("rb") as stream:
        return stream.read(MAX_DOCUMENT_BYTES + 1)


def check_array(node: Node, *, dtypes: Collection[str]) -> ArrayMetadata:
    """Return what an array is, or why it cannot be read; `dtypes` are those of `ITEM_BYTES` that are wanted.

    Raises
    ------
    UnsupportedDtypeError
        If the data type is not one of `dtypes`.
    UnsupportedCodecError
        If a codec, compressor or filter is outside the allow-list.
    UnsupportedAxesError
        If there are not 2 to 5 dimensions.
    UnboundedMetadataError
        If a chunk needs more than 2 GiB, a shard holds more than 4,194,304 chunks, or an extent exceeds 2**40.
    UnsupportedMetadataError
        If the shape or chunks cannot be, the grid is not regular, or a storage transformer is asked for.
    """
    assert node.kind == "array", node.file
    file, document = node.file, node.document
    shape = _sizes(document.get("shape"), file, "shape")
    if not 2 <= len(shape) <= MAX_DIMENSIONS:
        raise UnsupportedAxesError(
            f"shape {list(shape)} came, 2 to {MAX_DIMENSIONS} axes (of t, c, z, y, x) were expected",
            f"in {file}",
            fix="write what is to be segmented as an array with these axes",
        )
    _require(0 not in shape, file, f"shape is {list(shape)}: the array is empty")
    dtype = _dtype(node, dtypes)
    names: object
    if node.zarr_format == 2:
        chunks, shards, codecs = _check_v2(document, file)
        names = node.attributes.get("_ARRAY_DIMENSIONS")  # xarray's convention
        # An empty list of filters is common and harmless, but zarr warns of it; attributes are ours to read.
        document = {**document, "filters": None, "attributes": {}}
    else:
        chunks, shards, codecs = _check_v3(document, file)
        names = document.get("dimension_names")
        document = {**document, "attributes": {}, "codecs": _with_orders(document["codecs"], len(shape))}
    for size in (chunks, shards or chunks):
        _require(len(size) == len(shape), file, f"chunks {list(size)} do not have the axes of shape {list(shape)}")
    _require_bounded(shape, chunks, shards, ITEM_BYTES[dtype], file)
    return ArrayMetadata(
        zarr_format=node.zarr_format,
        file=file,
        document=document,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        codecs=codecs,
        names=_names(names, len(shape)),
    )


def _dtype(node: Node, dtypes: Collection[str]) -> str:
    raw = node.document.get("dtype" if node.zarr_format == 2 else "data_type")
    if isinstance(raw, str):
        name = raw
        if node.zarr_format == 2:
            match = re.fullmatch(r"[<>|]?([buif]\d)", raw)
            name = _V2_DTYPES.get(match[1], "") if match else ""
        if name in dtypes:
            return name
    raise UnsupportedDtypeError(
        f"data type {_show(raw)} came, one of {', '.join(dtypes)} was expected",
        f"in {node.file}",
        fix="convert the array to one of these data types; whole numbers up to 65,535 fit uint16",
    )


Layout = tuple[tuple[int, ...], tuple[int, ...] | None, tuple[str, ...]]


def _check_v2(document: Document, file: Location) -> Layout:
    chunks = _sizes(document.get("chunks"), file, "chunks", minimum=1)
    if document.get("filters"):
        raise _refuse_codec(_codec_names(document["filters"], file, key="id")[0], "no filter", file)
    compressor = document.get("compressor")
    if compressor is None:
        return chunks, None, ()
    names = _codec_names([compressor], file, key="id")
    _require_codecs(names, V2_COMPRESSORS, file)
    return chunks, None, names


def _check_v3(document: Document, file: Location) -> Layout:
    grid = document.get("chunk_grid")
    grid_name = grid.get("name") if isinstance(grid, dict) else grid
    _require(grid_name == "regular", file, f"chunk grid {_show(grid_name)} came, 'regular' was expected")
    transformers = document.get("storage_transformers")
    _require(not transformers, file, f"storage transformers {_show(transformers)} came, none was expected")
    outer = _sizes(_configuration(grid).get("chunk_shape"), file, "chunk_shape", minimum=1)
    codecs = document.get("codecs")
    names = _codec_names(codecs, file, key="name")
    _require_codecs(names, V3_CODECS, file)
    if "sharding_indexed" not in names:
        return outer, None, names
    sharding = _configuration(codecs[0])  # type: ignore[index]  # _codec_names has seen that it is a list
    if len(names) > 1:
        raise _refuse_codec("sharding_indexed", "sharding_indexed alone, not among other codecs", file)
    inner = _sizes(sharding.get("chunk_shape"), file, "the shards' chunk_shape", minimum=1)
    inner_names = _codec_names(sharding.get("codecs"), file, key="name")
    _require_codecs(inner_names, tuple(c for c in V3_CODECS if c != "sharding_indexed"), file)
    _require_codecs(_codec_names(sharding.get("index_codecs"), file, key="name"), INDEX_CODECS, file)
    is_divided = len(inner) == len(outer) and all(o % i == 0 for o, i in zip(outer, inner, strict=True))
    _require(is_divided, file, f"shards of {list(outer)} are not whole chunks of {list(inner)}")
    return inner, outer, (*names, *inner_names)


def _require_bounded(
    shape: tuple[int, ...], chunks: tuple[int, ...], shards: tuple[int, ...] | None, item_bytes: int, file: Location
) -> None:
    chunk_bytes = math.prod(chunks) * item_bytes
    shard_chunks = math.prod(shards) // math.prod(chunks) if shards else 1
    problem = None
    if max(shape) > MAX_EXTENT:
        problem = f"shape {list(shape)} came, at most {MAX_EXTENT:,} pixels an axis were expected"
    elif chunk_bytes > MAX_CHUNK_BYTES:
        problem = f"chunks of {list(chunks)} need {chunk_bytes:,} bytes each, at most {MAX_CHUNK_BYTES:,} were expected"
    elif shard_chunks > MAX_SHARD_CHUNKS:
        problem = f"shards of {shard_chunks:,} chunks came, at most {MAX_SHARD_CHUNKS:,} were expected"
    if problem:
        raise UnboundedMetadataError(problem, f"in {file}", fix="write the array again with chunks of about 1 MiB")


def _codec_names(codecs: object, file: Location, *, key: str) -> tuple[str, ...]:
    if not isinstance(codecs, list) or not codecs:
        raise _refuse(file, f"codecs are {_show(codecs)}, a list of codecs was expected")
    names = [codec.get(key) if isinstance(codec, dict) else codec for codec in codecs]
    _require(all(isinstance(name, str) for name in names), file, f"codec {_show(codecs)} has no name")
    return tuple(map(str, names))


def _require_codecs(names: Sequence[str], allowed: Sequence[str], file: Location) -> None:
    for name in names:
        if name not in allowed:
            raise _refuse_codec(name, f"one of {', '.join(allowed)}", file)


def _refuse_codec(name: str, expected: str, file: Location) -> UnsupportedCodecError:
    return UnsupportedCodecError(
        f"codec {_show(name)} came, {expected} was expected",
        f"in {file}",
        fix="write the array again with the codec zstd and no filters",
    )


def _with_orders(codecs: list[Any], ndim: int) -> list[Any]:
    """Return the codecs with the orders "C" and "F" of early Zarr v3 writers as the numbers that zarr wants."""
    permutations = {"C": [*range(ndim)], "F": [*reversed(range(ndim))]}
    changed: list[Any] = []
    for codec in codecs:
        configuration = _configuration(codec)
        order, inner = configuration.get("order"), configuration.get("codecs")
        changes: Document = {}
        if isinstance(order, str) and order in permutations:
            changes = {"order": permutations[order]}
        elif isinstance(inner, list):  # inside a shard
            changes = {"codecs": _with_orders(inner, ndim)}
        changed.append({**codec, "configuration": {**configuration, **changes}} if changes else codec)
    return changed


def _configuration(named: object) -> Document:
    configuration = named.get("configuration") if isinstance(named, dict) else None
    return configuration if isinstance(configuration, dict) else {}


def _sizes(value: object, file: Location, what: str, *, minimum: int = 0) -> tuple[int, ...]:
    if isinstance(value, list) and all(type(n) is int and minimum <= n < 2**63 for n in value):
        return tuple(value)
    raise _refuse(file, f"{what} is {_show(value)}, a list of 64-bit whole numbers from {minimum} was expected")


def _names(value: object, ndim: int) -> tuple[str | None, ...] | None:
    if not isinstance(value, list) or len(value) != ndim or not any(value):
        return None
    return tuple(name if isinstance(name, str) else None for name in value)


def _require(is_good: bool, file: Location, problem: str) -> None:
    if not is_good:
        raise _refuse(file, problem)


def _refuse(file: Location, problem: str) -> UnsupportedMetadataError:
    return UnsupportedMetadataError(problem, f"in {file}", fix=_FIX_METADATA)


def _show(value: object) -> str:
    return shorten(repr(value), most=80)


def shorten(text: str, *, most: int = 300) -> str:
    """Return a text, cut where it is long: what a document holds may be as long as the document."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
