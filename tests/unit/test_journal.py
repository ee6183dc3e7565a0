"""The journal: what it keeps through a kill, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_deploy.errors import JournalError, OutputBusyError
from unet_deploy.runtime.journal import (
    BlockRecord,
    Journal,
    create_journal,
    journal_path,
    read_journal,
    reopen_journal,
)

PRINT = {"model": {"sha256": "ab", "precision": "fp32"}, "tile": [572, 572], "channels": (0,)}
RECORDS = (
    BlockRecord(index=0, status="done", class_counts=(3, 5)),
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
    assert journal.records == {record.index: record for record in RECORDS}
    assert journal.fingerprint == {**PRINT, "channels": [0]}
    assert list(journal.records.values()) != sorted(RECORDS, key=lambda r: r.index)  # as they came
    assert journal.with_status("failed") == (RECORDS[1],)


def test_no_journal_is_none(tmp_path: Path) -> None:
    assert read_journal(tmp_path) is None


def test_a_run_goes_on_with_what_is_missing(output: Path) -> None:
    with reopen_journal(output, PRINT) as journal:
        assert list(journal.pending(5, retry_failed=False)) == [3, 4]
        assert list(journal.pending(5, retry_failed=True)) == [2, 3, 4]
        journal.add(BlockRecord(index=2, status="done", class_counts=(1, 7)))
    with reopen_journal(output, PRINT) as journal:
        assert journal.records[2].status == "done"  # the last word
        assert list(journal.pending(5, retry_failed=True)) == [3, 4]


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
        assert sorted(again.records) == list(range(sum(end <= size for end in sizes)))
        again.add(BlockRecord(index=99, status="done"))
    found = read_journal(output)
    assert found is not None
    assert 99 in found.records


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
        assert found.records == {}
    finally:
        holder.kill()
        holder.communicate()
    time.sleep(0.1)
    with reopen_journal(tmp_path, {}) as journal:  # a killed run holds nothing
        assert isinstance(journal, Journal)


def _with_checksum(text: bytes) -> bytes:
    import zlib

    return b"%08x %s\n" % (zlib.crc32(text), text)
