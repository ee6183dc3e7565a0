"""A run that was killed or stopped goes on with the same command, and ends with the bytes of an unbroken one."""

from __future__ import annotations

import importlib.util
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Outcome
from tests.tiny import make_pixels, read_provenance, snapshot, write_image
from unet_deploy.errors import InterruptedRunError, OutputExistsError
from unet_deploy.runtime import load_artifact, segment
from unet_deploy.runtime.engine_costs import EngineCosts, TileSample
from unet_deploy.runtime.engines.choice import CPU_ORDERS
from unet_deploy.runtime.execute import Progress
from unet_deploy.runtime.journal import create_journal, journal_path, read_journal
from unet_deploy.runtime.kept_costs import keep_costs

Cli = Callable[..., Outcome]
PLANES = 24
CPU_PACKAGES = "openvino", "onnxruntime"
TIMES = {"started", "seconds", "parts"}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    write_image(tmp_path / "v.zarr", make_pixels((PLANES, 260, 250)))
    return tmp_path / "v.zarr"


@pytest.fixture
def unbroken(volume: Path, tiny_model: Path) -> dict[str, str]:
    """All files of an unbroken run's output but its times."""
    segment(volume, model=tiny_model, output=volume.with_name("whole.zarr"), threads=1)
    return contents(volume.with_name("whole.zarr"))


def contents(output: Path) -> dict[str, str]:
    """Return the files of a store; of the root's metadata all but when it was made, and no order of blocks."""
    files = {name: data for name, data in snapshot(output).items() if not name.startswith("unet_deploy_run")}
    root = json.loads((output / "zarr.json").read_text())
    provenance = root["attributes"]["unet_deploy"]
    for key in TIMES:
        provenance.pop(key, None)
    files["zarr.json"] = json.dumps(root, sort_keys=True)
    return files


def blocks_written(output: Path) -> list[int]:
    """Return the number of every block in the journal, as often as it is there."""
    lines = journal_path(output).read_text().splitlines()[1:]
    return [json.loads(line.partition(" ")[2])["block"] for line in lines]


def stop_after(count: int) -> Callable[[], bool]:
    """Return a question that is answered with yes from the count-th time on."""
    asked = iter(range(10**9))
    return lambda: next(asked) >= count


def test_a_stopped_run_goes_on(volume: Path, tiny_model: Path, unbroken: dict[str, str]) -> None:
    output = volume.with_name("out.zarr")
    with pytest.raises(InterruptedRunError, match=rf"^stopped with \d+ of {PLANES} blocks done\n") as caught:
        segment(volume, model=tiny_model, output=output, threads=1, should_stop=stop_after(3))
    assert "which is no result yet" in str(caught.value)
    assert "fix: the same command goes on where it stopped; --overwrite starts anew" in str(caught.value)
    assert read_provenance(output)["status"] == "running"
    before = len(blocks_written(output))
    assert 0 < before < PLANES
    result = segment(volume, model=tiny_model, output=output, threads=1)
    assert contents(output) == unbroken
    assert sorted(blocks_written(output)) == list(range(PLANES))  # none twice
    assert result.blocks_found == before
    assert result.pixels == (PLANES - before) * 260 * 250
    (part,) = read_provenance(output)["parts"]
    assert part["blocks_done"] == before


def test_nothing_is_begun_when_asked_to_stop_at_once(volume: Path, tiny_model: Path) -> None:
    output = volume.with_name("out.zarr")
    with pytest.raises(InterruptedRunError, match=f"^stopped with 0 of {PLANES} blocks done"):
        segment(volume, model=tiny_model, output=output, should_stop=lambda: True)
    result = segment(volume, model=tiny_model, output=output)  # without --overwrite: nothing is lost
    assert result.blocks_found == 0
    assert read_provenance(output)["status"] == "complete"


def test_a_run_killed_before_its_store_was_made(volume: Path, tiny_model: Path) -> None:
    output = volume.with_name("out.zarr")
    create_journal(output, {}).close()
    assert segment(volume, model=tiny_model, output=output).failed == ()
    assert read_provenance(output)["status"] == "complete"


def test_other_parameters_are_refused(volume: Path, tiny_model: Path, cli: Cli) -> None:
    output = volume.with_name("out.zarr")
    with pytest.raises(InterruptedRunError):
        segment(volume, model=tiny_model, output=output, threads=1, should_stop=stop_after(2))
    before = snapshot(output)
    refused = cli("segment", volume, "--model", tiny_model, "-o", output, "--threads", "1", "--tta", "--tile", "76")
    assert refused.code == 3
    assert "error[journal]" in refused.err
    assert "parameters.tta: begun with false, now true" in refused.err
    assert "parameters.tile: begun with" in refused.err
    assert snapshot(output) == before
    done = cli("segment", volume, "--model", tiny_model, "-o", output, "--threads", "1")
    assert done.code == 0
    assert f"of {PLANES} blocks were done before" in done.out


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in CPU_PACKAGES), reason="two engines for a CPU are needed"
)
def test_what_was_measured_meanwhile_changes_nothing(
    volume: Path, tiny_model: Path, unbroken: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A measurement may turn the order of the engines, and choose another tile: for new runs."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    output, again = volume.with_name("out.zarr"), volume.with_name("again.zarr")
    options: dict[str, Any] = {"model": tiny_model, "threads": 1}
    with pytest.raises(InterruptedRunError):
        segment(volume, output=output, should_stop=stop_after(3), **options)
    first, other = CPU_ORDERS["fp32"].names
    artifact = load_artifact(tiny_model)
    for engine, seconds in ((first, 9.0), (other, 0.1)):
        samples = [
            TileSample(tile_y=side, tile_x=side, batch=1, seconds=taken, memory_bytes=10**6)
            for side, taken in ((60, seconds), (204, 100 * seconds))  # the small one is much the faster
        ]
        costs = EngineCosts(
            engine=engine,
            device="cpu",
            precision="fp32",
            threads=1,
            versions={},
            samples=tuple(samples),
            measured="2026-11-21",
        )
        assert keep_costs(artifact, costs) is not None
    result = segment(volume, output=output, **options)
    assert (result.engine.engine, result.blocks_found > 0) == (first, True)
    assert [v.verdict for v in result.engine.choice] == ["the run was begun with it"]
    new = segment(volume, output=again, **options)
    assert new.engine.engine == other
    assert new.plan.tile_y != result.plan.tile_y

    def pixels(files: dict[str, str]) -> dict[str, str]:
        return {name: data for name, data in files.items() if name != "zarr.json"}

    assert pixels(contents(output)) == pixels(unbroken)


def test_failed_blocks_are_run_again_when_asked(
    volume: Path, tiny_model: Path, unbroken: dict[str, str], cli: Cli
) -> None:
    output = volume.with_name("out.zarr")
    chunk = volume / "0" / "c" / "5" / "0" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:20])
    command = ("segment", volume, "--model", tiny_model, "-o", output, "--threads", "1")
    partial = cli(*command)
    assert partial.code == 6
    assert "fix: mend the cause, then give the same command with --retry-failed" in partial.err
    before = snapshot(output)
    refused = cli(*command)
    assert refused.code == 3
    assert f"the output {output} exists, and 1 of its blocks failed" in refused.err
    assert "fix: run just those again with --retry-failed" in refused.err
    assert snapshot(output) == before
    still = cli(*command, "--retry-failed")  # it is not mended yet
    assert still.code == 6
    chunk.write_bytes(whole)
    mended = cli(*command, "--retry-failed")
    assert mended.code == 0, mended.err
    assert contents(output) == unbroken
    written = blocks_written(output)
    assert written.count(5) == 3
    assert sorted(set(written)) == list(range(PLANES))
    assert len(written) == PLANES + 2
    nothing = cli(*command, "--retry-failed")
    assert nothing.code == 3
    assert "there are no failed blocks to run again" in nothing.err
    assert "its status is complete" in nothing.err


def test_nothing_to_retry_where_nothing_is(volume: Path, tiny_model: Path) -> None:
    with pytest.raises(OutputExistsError, match="no segmentation of ours is there") as caught:
        segment(volume, model=tiny_model, output=volume.with_name("none.zarr"), retry_failed=True)
    assert caught.value.fix == "leave --retry-failed out"
    assert not volume.with_name("none.zarr").exists()


def test_two_runs_on_one_output(volume: Path, tiny_model: Path, cli: Cli) -> None:
    output = volume.with_name("out.zarr")
    with pytest.raises(InterruptedRunError):
        segment(volume, model=tiny_model, output=output, threads=1, should_stop=stop_after(2))
    before = snapshot(output)
    holder = hold_lock(output)
    try:
        for extra in ((), ("--overwrite",)):
            refused = cli("segment", volume, "--model", tiny_model, "-o", output, "--threads", "1", *extra)
            assert refused.code == 3
            assert f"error[output-busy]: another run is writing to {output}" in refused.err
            assert snapshot(output) == before
    finally:
        holder.kill()
        holder.communicate()


def test_a_result_that_came_meanwhile_is_not_replaced(volume: Path, tmp_path: Path) -> None:
    """Two runs are begun on a place that is free; one ends while the other still measures the volume."""
    output = volume.with_name("out.zarr")
    first: list[str] = []

    def finish_another(progress: Progress) -> None:
        if progress.stage == "statistics" and not first:
            first.append("begun")
            segment(volume, model="nuclei", output=output, threads=1, input_range=(0, 255))

    with pytest.raises(OutputExistsError, match=r"out\.zarr exists"):
        segment(volume, model="nuclei", output=output, threads=1, progress=finish_another)
    assert first
    assert read_provenance(output)["parameters"]["input_range"] == [0, 255]
    assert read_provenance(output)["status"] == "complete"


def hold_lock(output: Path) -> subprocess.Popen[str]:
    """Return a process that holds the lock of an output's journal."""
    script = (
        "import sys, time, pathlib\n"
        "from unet_deploy.runtime.journal import read_journal, reopen_journal\n"
        "output = pathlib.Path(sys.argv[1])\n"
        "held = reopen_journal(output, read_journal(output).fingerprint)\n"
        "print('held', flush=True)\n"
        "time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(output)], stdout=subprocess.PIPE, text=True, cwd=output.parent
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def start(volume: Path, model: Path, output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "unet_deploy", "segment", volume, "-m", model, "-o", output, "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=volume.parent,
    )


@pytest.mark.slow
def test_killed_at_random_moments(volume: Path, tiny_model: Path, unbroken: dict[str, str]) -> None:
    """Each kill is followed by the same command, which is killed too, until one gets to its end."""
    output, rng = volume.with_name("out.zarr"), random.Random(7)
    for kill in range(4):
        program = start(volume, tiny_model, output)
        before = 0 if not journal_path(output).exists() else len(blocks_written(output))
        wanted = before + rng.randint(1, 4)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and program.poll() is None:
            journal = read_journal_quietly(output)
            if journal >= wanted:
                break
        time.sleep(rng.random() * 0.05)
        assert program.poll() is None, (kill, program.communicate())
        program.kill()
        program.communicate()
        assert read_provenance(output)["status"] == "running"
    last = start(volume, tiny_model, output)
    out, err = last.communicate(timeout=120)
    assert last.returncode == 0, err
    assert "blocks were done before" in out
    assert contents(output) == unbroken
    assert sorted(blocks_written(output)) == list(range(PLANES))  # none twice


def read_journal_quietly(output: Path) -> int:
    """Return how many blocks are in the journal; 0 while it is being made."""
    try:
        journal = read_journal(output)
    except Exception:  # between its making and its first line
        return 0
    return 0 if journal is None else journal.n_recorded


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to a whole console, pytest included")
def test_control_c_finishes_what_is_in_flight(volume: Path, tiny_model: Path, unbroken: dict[str, str]) -> None:
    output = volume.with_name("out.zarr")
    program = start(volume, tiny_model, output)
    deadline = time.monotonic() + 60
    while not read_journal_quietly(output) and time.monotonic() < deadline:
        assert program.poll() is None, program.communicate()
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=60)
    assert (program.returncode, out) == (130, "")
    assert "stopping: the blocks in flight are finished; Ctrl-C again stops at once" in err
    assert f"of {PLANES} blocks done" in err
    assert "error[interrupted]" in err
    done = start(volume, tiny_model, output)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert contents(output) == unbroken


def test_grey_values_are_measured_once(tmp_path: Path) -> None:
    """A run that goes on uses the percentiles of its first part."""
    write_image(tmp_path / "v.zarr", make_pixels((12, 70, 80)))
    output, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    options: dict[str, Any] = {"model": "nuclei", "threads": 1}
    segment(tmp_path / "v.zarr", output=whole, **options)
    seen: list[str] = []
    with pytest.raises(InterruptedRunError):
        segment(
            tmp_path / "v.zarr",
            output=output,
            should_stop=lambda: len(seen) > 1,
            progress=lambda p: seen.append(p.stage) if p.stage == "segment" else None,
            **options,
        )
    stages: set[str] = set()
    result = segment(tmp_path / "v.zarr", output=output, progress=lambda p: stages.add(p.stage), **options)
    assert contents(output) == contents(whole)
    assert stages <= {"segment", "pyramid"}
    assert result.statistics is not None
