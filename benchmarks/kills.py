"""Random kills of runs on a Dask cluster, each gone on with: is the result an unbroken run's.

    python benchmarks/kills.py [--kills 20] [--seed 0]

Starts a scheduler and two worker processes on loopback, then `segment` runs on them. At random moments the coordinator
(the run itself) or a worker is killed outright; a killed run is given again, a killed worker is replaced. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import save

from unet_deploy.errors import UnetDeployError
from unet_deploy.runtime.journal import journal_path, read_journal
from unet_deploy.sample import em_like_volume

PLANES, SIDE = 160, 256
ADDRESS = "tcp://127.0.0.1:8799"
Process = subprocess.Popen[bytes]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)  # noqa: S311  # repeatable, not secret
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volume, whole, output = make_volume(folder), folder / "whole.zarr", folder / "out.zarr"
        subprocess.run(command(volume, whole), check=True, capture_output=True)
        scheduler = start("scheduler", "--host", "127.0.0.1", "--port", ADDRESS.rpartition(":")[2], "--no-dashboard")
        workers = [start_worker(folder), start_worker(folder)]
        kills: list[str] = []
        runs, run = 0, None
        try:
            time.sleep(5)
            while run is None or run.poll() is None:
                if run is None:
                    run, runs = subprocess.Popen(command(volume, output, "--scheduler", ADDRESS)), runs + 1
                if len(kills) == options.kills:
                    run.wait()
                    break
                wanted = count_blocks(output) + rng.randint(1, 6)
                while count_blocks(output) < wanted and run.poll() is None:
                    time.sleep(0.01)
                time.sleep(0.2 * rng.random())
                if run.poll() is not None:
                    break
                if rng.random() < 0.5:
                    run.kill()
                    run.wait()
                    run, kills = None, [*kills, "coordinator"]
                else:
                    index = rng.randrange(len(workers))
                    workers[index].kill()
                    workers[index].wait()
                    workers[index], kills = start_worker(folder), [*kills, "worker"]
        finally:
            for process in (*workers, scheduler):
                process.kill()
        assert run is not None
        blocks = list_blocks(output)
        save(
            "kills",
            {
                "data": "procedural sample",
                "what": "random SIGKILLs of runs on a scheduler with two worker processes, each run given again",
                "command": f"python benchmarks/kills.py --kills {options.kills} --seed {options.seed}",
                "kills": {kind: kills.count(kind) for kind in ("coordinator", "worker")},
                "runs": runs,
                "last_exit_code": run.returncode,
                "files": len(hash_files(whole)),
                "identical": hash_files(output) == hash_files(whole),
                "blocks": len(set(blocks)),
                "blocks_done_twice": len(blocks) - len(set(blocks)),
            },
        )


def make_volume(folder: Path) -> Path:
    """Write a drawn volume, a block a plane."""
    import zarr

    path = folder / "volume.zarr"
    pixels = em_like_volume(shape=(4, SIDE, SIDE)).repeat(PLANES // 4, axis=0)
    zarr.create_array(str(path), data=pixels, chunks=(1, SIDE, SIDE), dimension_names=list("zyx"))
    return path


def command(volume: Path, output: Path, *more: str) -> list[str]:
    engine = ["--engine", "onnxruntime-cpu", "--threads", "1"]
    return [sys.executable, "-m", "unet_deploy", "segment", str(volume), "-o", str(output), *engine, *more]


def start(kind: str, *arguments: str) -> Process:
    words = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start_worker(folder: Path) -> Process:
    local = ("--local-directory", str(folder / "scratch"))
    return start("worker", ADDRESS, "--nthreads", "1", "--no-nanny", "--no-dashboard", *local)


def count_blocks(output: Path) -> int:
    """Return how many blocks are in the journal; 0 while it is being made."""
    try:
        journal = read_journal(output)
    except UnetDeployError:  # between its making and its first line
        return 0
    return 0 if journal is None else journal.n_recorded


def list_blocks(output: Path) -> list[int]:
    """Return the number of every block in the journal, as often as it is there."""
    lines = journal_path(output).read_text(encoding="utf-8").splitlines()[1:]
    return [json.loads(line.partition(" ")[2])["block"] for line in lines]


def hash_files(store: Path) -> dict[str, str]:
    """Return the hash of every file but those with times or the order of blocks in them."""
    files = (file for file in store.rglob("*") if file.is_file() and file.name not in ("zarr.json", "journal.jsonl"))
    return {str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


if __name__ == "__main__":
    main()
