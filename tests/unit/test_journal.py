"""The journal: what it keeps through a kill, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_deploy.errors import JournalError, NoSpaceError, OutputBusyError
from unet_deploy.runtime._journal_lines import record_line
from unet_deploy.runtime.journal import (
    STATUSES,
    BlockRecord,
    Journal,
    Status,
    create_journal,
    journal_path,
    read_journal,
    reopen_journal,
)

PRINT = {"model": {"sha256": "ab", "precision": "fp32"}, "tile": [572, 572], "channels": (0,)}
RECORDS = (
    BlockRecord(index=0, status="done", class_counts=(3, 5), confidence=0.9375, saturated=0.0),
    BlockRecord(index=2, status="failed", reason="ReadError: chunk 0/1\nis damaged"),
    BlockRecord(index=1, status="empty", class_counts=(8, 0)),
)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    with create_journal(tmp_path, PRINT) as journal:
        for record in RECORDS:
            journal.add(record)
    return tmp_path


def test_what_is_written_is_read(output: Path) -> None:
    journal = read_journal(output)
    assert journal is not None
    assert list(journal.iter_records()) == sorted(RECORDS, key=lambda r: r.index) != list(RECORDS)
    assert journal.fingerprint == {**PRINT, "channels": [0]}
    assert [journal.status_of(index) for index in range(5)] == ["done", "empty", "failed", None, None]
    assert journal.status_values(5) == bytes([1, 2, 3, 0, 0])
    assert {status: journal.count(status) for status in STATUSES} == {"done": 1, "empty": 1, "failed": 1}
    assert journal.n_recorded == 3
    assert journal.class_totals == (11, 5)
    assert journal.failures() == (RECORDS[1],)


def test_no_journal_is_none(tmp_path: Path) -> None:
    assert read_journal(tmp_path) is None


def test_a_run_goes_on_with_what_is_missing(output: Path) -> None:
    with reopen_journal(output, PRINT) as journal:
        assert due_of(journal, retry_failed=False) == [3, 4]
        assert due_of(journal, retry_failed=True) == [2, 3, 4]
        journal.add(BlockRecord(index=2, status="done", class_counts=(1, 7)))
    with reopen_journal(output, PRINT) as journal:
        assert journal.status_of(2) == "done"  # the last word
        assert journal.failures() == ()
        assert due_of(journal, retry_failed=True) == [3, 4]


def due_of(journal: Journal, *, retry_failed: bool) -> list[int]:
    return [index for index in range(5) if journal.is_due(index, retry_failed=retry_failed)]


def totals_of(journal: Journal) -> tuple[object, ...]:
    counts = tuple(journal.count(status) for status in STATUSES)
    return journal.class_totals, counts, journal.n_recorded, journal.failures(), list(journal.iter_records())


def as_record(index: int, status: Status, first: int) -> BlockRecord:
    if status == "failed":
        return BlockRecord(index=index, status=status, reason=f"for the {first}th time")
    return BlockRecord(index=index, status=status, class_counts=(first, 64 - first), confidence=first / 64)


RETRIES = st.lists(st.builds(as_record, st.integers(0, 5), st.sampled_from(STATUSES), st.integers(0, 64)), max_size=20)


@settings(max_examples=30, deadline=None)
@given(records=RETRIES)
def test_only_the_last_word_on_a_block_counts(
    tmp_path_factory: pytest.TempPathFactory, records: list[BlockRecord]
) -> None:
    """A failed block that is done later counts once, and one that is done again does not count twice."""
    output, once = tmp_path_factory.mktemp("retried"), tmp_path_factory.mktemp("once")
    last = {record.index: record for record in records}
    with create_journal(output, PRINT) as journal, create_journal(once, PRINT) as plain:
        for record in records:
            journal.add(record)
        for record in last.values():
            plain.add(record)
        # A class that no block has any more leaves a 0.
        assert (
            sum(journal.class_totals)
            == sum(plain.class_totals)
            == 64 * sum(r.status != "failed" for r in last.values())
        )
        expected = totals_of(plain)
        assert totals_of(journal)[1:] == expected[1:]
        assert journal.class_totals[: len(plain.class_totals)] == plain.class_totals
        before = totals_of(journal)
    with reopen_journal(output, PRINT) as again:
        assert totals_of(again) == before


@pytest.mark.slow
def test_a_large_journal_costs_little_memory(tmp_path: Path) -> None:
    """A status, a place in the file, and sums: no object a block."""
    count = 10**5
    lines = (record_line(BlockRecord(index=i, status="done", class_counts=(i, 1))) for i in range(count))
    create_journal(tmp_path, PRINT).close()
    with journal_path(tmp_path).open("ab") as file:
        file.writelines(lines)
    tracemalloc.start()
    try:
        journal = reopen_journal(tmp_path, PRINT)
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    with journal:
        assert journal.n_recorded == count
        assert journal.class_totals == (count * (count - 1) // 2, count)
        assert sum(record.class_counts[0] for record in journal.iter_records()) == journal.class_totals[0]
    assert held < 1.2e6, held  # 9 bytes a block, and what arrays keep to grow
    assert most < 2.5e6, most


def test_blocks_may_come_in_any_order(tmp_path: Path) -> None:
    with create_journal(tmp_path, PRINT) as journal:
        for index in (900, 3, 17):
            journal.add(BlockRecord(index=index, status="empty"))
        assert [record.index for record in journal.iter_records()] == [3, 17, 900]
        assert journal.class_totals == ()
        assert journal.status_values(2) == b"\0\0"


def test_a_journal_changed_meanwhile_is_not_read_as_if_it_were_not(output: Path) -> None:
    journal = read_journal(output)
    assert journal is not None
    lines = journal_path(output).read_bytes().splitlines(keepends=True)
    same = record_line(BlockRecord(index=5, status="done", class_counts=(3, 5), confidence=0.9375, saturated=0.0))
    assert len(same) == len(lines[1])
    journal_path(output).write_bytes(b"".join([lines[0], same, *lines[2:]]))
    with pytest.raises(JournalError, match=r"is damaged") as caught:
        list(journal.iter_records())
    assert "it was changed meanwhile: block 5 stands where 0 was" in str(caught.value)
    journal_path(output).write_bytes(b"".join([lines[0], lines[1].replace(b"done", b"dune"), *lines[2:]]))
    with pytest.raises(JournalError, match=r"line of block 0 does not have its checksum"):
        list(journal.iter_records())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_ends_the_run(output: Path) -> None:
    with reopen_journal(output, PRINT) as journal:
        assert journal._file is not None
        journal._file.close()
        with Path("/dev/full").open("ab", buffering=0) as full:
            journal._file = full
            with pytest.raises(NoSpaceError, match=r"^the disk is full: ") as caught:
                journal.add(BlockRecord(index=3, status="done"))
        assert f"while writing {journal_path(output)}" in str(caught.value)
        assert journal.status_of(3) is None


@given(cut=st.integers(0, 10_000), count=st.integers(0, 12))
def test_a_kill_at_any_byte_loses_at_most_the_last_block(
    tmp_path_factory: pytest.TempPathFactory, cut: int, count: int
) -> None:
    output = tmp_path_factory.mktemp("journal")
    with create_journal(output, PRINT) as journal:
        first = journal_path(output).stat().st_size
        sizes = []
        for index in range(count):
            journal.add(BlockRecord(index=index, status="done", class_counts=(index, 1)))
            sizes.append(journal_path(output).stat().st_size)
    size = first + cut % (journal_path(output).stat().st_size - first + 1)
    with journal_path(output).open("r+b") as file:
        file.truncate(size)
    with reopen_journal(output, PRINT) as again:
        assert [r.index for r in again.iter_records()] == list(range(sum(end <= size for end in sizes)))
        again.add(BlockRecord(index=99, status="done"))
    found = read_journal(output)
    assert found is not None
    assert found.status_of(99) == "done"


def test_another_fingerprint_is_refused_with_every_difference(output: Path) -> None:
    other = {"model": {"sha256": "cd", "precision": "fp32"}, "tile": [204, 572], "tta": True, "channels": [0]}
    before = journal_path(output).read_bytes()
    with pytest.raises(JournalError, match=r"was begun by a run with other inputs or parameters") as caught:
        reopen_journal(output, other)
    text = str(caught.value)
    assert "model.sha256: begun with ab, now cd\n" in text
    assert "tile: begun with [572, 572], now [204, 572]\n" in text
    assert "tta: begun with nothing, now true\n" in text
    assert "channels" not in text
    assert "fix: repeat the command that began it, choose another --output, or start anew with --overwrite" in text
    assert journal_path(output).read_bytes() == before


def test_many_differences_are_counted_and_long_values_cut(output: Path) -> None:
    other = {**PRINT, **{f"key{i}": "x" * 90 for i in range(10)}}
    with pytest.raises(JournalError) as caught:
        reopen_journal(output, other)
    assert "and 2 more" in str(caught.value)
    assert f"now {'x' * 57}...\n" in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data.replace(b'"done"', b'"dune"', 1), "line 2 does not have its checksum"),
        (lambda _: b"", "it is empty: the run was killed before it began"),
        (lambda data: b"\0" * len(data) + b"\n", "line 1 does not have its checksum"),
        (lambda data: data + b"ade30022 [1, 2]\n", "line 5 does not have its checksum"),
        (lambda data: data + _with_checksum(b"[1, 2]"), "line 5 is no object"),
        (lambda data: data + _with_checksum(b'{"block": -1, "status": "done"}'), "line 5 is no record of a block"),
        (lambda data: data + _with_checksum(b'{"block": 1, "status": "fine"}'), "line 5 is no record of a block"),
        (
            lambda data: data + _with_checksum(b'{"block": 268435456, "status": "done"}'),
            "line 5 is no record of a block",
        ),
        (
            lambda data: data + _with_checksum(b'{"block": 1, "confidence": "low", "status": "done"}'),
            "line 5 is no record of a block",
        ),
    ],
)
def test_a_damaged_journal_is_refused(output: Path, damage: object, words: str) -> None:
    path = journal_path(output)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    for read in (lambda: reopen_journal(output, PRINT), lambda: read_journal(output)):
        with pytest.raises(JournalError, match=r"^the journal of .* is damaged\n") as caught:
            read()
        assert words in str(caught.value)
        assert "fix: start anew with --overwrite: which blocks are done is not known" in str(caught.value)


def test_another_version_is_refused(output: Path) -> None:
    journal_path(output).write_bytes(_with_checksum(b'{"journal": 2, "fingerprint": {}}'))
    with pytest.raises(JournalError, match=r"is of version 2, 1 was expected") as caught:
        read_journal(output)
    assert "continue with the release that began the run" in str(caught.value)


def test_what_a_later_release_says_more_is_passed_over(output: Path) -> None:
    """So the version of the file stays: releases before the measures read a journal with them, and this one theirs."""
    with journal_path(output).open("ab") as file:
        file.write(_with_checksum(b'{"block": 3, "status": "done", "weather": "fine"}'))
    found = read_journal(output)
    assert found is not None
    assert found.status_of(3) == "done"


def test_a_run_whose_volume_has_grown_goes_on_with_another_fingerprint(output: Path) -> None:
    with reopen_journal(output, PRINT) as journal:
        journal.amend({**PRINT, "tile": (204, 204)})
        journal.add(BlockRecord(index=3, status="done", class_counts=(1, 1)))
    with pytest.raises(JournalError, match=r"was begun by a run with other inputs or parameters"):
        reopen_journal(output, PRINT)
    with reopen_journal(output, {**PRINT, "tile": (204, 204)}) as journal:
        assert journal.n_recorded == 4
        assert journal.class_totals == (12, 6)
        assert [record.index for record in journal.iter_records()] == [0, 1, 2, 3]


def test_two_runs_on_one_output_are_refused(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time, pathlib\n"
            "from unet_deploy.runtime.journal import create_journal\n"
            "journal = create_journal(pathlib.Path(sys.argv[1]), {})\n"
            "print('held', flush=True)\n"
            "time.sleep(60)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for begin in (create_journal, reopen_journal):
            with pytest.raises(OutputBusyError, match=r"^another run is writing to ") as caught:
                begin(tmp_path, {})
            assert "it holds the lock of" in str(caught.value)
            assert "fix: wait until it ends, or choose another --output" in str(caught.value)
        found = read_journal(tmp_path)  # looking is allowed
        assert found is not None
        assert found.n_recorded == 0
    finally:
        holder.kill()
        holder.communicate()
    time.sleep(0.1)
    with reopen_journal(tmp_path, {}) as journal:  # a killed run holds nothing
        assert isinstance(journal, Journal)


def _with_checksum(text: bytes) -> bytes:
    import zlib

    return b"%08x %s\n" % (zlib.crc32(text), text)


def test_a_block_that_is_to_be_done_once_more_is_forgotten_for_good(tmp_path: Path) -> None:
    with create_journal(tmp_path, PRINT) as journal:
        for index in range(3):
            journal.add(BlockRecord(index=index, status="done", class_counts=(index, 1)))
        journal.add(BlockRecord(index=3, status="failed", reason="no"))
        journal.forget([1, 3, 7])
        assert [journal.status_of(i) for i in range(5)] == ["done", None, "done", None, None]
        assert (journal.class_totals, journal.failures(), journal.n_recorded) == ((2, 2), (), 2)
    with reopen_journal(tmp_path, PRINT) as journal:
        assert [journal.status_of(i) for i in range(5)] == ["done", None, "done", None, None]
        assert (journal.class_totals, journal.failures(), journal.n_recorded) == ((2, 2), (), 2)
        assert [record.index for record in journal.iter_records()] == [0, 2]
        journal.add(BlockRecord(index=1, status="done", class_counts=(5, 5)))
        assert journal.class_totals == (7, 7)
