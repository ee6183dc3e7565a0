"""The lines of a journal: the first its fingerprint, each further one a block, all of them JSON behind a checksum.

1. `head_line` and `record_line` write them, `read_head` and `read_record` read them.
2. A line without its checksum, or that says no such thing, is damage: which blocks are done is not known then.
3. Files are read line by line, so that the size of a journal does not matter. What a kill left of the last line has no
   end, and is no line.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

from unet_deploy.errors import JournalError

VERSION = 1
"""Of the file. Readers pass over what a record says beyond what they know."""
MAX_BLOCKS = 2**28
"""Of a run; a byte and an offset are held for each."""
Status = Literal["done", "empty", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)
PENDING: Literal["pending"] = "pending"
"""What a line says of a block that is to be done once more: what was said of it before is no longer so."""
Fields = tuple[int, Status | Literal["pending"], tuple[int, ...], float | None, float | None, str | None]
"""Of a `BlockRecord`, in its order."""
_CHECKSUM_BYTES = 9  # in hexadecimal, and a space
_INTEGERS = {int}
_decode = json.JSONDecoder().decode


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRecord:
    """What became of a block.

    `class_counts` are the pixels of each class, where labels were made; `confidence` is the mean over its pixels of the
    winning class's probability, where probabilities were made; `saturated` is the share of its input pixels that have
    the dtype's smallest or largest value, where that is an integer. `reason` says why it failed.
    """

    index: int
    status: Status
    class_counts: tuple[int, ...] = ()
    confidence: float | None = None
    saturated: float | None = None
    reason: str | None = None


def head_line(fingerprint: Mapping[str, Any]) -> bytes:
    """Return the first line of a journal."""
    return _line({"journal": VERSION, "fingerprint": fingerprint})


def record_line(record: BlockRecord) -> bytes:
    """Return the line of a block."""
    value: dict[str, Any] = {"block": record.index, "status": record.status}
    if record.class_counts:
        value["class_counts"] = list(record.class_counts)
    for name in ("confidence", "saturated", "reason"):
        if (said := getattr(record, name)) is not None:
            value[name] = said
    return _line(value)


def pending_line(index: int) -> bytes:
    """Return the line of a block that is to be done once more."""
    return _line({"block": index, "status": PENDING})


def whole_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield every line of a file that has an end, with where it begins."""
    offset = 0
    for line in file:
        if not line.endswith(b"\n"):
            return
        yield offset, line
        offset += len(line)


def is_head(line: bytes) -> bool:
    """Tell whether a line holds a fingerprint, by how it begins; it is yet to be checked."""
    return line.startswith(b'{"fingerprint"', _CHECKSUM_BYTES)


def read_head(line: bytes, path: Path, number: int = 1) -> dict[str, Any]:
    """Return the fingerprint that a journal begins with, or goes on with.

    Raises
    ------
    JournalError
        If the line is damaged, or of another version.
    """
    head = _read(line, number, path)
    if head.get("journal") != VERSION or not isinstance(head.get("fingerprint"), dict):
        raise JournalError(
            f"the journal of {path.parent.parent} is of version {head.get('journal')!r}, {VERSION} was expected",
            f"{path} was written by another release",
            fix="continue with the release that began the run, or start anew with --overwrite",
        )
    fingerprint: dict[str, Any] = head["fingerprint"]
    return fingerprint


def read_record(line: bytes, number: int | str, path: Path) -> BlockRecord:
    """Return what a line says of a block.

    Raises
    ------
    JournalError
        If it is damaged, or no record of a block.
    """
    index, status, counts, confidence, saturated, reason = read_fields(line, number, path)
    assert status != PENDING, line
    return BlockRecord(
        index=index, status=status, class_counts=counts, confidence=confidence, saturated=saturated, reason=reason
    )


def read_fields(line: bytes, number: int | str, path: Path) -> Fields:
    """Return what a line says of a block, without an object of it: there may be millions of lines.

    Raises
    ------
    JournalError
        If it is damaged, or no record of a block.
    """
    value: Any = _read(line, number, path)
    get = value.get
    index, status, counts, reason = get("block"), get("status"), get("class_counts", ()), get("reason")
    confidence, saturated = get("confidence"), get("saturated")
    is_record = (
        type(index) is int
        and 0 <= index < MAX_BLOCKS
        and (status in STATUSES or status == PENDING)
        and isinstance(counts, list | tuple)
        and set(map(type, counts)) <= _INTEGERS
        and (confidence is None or type(confidence) is float)
        and (saturated is None or type(saturated) is float)
        and (reason is None or type(reason) is str)
    )
    if not is_record:
        raise damaged(path, f"line {number} is no record of a block")
    return index, status, tuple(counts), confidence, saturated, reason


def damaged(path: Path, what: str) -> JournalError:
    """Return the error that says that a journal cannot be used."""
    return JournalError(
        f"the journal of {path.parent.parent} is damaged",
        what,
        f"in {path}",
        fix="start anew with --overwrite: which blocks are done is not known",
    )


def _line(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _read(line: bytes, number: int | str, path: Path) -> dict[str, Any]:
    checksum, text = line[:_CHECKSUM_BYTES], line[_CHECKSUM_BYTES:-1]
    if checksum != b"%08x " % zlib.crc32(text):
        raise damaged(path, f"line {number} does not have its checksum")
    value: Any = _decode(text.decode())
    if type(value) is not dict:
        raise damaged(path, f"line {number} is no object")
    return value
