"""The journal of a run: which blocks are done, so that a killed run goes on where it was.

1. It lies in the output store, beside an image of the blocks' status, as lines of JSON. The first line is the
   *fingerprint*: everything that decides a byte of the result. Each further line is one block, appended when its chunks
   are written, and forced to the disk.
2. Every line carries a checksum. A kill may cut the last one off, which is then dropped; other damage is an error.
3. A run with another fingerprint is refused, with what differs: halves of two runs are no result.
4. The file is locked while a run writes to it: a second run on the same output is refused, and a killed one holds no
   lock.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, get_args

from unet_deploy.errors import JournalError, OutputBusyError

FOLDER = "unet_deploy_run"
FILE = "journal.jsonl"
VERSION = 1
Status = Literal["done", "empty", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)
_SHOWN = 8
_LOCKED_BYTE = 2**40  # beyond what is written: Windows locks bytes against reading too


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRecord:
    """What became of a block: its status, the pixels of each class where labels were made, and why it failed."""

    index: int
    status: Status
    class_counts: tuple[int, ...] = ()
    reason: str | None = None


@dataclass(slots=True)
class Journal:
    """An open journal; `records` has the last word on each block. Close it, or use it as a context."""

    path: Path
    fingerprint: dict[str, Any]
    records: dict[int, BlockRecord] = field(default_factory=dict)
    _file: IO[bytes] | None = None

    def add(self, record: BlockRecord) -> None:
        """Write a block down; it is on the disk when this returns."""
        self.records[record.index] = record
        counts = {"class_counts": list(record.class_counts)} if record.class_counts else {}
        reason = {} if record.reason is None else {"reason": record.reason}
        self._append({"block": record.index, "status": record.status, **counts, **reason})

    def with_status(self, status: Status) -> tuple[BlockRecord, ...]:
        """Return the blocks of a status, in order."""
        return tuple(r for _, r in sorted(self.records.items()) if r.status == status)

    def pending(self, n_blocks: int, *, retry_failed: bool) -> Iterator[int]:
        """Yield the blocks that are yet to be done, in order; the failed ones among them only if asked for."""
        for index in range(n_blocks):
            record = self.records.get(index)
            if record is None or (retry_failed and record.status == "failed"):
                yield index

    def close(self) -> None:
        """Let go of the file and its lock; may be called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, value: Mapping[str, Any]) -> None:
        assert self._file is not None, "the journal is closed"
        self._file.write(_line(value))
        self._file.flush()
        os.fsync(self._file.fileno())


def journal_path(output: Path) -> Path:
    """Return where the journal of an output store lies."""
    return output / FOLDER / FILE


def create_journal(output: Path, fingerprint: Mapping[str, Any]) -> Journal:
    """Begin the journal of a new output store, which exists.

    Parameters
    ----------
    output
        The output store's folder, made if it does not exist.
    fingerprint
        JSON values by name: what decides a byte of the result.

    Raises
    ------
    OutputBusyError
        If another run writes there.
    """
    path = journal_path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        _lock(file, path)
        file.truncate(0)
        for entry in path.parent.iterdir():  # what an earlier run kept beside it
            if entry.name != FILE:
                remove(entry)
    except BaseException:
        file.close()
        raise
    journal = Journal(path, _plain(fingerprint), {}, file)
    journal._append({"journal": VERSION, "fingerprint": journal.fingerprint})
    return journal


def reopen_journal(output: Path, fingerprint: Mapping[str, Any]) -> Journal:
    """Go on with the journal of an unfinished output store.

    Raises
    ------
    OutputBusyError
        If another run writes there.
    JournalError
        If it is damaged, of another version, or of a run with other parameters.
    """
    path = journal_path(output)
    file = path.open("r+b")
    try:
        _lock(file, path)
        data = file.read()
        kept, found, records = _parse(data, path)
        require_same(found, _plain(fingerprint), output)
        if kept < len(data):  # what a kill cut off
            file.truncate(kept)
        file.seek(kept)
    except BaseException:
        file.close()
        raise
    return Journal(path, found, records, file)


def read_journal(output: Path) -> Journal | None:
    """Return what a store's journal says, closed; None if it has none. A run may be writing to it.

    Raises
    ------
    JournalError
        If it is damaged, or of another version.
    """
    path = journal_path(output)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    _, fingerprint, records = _parse(data, path)
    return Journal(path, fingerprint, records)


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    """Refuse to go on with a run that was begun in another way.

    Raises
    ------
    JournalError
        If the fingerprints differ; the message names every difference.
    """
    differences = [
        f"{name}: begun with {_short(was)}, now {_short(value)}" for name, was, value in _differences(before, now)
    ]
    if differences:
        more = len(differences) - _SHOWN
        raise JournalError(
            f"{output} was begun by a run with other inputs or parameters, so it cannot be continued",
            *differences[:_SHOWN],
            *([f"and {more} more"] if more > 0 else []),
            fix="repeat the command that began it, choose another --output, or start anew with --overwrite",
        )


def remove(entry: Path) -> None:
    """Delete a file, a folder with all that is in it, or a link and not what it leads to."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield name, before, now


def _short(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON makes of it: tuples are lists then, as in what is read back."""
    plain: dict[str, Any] = json.loads(json.dumps(fingerprint, allow_nan=False))
    return plain


def _line(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(data: bytes, path: Path) -> tuple[int, dict[str, Any], dict[int, BlockRecord]]:
    """Return how many bytes are whole lines, the fingerprint, and the records."""
    whole = data.rfind(b"\n") + 1
    lines = [_read_line(line, number, path) for number, line in enumerate(data[:whole].splitlines(), 1)]
    if not lines:
        raise _damaged(path, "it is empty: the run was killed before it began")
    head = lines[0]
    if head.get("journal") != VERSION or not isinstance(head.get("fingerprint"), dict):
        raise JournalError(
            f"the journal of {path.parent.parent} is of version {head.get('journal')!r}, {VERSION} was expected",
            f"{path} was written by another release",
            fix="continue with the release that began the run, or start anew with --overwrite",
        )
    records: dict[int, BlockRecord] = {}
    for number, value in enumerate(lines[1:], 2):
        record = _record(value)
        if record is None:
            raise _damaged(path, f"line {number} is no record of a block")
        records[record.index] = record
    return whole, head["fingerprint"], records


def _read_line(line: bytes, number: int, path: Path) -> dict[str, Any]:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        raise _damaged(path, f"line {number} does not have its checksum")
    value = json.loads(text)
    if not isinstance(value, dict):
        raise _damaged(path, f"line {number} is no object")
    return value


def _record(value: Mapping[str, Any]) -> BlockRecord | None:
    index, status, reason = value.get("block"), value.get("status"), value.get("reason")
    counts = value.get("class_counts", [])
    if not isinstance(index, int) or index < 0 or status not in STATUSES or not isinstance(reason, str | None):
        return None
    if not isinstance(counts, list) or not all(type(n) is int for n in counts):
        return None
    return BlockRecord(index=index, status=status, class_counts=tuple(counts), reason=reason)


def _damaged(path: Path, what: str) -> JournalError:
    return JournalError(
        f"the journal of {path.parent.parent} is damaged",
        what,
        f"in {path}",
        fix="start anew with --overwrite: which blocks are done is not known",
    )


def _lock(file: IO[bytes], path: Path) -> None:
    """Take the lock, which the system lets go of when the process ends, however it ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OutputBusyError(
            f"another run is writing to {path.parent.parent}",
            f"it holds the lock of {path}: {error.strerror or error}",
            fix="wait until it ends, or choose another --output",
        ) from error
