"""Which outputs a run goes on with, which it leaves as they are, and what must be the same for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unet_deploy.errors import OutputExistsError
from unet_deploy.runtime.journal import BlockRecord, create_journal
from unet_deploy.runtime.resume import find_begun, is_unborn

DONE = BlockRecord(index=0, status="done", class_counts=(3, 1))
FAILED = BlockRecord(index=1, status="failed", reason="ReadError: no")


def write_output(folder: Path, status: str, *records: BlockRecord, has_journal: bool = True) -> Path:
    output = folder / "out.zarr"
    output.mkdir()
    provenance = {"status": status, "started": "2026-01-01T00:00:00+00:00"}
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"unet_deploy": provenance}}
    (output / "zarr.json").write_text(json.dumps(document))
    if has_journal:
        with create_journal(output, {}) as journal:
            for record in records:
                journal.add(record)
    return output


@pytest.mark.parametrize("status", ["running", "region"])
@pytest.mark.parametrize("retry_failed", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_what_is_yet_to_be_done_goes_on(tmp_path: Path, status: str, retry_failed: bool, again: bool) -> None:
    begun = find_begun(write_output(tmp_path, status, DONE, FAILED), retry_failed=retry_failed, again=again)
    assert begun is not None
    assert begun.n_blocks == 2
    assert begun.parts == [{"started": "2026-01-01T00:00:00+00:00", "region": None, "seconds": None, "blocks_done": 2}]
    assert begun.statistics is None


def test_nothing_goes_on_where_nothing_is(tmp_path: Path) -> None:
    assert find_begun(tmp_path / "out.zarr", retry_failed=False) is None
    assert find_begun(tmp_path / "out.zarr", retry_failed=False, again=True) is None
    assert not is_unborn(tmp_path / "out.zarr")


def test_a_run_without_a_block_begins_anew(tmp_path: Path) -> None:
    output = write_output(tmp_path, "running")
    assert find_begun(output, retry_failed=False) is None
    assert find_begun(output, retry_failed=False, again=True) is None
    assert is_unborn(output)


def test_failed_blocks_are_left_unless_asked_for(tmp_path: Path) -> None:
    output = write_output(tmp_path, "partial", DONE, FAILED)
    with pytest.raises(OutputExistsError, match=r"exists, and 1 of its blocks failed") as caught:
        find_begun(output, retry_failed=False)
    assert "fix: run just those again with --retry-failed" in str(caught.value)
    assert find_begun(output, retry_failed=True) is not None
    assert find_begun(output, retry_failed=False, again=True) is not None
    assert not is_unborn(output)


def test_a_complete_output_is_gone_on_with_only_to_make_blocks_again(tmp_path: Path) -> None:
    output = write_output(tmp_path, "complete", DONE)
    assert find_begun(output, retry_failed=False) is None  # so that the place is not free
    with pytest.raises(OutputExistsError, match="there are no failed blocks to run again") as caught:
        find_begun(output, retry_failed=True)
    assert "its status is complete" in str(caught.value)
    begun = find_begun(output, retry_failed=False, again=True)
    assert begun is not None
    assert begun.n_blocks == 1


@pytest.mark.parametrize("status", ["complete", "running", "something of a later release"])
def test_blocks_are_not_made_again_where_nobody_knows_which_there_are(tmp_path: Path, status: str) -> None:
    """Or a region's run would replace all of a result."""
    output = write_output(tmp_path, status, has_journal=status.startswith("something"))
    with pytest.raises(OutputExistsError, match=r"^a region of .* cannot be made again by itself\n") as caught:
        find_begun(output, retry_failed=False, again=True)
    assert f"it has no journal of its blocks; its status is {status}" in str(caught.value)
    assert "fix: make all of it anew with --overwrite and without --region" in str(caught.value)
    assert find_begun(output, retry_failed=False) is None
