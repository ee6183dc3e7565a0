"""A volume is segmented while it is being written; the result is that of a run on the finished one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests import volume_writer
from tests.tiny import make_pixels, read_arrays, read_provenance, snapshot
from tests.volume_writer import acquire, append, put, set_length
from unet_deploy.errors import InterruptedRunError, JournalError, ReadError, UsageError
from unet_deploy.runtime import Progress, segment
from unet_deploy.runtime.follow import Following
from unet_deploy.runtime.journal import read_journal
from unet_deploy.runtime.region import parse_region

SETTLE_S = 0.3
FOLLOW = Following(settle_s=SETTLE_S)
GROWS = Following(settle_s=SETTLE_S, timeout_s=3, grows=True)


@pytest.fixture
def run(fake_artifact: Callable[..., Any], fake_factory: Callable[..., Any]) -> Callable[..., Any]:
    """Segment with the integer engine."""

    def segment_it(volume: Path, output: Path, **options: Any) -> Any:
        return segment(volume, model=fake_artifact(), engine_factory=fake_factory, output=output, **options)

    return segment_it


def write_volume(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], **options: Any) -> Path:
    """Write a finished volume; its axes are the last of t, z, y and x."""
    names = list("tzyx"[-len(shape) :])
    array = zarr.create_array(path, shape=shape, chunks=chunks, dtype="uint8", dimension_names=names, **options)
    array[...] = np.maximum(make_pixels(shape), 1)
    return path


@contextmanager
def writing(target: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Let another process write meanwhile; it is ready when this begins, and starts with it."""
    told = json.dumps([str(value) if isinstance(value, Path) else value for value in arguments])
    command = [sys.executable, volume_writer.__file__, target.__name__, told]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        try:
            yield
        finally:
            assert process.wait(timeout=60) == 0


def begin(finished: Path, volume: Path, *, length: int | None = None) -> Path:
    """Make a volume of the metadata of another, without a chunk."""
    volume.mkdir()
    document = json.loads((finished / "zarr.json").read_text())
    set_length(volume, document, document["shape"][0] if length is None else length)
    return volume


def require_same(output: Path, expected: Path) -> None:
    """All that was written is the same, to the byte, beside what says when and how."""
    came, clean = snapshot(output), snapshot(expected)
    differing = {name for name in came | clean if came.get(name) != clean.get(name)}
    assert differing <= {"zarr.json", "unet_deploy_run/journal.jsonl"}
    assert read_provenance(output)["status"] == "complete"
    assert {"0/zarr.json", "labels/segmentation/0/zarr.json", "unet_deploy_run/zarr.json"} <= came.keys()


def recorded(output: Path) -> list[int]:
    """Return the blocks as often as they were journalled."""
    lines = (output / "unet_deploy_run" / "journal.jsonl").read_text().splitlines()
    values = [json.loads(line[9:]) for line in lines]
    return [value["block"] for value in values if value.get("status") in ("done", "empty", "failed")]


@pytest.mark.parametrize("codec", ["raw", "auto"])
def test_a_volume_that_comes_in_any_order(codec: str, run: Callable[..., Any], tmp_path: Path) -> None:
    options = {"compressors": None} if codec == "raw" else {}
    finished = write_volume(tmp_path / "finished.zarr", (6, 150, 140), (1, 64, 64), **options)
    volume = begin(finished, tmp_path / "v.zarr")
    # Half a raw chunk is known by its size, however long it lies there; half a compressed one by its coming on.
    halves_s = 3 * SETTLE_S if codec == "raw" else SETTLE_S / 3
    started = time.monotonic()
    with writing(acquire, finished, volume, 7, 1.5, halves_s):
        result = run(volume, tmp_path / "out.zarr", follow=FOLLOW)
    assert time.monotonic() - started > 1  # it came meanwhile
    assert result.status == "complete"
    run(finished, tmp_path / "expected.zarr")
    require_same(tmp_path / "out.zarr", tmp_path / "expected.zarr")
    assert sorted(recorded(tmp_path / "out.zarr")) == [*range(6)]  # none was tried too early


def test_blocks_run_while_others_are_yet_to_come(run: Callable[..., Any], tmp_path: Path) -> None:
    finished = write_volume(tmp_path / "finished.zarr", (4, 64, 64), (1, 64, 64))
    volume = begin(finished, tmp_path / "v.zarr")
    order = [2, 0, 3, 1]
    put(finished / f"c/{order[0]}/0/0", volume / f"c/{order[0]}/0/0")

    def next_plane(progress: Progress) -> None:
        if progress.stage == "segment" and progress.done < 4:  # so it comes when the one before is done
            file = f"c/{order[progress.done]}/0/0"
            put(finished / file, volume / file)

    run(volume, tmp_path / "out.zarr", follow=FOLLOW, progress=next_plane)
    assert recorded(tmp_path / "out.zarr") == order


def test_a_chunk_that_is_written_again_is_read_again(run: Callable[..., Any], tmp_path: Path) -> None:
    """A writer that fills a thick chunk plane by plane writes it anew for each: every time, it looks finished."""
    finished = write_volume(tmp_path / "finished.zarr", (2, 64, 64), (1, 64, 64))
    volume = Path(shutil.copytree(finished, tmp_path / "v.zarr"))
    before = zarr.open_array(volume, mode="r+")
    before[0] = 0  # as far as it was written by now: an absent chunk
    before[0, 0, 0] = 1
    steps: list[int] = []

    def write_again(progress: Progress) -> None:
        if progress.stage == "segment" and not steps and progress.done == 2:
            put(finished / "c/0/0/0", volume / "c/0/0/0")
        steps.extend([progress.done] * (progress.done == 2))

    result = run(volume, tmp_path / "out.zarr", follow=FOLLOW, progress=write_again)
    run(finished, tmp_path / "expected.zarr")
    require_same(tmp_path / "out.zarr", tmp_path / "expected.zarr")
    assert sorted(recorded(tmp_path / "out.zarr")) == [0, 0, 1]
    assert result.blocks_found == 0  # a block that ran twice was not there before
    assert read_provenance(tmp_path / "out.zarr")["differs_from_training"] is None  # not compared, which is not: equal


def test_half_a_chunk_that_lies_there_for_long_is_read_again(run: Callable[..., Any], tmp_path: Path) -> None:
    finished = write_volume(tmp_path / "finished.zarr", (3, 64, 64), (1, 64, 64))
    volume = Path(shutil.copytree(finished, tmp_path / "v.zarr"))
    chunk = volume / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:500])
    said: list[int] = []

    def write_the_rest(progress: Progress) -> None:
        said.append(progress.failed)
        if progress.failed:
            put(finished / "c/1/0/0", chunk)

    run(volume, tmp_path / "out.zarr", follow=FOLLOW, progress=write_the_rest)
    run(finished, tmp_path / "expected.zarr")
    require_same(tmp_path / "out.zarr", tmp_path / "expected.zarr")
    assert 1 in said


def test_what_never_comes(run: Callable[..., Any], tmp_path: Path) -> None:
    finished = write_volume(tmp_path / "finished.zarr", (3, 64, 64), (1, 64, 64))
    volume = Path(shutil.copytree(finished, tmp_path / "v.zarr"))
    (volume / "c" / "1" / "0" / "0").unlink()
    output = tmp_path / "out.zarr"
    follow = replace(FOLLOW, timeout_s=1)
    with pytest.raises(InterruptedRunError, match=r"nothing new arrived for 1 s, and 1 of 3 blocks wait") as caught:
        run(volume, output, follow=follow)
    assert caught.value.details[0] == f"absent, or not whole: c/1/0/0 in {volume}"
    assert read_provenance(output)["status"] == "running"

    put(finished / "c/1/0/0", volume / "c/1/0/0")
    assert run(volume, output, follow=follow).pixels == 64 * 64  # the others are done
    run(finished, tmp_path / "expected.zarr")
    require_same(output, tmp_path / "expected.zarr")
    assert sorted(recorded(output)) == [0, 1, 2]


def test_what_never_comes_is_the_fill_value_to_a_run_that_does_not_follow(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    volume = write_volume(tmp_path / "v.zarr", (3, 64, 64), (1, 64, 64))
    (volume / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(InterruptedRunError):
        run(volume, tmp_path / "out.zarr", follow=replace(FOLLOW, timeout_s=1))
    run(volume, tmp_path / "out.zarr")
    run(volume, tmp_path / "expected.zarr")
    require_same(tmp_path / "out.zarr", tmp_path / "expected.zarr")


def test_a_run_that_is_stopped_goes_on(run: Callable[..., Any], tmp_path: Path) -> None:
    finished = write_volume(tmp_path / "finished.zarr", (8, 64, 64), (1, 64, 64))
    volume = begin(finished, tmp_path / "v.zarr")
    output = tmp_path / "out.zarr"
    done: list[int] = []
    with writing(acquire, finished, volume, 3, 1.0, 0.1):
        with pytest.raises(InterruptedRunError, match="blocks done"):
            run(
                volume,
                output,
                follow=FOLLOW,
                progress=lambda progress: done.append(progress.done),
                should_stop=lambda: len(done) >= 2,
            )
        run(volume, output, follow=FOLLOW)
    run(finished, tmp_path / "expected.zarr")
    require_same(output, tmp_path / "expected.zarr")
    assert sorted(recorded(output)) == [*range(8)]


def test_another_shape_is_refused_while_it_is_followed(run: Callable[..., Any], tmp_path: Path) -> None:
    finished = write_volume(tmp_path / "finished.zarr", (3, 64, 64), (1, 64, 64))
    volume = begin(finished, tmp_path / "v.zarr")
    put(finished / "c/0/0/0", volume / "c/0/0/0")
    document = json.loads((finished / "zarr.json").read_text())
    with pytest.raises(ReadError, match=r"shape is \[4, 64, 64\] now, it was \[3, 64, 64\]"):
        run(volume, tmp_path / "out.zarr", follow=FOLLOW, progress=lambda _: set_length(volume, document, 4))


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [((5, 64, 64), (2, 64, 64)), ((5, 3, 64, 64), (1, 2, 64, 64)), ((5, 2, 64, 64), (2, 1, 64, 64))],
    ids=["z", "t", "t, several a chunk"],
)
@pytest.mark.slow
def test_a_volume_that_grows(
    shape: tuple[int, ...], chunks: tuple[int, ...], run: Callable[..., Any], tmp_path: Path
) -> None:
    finished = write_volume(tmp_path / "finished.zarr", shape, chunks)
    volume = begin(finished, tmp_path / "v.zarr", length=0)
    output = tmp_path / "out.zarr"
    with writing(append, finished, volume, 2.0):
        result = run(volume, output, follow=GROWS)
    run(finished, tmp_path / "expected.zarr")
    require_same(output, tmp_path / "expected.zarr")
    assert len(recorded(output)) == len(set(recorded(output))) == result.plan.n_blocks
    said = read_provenance(output)
    assert said["volume"]["shape"] == [*shape]
    assert said["volume"]["grows"] == ("t" if len(shape) == 4 else "z")
    heads = (output / "unet_deploy_run" / "journal.jsonl").read_text().count('"fingerprint"')
    assert heads > 1  # or it did not grow meanwhile
    assert not (output / "unet_deploy_run" / "longer").exists()


def test_a_run_on_a_volume_that_grows_goes_on(run: Callable[..., Any], tmp_path: Path) -> None:
    finished = write_volume(tmp_path / "finished.zarr", (6, 64, 64), (1, 64, 64))
    document = json.loads((finished / "zarr.json").read_text())
    volume = Path(shutil.copytree(finished, tmp_path / "v.zarr"))
    set_length(volume, document, 2)
    output = tmp_path / "out.zarr"
    done: list[int] = []

    def lengthen(progress: Progress) -> None:
        done.append(progress.done)
        set_length(volume, document, 4)

    with pytest.raises(
        InterruptedRunError, match=r"stopped with all 4 blocks done .*, of a volume that grows"
    ) as caught:
        run(volume, output, follow=GROWS, progress=lengthen, should_stop=lambda: len(done) >= 4)
    assert caught.value.fix.endswith("without --follow, it ends with what is there now")
    assert sorted(recorded(output)) == [*range(4)]
    set_length(volume, document, 6)
    run(volume, output, follow=GROWS)
    run(finished, tmp_path / "expected.zarr")
    require_same(output, tmp_path / "expected.zarr")
    assert sorted(recorded(output)) == [*range(6)]


def test_a_volume_that_grew_is_finished_without_following(run: Callable[..., Any], tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "v.zarr", (5, 64, 64), (2, 64, 64))
    document = json.loads((volume / "zarr.json").read_text())
    expected = tmp_path / "expected.zarr"
    (volume / "c" / "1" / "0" / "0").unlink()
    run(volume, expected)
    set_length(volume, document, 2)
    output = tmp_path / "out.zarr"
    with pytest.raises(InterruptedRunError, match="1 of 2 blocks wait for chunks"):
        run(volume, output, follow=GROWS, progress=lambda _: set_length(volume, document, 5))
    run(volume, output)
    require_same(output, expected)


def test_a_volume_that_grew_after_its_end_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "v.zarr", (6, 64, 64), (4, 64, 64))
    document = json.loads((volume / "zarr.json").read_text())
    set_length(volume, document, 5)
    output = tmp_path / "out.zarr"
    journal = None
    with pytest.raises(InterruptedRunError):
        run(volume, output, follow=GROWS, should_stop=lambda: _has_length(output, 5))
    journal = read_journal(output)
    assert journal is not None
    assert journal.fingerprint["volume"]["shape"][0] == 5
    set_length(volume, document, 6)
    with pytest.raises(JournalError, match=r"the volume has 6 planes now; it had 5 when its last blocks were run"):
        run(volume, output, follow=GROWS)


def _has_length(output: Path, length: int) -> bool:
    journal = read_journal(output)
    return journal is not None and journal.fingerprint["volume"]["shape"][0] == length


def test_a_region_of_a_volume_that_grows_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "v.zarr", (6, 64, 64), (4, 64, 64))
    with pytest.raises(UsageError, match="a region came, of a volume that is followed while it grows"):
        run(volume, tmp_path / "out.zarr", follow=GROWS, region=parse_region("z=0:2"))


def test_a_region_waits_for_its_own_chunks(run: Callable[..., Any], tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "v.zarr", (3, 64, 64), (1, 64, 64))
    (volume / "c" / "2" / "0" / "0").unlink()
    result = run(volume, tmp_path / "out.zarr", follow=FOLLOW, region=parse_region("z=0:2"))
    assert result.status == "region"
    assert sorted(recorded(tmp_path / "out.zarr")) == [0, 1]
    assert read_arrays(tmp_path / "out.zarr")["labels/segmentation/0"].shape == (3, 64, 64)
