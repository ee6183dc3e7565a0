"""The journal of a run: which blocks are done, so that a killed run goes on where it was.

1. It lies in the output store, beside an image of the blocks' status, as lines of JSON (`_journal_lines`). The first
   line is the *fingerprint*: everything that decides a byte of the result. Each further line is one block, appended
   when its chunks are written, and forced to the disk.
2. Every line carries a checksum. A kill may cut the last one off, which is then dropped; other damage is an error.
3. A run with another fingerprint is refused, with what differs: halves of two runs are no result.
4. The file is locked while a run writes to it: a second run on the same output is refused, and a killed one holds no
   lock.
5. A volume may grow while it is followed: then a further fingerprint stands between the blocks, and the last counts.
6. The last word on a block counts. Of each block a byte and where its line begins are held, and sums over all of them;
   the lines themselves stay in the file, so that a million blocks cost ten megabytes.
"""

from __future__ import annotations

import heapq
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from unet_deploy.runtime._file_lock import lock_file
from unet_deploy.runtime._fingerprint import plain, require_same
from unet_deploy.runtime._journal_lines import (
    MAX_BLOCKS,
    PENDING,
    STATUSES,
    BlockRecord,
    Status,
    damaged,
    head_line,
    is_head,
    pending_line,
    read_fields,
    read_head,
    read_record,
    record_line,
    whole_lines,
)
from unet_deploy.runtime.disk_space import full_disk_named

__all__ = [
    "FILE",
    "FOLDER",
    "STATUSES",
    "STATUS_VALUES",
    "BlockRecord",
    "Journal",
    "Status",
    "create_journal",
    "journal_path",
    "read_journal",
    "remove",
    "reopen_journal",
]

FOLDER = "unet_deploy_run"
FILE = "journal.jsonl"
STATUS_VALUES: dict[Status, int] = {"done": 1, "empty": 2, "failed": 3}
"""Of a block in one byte; 0 is pending."""
_STATUS_OF: dict[int, Status] = {value: status for status, value in STATUS_VALUES.items()}


@dataclass(slots=True)
class Journal:
    """An open journal, which has the last word on each block. Close it, or use it as a context.

    Parameters
    ----------
    path
        The file.
    fingerprint
        What decides a byte of the result.
    """

    path: Path
    fingerprint: dict[str, Any]
    _file: IO[bytes] | None = None
    """To append to, unbuffered; None for a journal that is only looked at."""
    _end: int = 0
    _values: bytearray = field(default_factory=bytearray)
    """By block, of `STATUS_VALUES`."""
    _offsets: array[int] = field(default_factory=lambda: array("q"))
    """By block, where its line begins."""
    _counts: dict[Status, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    _totals: list[int] = field(default_factory=list)
    _reasons: dict[int, str | None] = field(default_factory=dict)

    def add(self, record: BlockRecord) -> None:
        """Write a block down; it is on the disk when this returns.

        Raises
        ------
        NoSpaceError
            If the disk is full.
        """
        assert 0 <= record.index < MAX_BLOCKS, record
        offset = self._end
        self._append(record_line(record))
        self._take(record.index, record.status, record.class_counts, record.reason, offset)

    def forget(self, blocks: Iterable[int]) -> None:
        """Write down that blocks are to be done once more, those that were never done aside.

        Raises
        ------
        NoSpaceError
            If the disk is full.
        """
        known = [index for index in blocks if self.status_of(index) is not None]
        self._append(b"".join(map(pending_line, known)))
        for index in known:
            self._take(index, PENDING, (), None, 0)

    def amend(self, fingerprint: Mapping[str, Any]) -> None:
        """Let the run go on with another fingerprint, since its volume has grown; its blocks stay what they are.

        Raises
        ------
        NoSpaceError
            If the disk is full.
        """
        fingerprint = plain(fingerprint)
        self._append(head_line(fingerprint))
        self.fingerprint = fingerprint

    def count(self, status: Status) -> int:
        """Return how many blocks have a status."""
        return self._counts[status]

    @property
    def n_recorded(self) -> int:
        """How many blocks have any."""
        return sum(self._counts.values())

    def status_of(self, index: int) -> Status | None:
        """Return the status of a block, None for one that is yet to be done."""
        return _STATUS_OF.get(self._values[index]) if index < len(self._values) else None

    def status_values(self, n_blocks: int) -> bytes:
        """Return a byte of `STATUS_VALUES` for each block, 0 for those that are yet to be done."""
        return bytes(self._values[:n_blocks].ljust(n_blocks, b"\0"))

    @property
    def class_totals(self) -> tuple[int, ...]:
        """The pixels of each class over all blocks; nothing where no labels were made."""
        return tuple(self._totals)

    def failures(self) -> tuple[BlockRecord, ...]:
        """Return the failed blocks and why, in order."""
        return tuple(BlockRecord(index=i, status="failed", reason=why) for i, why in sorted(self._reasons.items()))

    def is_due(self, index: int, *, retry_failed: bool) -> bool:
        """Tell whether a block is to be run: it never was, or it failed and such are run again."""
        status = self.status_of(index)
        return status is None or (retry_failed and status == "failed")

    def iter_records(self) -> Iterator[BlockRecord]:
        """Yield the last word on each block, by number, from the file."""
        with self.path.open("rb") as file:
            for index, value in enumerate(self._values):
                if value:
                    yield self._read(file, index)

    def latest(self, count: int) -> list[BlockRecord]:
        """Return the last word on the blocks that were written down last, at most so many, the last first."""
        known = (index for index, value in enumerate(self._values) if value)
        with self.path.open("rb") as file:
            return [self._read(file, index) for index in heapq.nlargest(count, known, key=self._offsets.__getitem__)]

    def close(self) -> None:
        """Let go of the file and its lock; may be called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, file: IO[bytes], index: int) -> BlockRecord:
        file.seek(self._offsets[index])
        record = read_record(file.readline(), f"of block {index}", self.path)
        if record.index != index:
            raise damaged(self.path, f"it was changed meanwhile: block {record.index} stands where {index} was")
        return record

    def _append(self, line: bytes) -> None:
        assert self._file is not None, "the journal is closed"
        rest = memoryview(line)
        with full_disk_named(f"while writing {self.path}"):
            while rest:  # an unbuffered file may take less than all
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        self._end += len(line)

    def _take(
        self,
        index: int,
        status: Status | Literal["pending"],
        counts: tuple[int, ...],
        reason: str | None,
        offset: int,
    ) -> None:
        """Let the line at `offset` be the last word on a block."""
        if (short := index + 1 - len(self._values)) > 0:
            self._values.extend(bytes(short))
            self._offsets.frombytes(bytes(short * self._offsets.itemsize))
        if self._values[index]:
            self._forget(index)
            self._values[index] = 0
        if status == PENDING:
            return
        self._values[index], self._offsets[index] = STATUS_VALUES[status], offset
        self._counts[status] += 1
        if status == "failed":
            self._reasons[index] = reason
        else:
            self._sum(counts, 1)

    def _forget(self, index: int) -> None:
        """Take the last word on a block out of the sums."""
        before = _STATUS_OF[self._values[index]]
        self._counts[before] -= 1
        if before == "failed":
            del self._reasons[index]
            return
        with self.path.open("rb") as file:
            self._sum(self._read(file, index).class_counts, -1)

    def _sum(self, counts: tuple[int, ...], sign: int) -> None:
        totals = self._totals
        if len(totals) < len(counts):
            totals.extend([0] * (len(counts) - len(totals)))
        for label, n in enumerate(counts):
            totals[label] += sign * n


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
    file = path.open("ab", buffering=0)
    try:
        lock_file(file, path)
        file.truncate(0)
        for entry in path.parent.iterdir():  # what an earlier run kept beside it
            if entry.name != FILE:
                remove(entry)
        journal = Journal(path, plain(fingerprint), file)
        journal._append(head_line(journal.fingerprint))
    except BaseException:
        file.close()
        raise
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
    file = path.open("r+b", buffering=0)
    try:
        lock_file(file, path)
        journal = _parse(path)
        require_same(journal.fingerprint, plain(fingerprint), output)
        written = path.stat()
        file.truncate(journal._end)  # what a kill cut off
        os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))  # still when the last line was written
        file.seek(journal._end)
    except BaseException:
        file.close()
        raise
    journal._file = file
    return journal


def read_journal(output: Path) -> Journal | None:
    """Return what a store's journal says, closed; None if it has none. A run may be writing to it.

    Raises
    ------
    JournalError
        If it is damaged, or of another version.
    """
    try:
        return _parse(journal_path(output))
    except FileNotFoundError:
        return None


def remove(entry: Path) -> None:
    """Delete a file, a folder with all that is in it, or a link and not what it leads to."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _parse(path: Path) -> Journal:
    """Return the journal that a file's whole lines make."""
    with path.open("rb") as file:
        lines = whole_lines(file)
        first = next(lines, None)
        if first is None:
            raise damaged(path, "it is empty: the run was killed before it began")
        journal = Journal(path, read_head(first[1], path), _end=len(first[1]))
        for number, (offset, line) in enumerate(lines, 2):
            if is_head(line):
                journal.fingerprint = read_head(line, path, number)
            else:
                index, status, counts, _, _, reason = read_fields(line, number, path)
                journal._take(index, status, counts, reason, offset)
            journal._end = offset + len(line)
    return journal
