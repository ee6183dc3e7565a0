"""How long it takes until something happens: whole processes, from their start, in alternation.

    python benchmarks/startup.py [--runs 9] [--side 512] [--engines openvino onnxruntime-cpu] [--model FILE]

1. Python alone, and a typer program of one verb, written here: what everything else is compared with.
2. The program's help and version, and the import of `unet_deploy.runtime` by those who embed it.
3. `unet-deploy segment` of a small Zarr as a whole, with each engine.
4. The same run in a process that notes when its imports are done (the engine's package among them), when the first tile
   is begun, when it is done, and when the run is.

Times are seconds since the process was started. The median is what a user sees; the least is what a busy machine leaves
of it. CPU time is that of the process and its threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import make_mosaic, save

PACKAGES = {"openvino": "openvino", "onnxruntime-cpu": "onnxruntime"}
BARE = '''"""A program of one verb."""
import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def greet(name: str) -> None:
    """Say hello."""
    typer.echo(name)


app()
'''
WATCHED = """
import importlib, json, sys, time
volume, output, engine, package, model = sys.argv[1:]
marks = {}

def note(name):
    if name not in marks:
        marks[name] = time.perf_counter(), time.process_time()

import distributed
import zarr
importlib.import_module(package)
from unet_deploy.runtime import segment
from unet_deploy.runtime.engines.checked import CheckedEngine

note("imported")
infer = CheckedEngine.infer

def watched(self, batch):
    note("first tile begun")
    logits = infer(self, batch)
    note("first tile done")
    return logits

CheckedEngine.infer = watched
result = segment(volume, output=output, engine=engine, overwrite=True, **json.loads(model))
note("run done")
print(json.dumps({"marks": marks, "stages": result.seconds}))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--engines", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volume = make_mosaic(folder / "volume.zarr", options.side)
        bare = folder / "bare.py"
        bare.write_text(BARE, encoding="utf-8")
        program = [sys.executable, "-m", "unet_deploy"]
        model = [] if options.model is None else ["--model", str(options.model.absolute()), "--input-range", "0:255"]
        plain = {
            "python": [sys.executable, "-c", ""],
            "bare typer program --help": [sys.executable, str(bare), "--help"],
            "unet-deploy --help": [*program, "--help"],
            "unet-deploy --version": [*program, "--version"],
            "unet-deploy segment --help": [*program, "segment", "--help"],
            "import unet_deploy.runtime": [sys.executable, "-c", "import unet_deploy.runtime"],
        }
        for engine in options.engines:
            output = ["--output", str(folder / f"{engine}.ome.zarr"), "--overwrite", "--json"]
            plain[f"segment, {engine}"] = [*program, "segment", str(volume), "--engine", engine, *output, *model]
        watched = {engine: _watched_command(folder, volume, engine, options.model) for engine in options.engines}
        whole: dict[str, list[tuple[float, float]]] = {name: [] for name in plain}
        marked: dict[str, list[Mapping[str, Any]]] = {engine: [] for engine in watched}
        for run in range(options.runs + 1):
            for what, command in plain.items():
                wall, cpu, _, _ = take(command, folder)
                if run:  # the first only warms the disk's cache
                    whole[what].append((wall, cpu))
            for engine, command in watched.items():
                wall, cpu, began, said = take(command, folder)
                if run:
                    marked[engine].append(_since_start(json.loads(said), began, wall, cpu))
    rows = {name: summarise(pairs) for name, pairs in whole.items()}
    save(
        "startup" if options.model is None else f"startup-{options.model.stem}",
        {
            "what": "seconds from the start of a process, median and least of alternating runs; CPU of all its threads",
            "command": " ".join(["python benchmarks/startup.py", *sys.argv[1:]]),
            "network": "bundled" if options.model is None else str(options.model),
            "side": options.side,
            "runs": options.runs,
            "whole_processes": rows,
            "help_to_bare_typer": {
                key: round(rows["unet-deploy --help"][key] / rows["bare typer program --help"][key], 2)
                for key in ("wall_median_s", "cpu_median_s")
            },
            "marks": {
                engine: {name: summarise([run["marks"][name] for run in runs]) for name in runs[0]["marks"]}
                for engine, runs in marked.items()
            },
            "first_tile_after_imports_s": {
                engine: round(
                    statistics.median(
                        run["marks"]["first tile begun"][0] - run["marks"]["imported"][0] for run in runs
                    ),
                    3,
                )
                for engine, runs in marked.items()
            },
            "stages_s": {
                engine: {
                    name: round(statistics.median(run["stages"][name] for run in runs), 4) for name in runs[0]["stages"]
                }
                for engine, runs in marked.items()
            },
        },
    )


def take(command: list[str], folder: Path) -> tuple[float, float, float, str]:
    """Run a process; return its wall and CPU seconds, when it was started, and what it printed."""
    before, began = children_cpu_s(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False, cwd=folder)
    wall = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:8])} ...\n{done.stderr.decode(errors='replace')}")
    return wall, children_cpu_s() - before, began, done.stdout.decode(errors="replace")


def summarise(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Return median and least of wall and CPU seconds."""
    walls, cpus = zip(*pairs, strict=True)
    return {
        "wall_median_s": round(statistics.median(walls), 3),
        "wall_least_s": round(min(walls), 3),
        "cpu_median_s": round(statistics.median(cpus), 3),
        "cpu_least_s": round(min(cpus), 3),
    }


def _watched_command(folder: Path, volume: Path, engine: str, model: Path | None) -> list[str]:
    output = folder / f"{engine}_watched.ome.zarr"
    given = {} if model is None else {"model": str(model.absolute()), "input_range": [0, 255]}
    return [sys.executable, "-c", WATCHED, str(volume), str(output), engine, PACKAGES[engine], json.dumps(given)]


def _since_start(said: dict[str, Any], began: float, wall: float, cpu: float) -> dict[str, Any]:
    """Return the marks of a process since it was started: all processes of a machine share the clock."""
    marks = {name: (at - began, used) for name, (at, used) in said["marks"].items()}
    return {"marks": {**marks, "process ended": (wall, cpu)}, "stages": said["stages"]}


def children_cpu_s() -> float:
    """Return the CPU seconds of the children that ended; 0 where the system does not count them (Windows)."""
    try:
        import resource
    except ModuleNotFoundError:
        return 0.0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
