"""What a user would pick instead, with the same weights on the same machine: speed, memory and seams, side by side.

    pip install -e '.[cpu,openvino,peers]'
    python benchmarks/peers.py [--model FILE] [--int8 FILE] [--side 4096] [--runs 3] [--engine openvino] [--only NAME …]
    python benchmarks/peers.py --quick

1. Input is a Zarr of ISBI slices, output a Zarr of labels, both in chunks of 1024². Each run is a process of its own.
   Its clock starts when all is imported, before the volume is opened, and stops when the labels are written; opening
   the model is inside. Contenders take turns, so that a machine which slows down slows all; medians are compared. Just
   before the clock, another process touches memory and ends, so that none pays for a pause (`common.touch_memory`).
2. All have the same threads. `--engine` runs in whatever takes any engine: ours, a loop, the whole image, MONAI,
   patchly, tiler and dask. With OpenVINO the lines of `ALSO_ONNXRUNTIME` run through onnxruntime as well.
   bioimageio.core has onnxruntime of its own, with default options. Settings: peers_contenders.py, line by line.
3. Tools for networks whose output has the input's size get these weights with padded convolutions: peers_networks.py.
4. Seams: the share of pixels whose label is not that of one pass over the whole image, of the same form of the network
   and computed in onnxruntime. Engines round differently, so that a few pixels in a million may differ without a seam.
5. Who cannot be imported, fails, or would not fit into memory is a line with the reason, never left out in silence.

The width of the paper: ``python benchmarks/wide_network.py wide.pt``, ``unet-deploy export wide.pt -o wide.onnx``, then
``--model wide.onnx``; with ``--precision int8 --calibrate IMAGES``, what `--int8` takes (``--factor 1`` for the bundled
network's own width). Networks, references and mosaics stay in `--keep FOLDER`; `--prepare` makes them and stops, so
that the machine needs to be quiet only for the rest. `--quick` is a rehearsal: 1024², one turn, printed and not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from common import make_mosaic, save
from peers_contenders import CONTENDERS, REFERENCES, Job
from peers_networks import PACKAGE, SAME, VALID, pad_convolutions, write_same_package

from unet_deploy.runtime import load_artifact, load_bundled_artifact
from unet_deploy.runtime.machine import read_memory

RUN = Path(__file__).with_name("peers_run.py")
OURS, INT8, WHOLE = "unet-deploy", "unet-deploy, int8", "whole image"
ALSO_ONNXRUNTIME = (OURS, "loop of tiles", "MONAI 0.25", "dask.map_overlap")
WHOLE_BYTES = {"onnxruntime-cpu": 42, "openvino": 18}
"""Memory of one pass for each pixel and channel of the first level, measured at 2048² and 4096²."""
FREE_SHARE = 0.9
"""Of the memory that is free, how much one pass may need: another program is not to be ended for it."""


def main() -> None:
    options = parse()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="peers-"))
    try:
        compare(options, folder)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--model", type=Path, help="an fp32 artifact of the paper's network; the bundled one if left out"
    )
    parser.add_argument("--int8", type=Path, help="the same network in int8, as another line")
    parser.add_argument("--side", type=int)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--engine", choices=("openvino", "onnxruntime-cpu"), default="openvino")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if sys.platform == "linux" else 2)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="lines to run, as NAME or NAME@ENGINE")
    parser.add_argument("--without", nargs="+", metavar="NAME", default=[], help="lines to leave out")
    parser.add_argument("--limit", type=float, default=1800, metavar="S", help="longest that one run may take")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.side = options.side or (1024 if options.quick else 4096)
    options.runs = options.runs or (1 if options.quick else 3)
    if options.side % 16:
        parser.error("--side: a multiple of 16, or padded convolutions have no single pass to compare with")
    known = {*CONTENDERS, INT8}
    if unknown := {name.partition("@")[0] for name in (*(options.only or ()), *options.without)} - known:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return options


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Prepare, run every line in turn, and save what was measured."""
    artifact = load_artifact(options.model) if options.model else load_bundled_artifact()
    networks = folder / artifact.sha256[:12]
    prepare_networks(artifact, networks, int8=options.int8)
    volume = folder / f"mosaic-{options.side}.zarr"
    if not volume.exists():
        make_mosaic(volume, options.side)
    job = Job(
        volume=str(volume),
        output=str(folder / f"output-{os.getpid()}.zarr"),
        folder=str(networks),
        model=str(networks / VALID),
        engine=options.engine,
        threads=options.threads,
        mean=artifact.card.normalisation.mean[0],
        std=artifact.card.normalisation.std[0],
    )
    references = {form: make_reference(job, form, options) for form in REFERENCES}
    if options.prepare:
        return
    lines = choose_lines(options)
    width = artifact.card.network.base_width
    measured: dict[str, list[dict[str, Any]]] = {line: [] for line in lines}
    given_up: dict[str, str] = {}
    try:
        for turn in range(options.runs):
            for line in lines:
                if line not in given_up:
                    outcome = try_line(line, job, references, options, width, measured, given_up)
                    print(f"{turn + 1}  {line}: {outcome}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("stopped: what was measured is kept", file=sys.stderr)
        options.runs = min((len(runs) for line, runs in measured.items() if line not in given_up), default=0)
    rows = [describe(line, measured, given_up, options) for line in lines]
    result = {
        "what": "Zarr in, labels as Zarr out, by several programs with the same weights",
        "command": describe_command(options),
        "width": width,
        "side": options.side,
        "runs": options.runs,
        "threads": options.threads,
        "engine": options.engine,
        "memory_mib": (read_memory().total_bytes or 0) // 2**20,
        "reference": "one pass, computed in exact tiles by onnxruntime; `whole image` is one pass itself",
        "rows": rows,
    }
    if options.quick:
        print(json.dumps(result, indent=2))
        return
    suffix = "" if options.engine == "openvino" else f"-{options.engine}"
    save(f"peers-width{width}{suffix}", result)


def try_line(
    line: str,
    job: Job,
    references: dict[str, np.ndarray],
    options: argparse.Namespace,
    width: int,
    measured: dict[str, list[dict[str, Any]]],
    given_up: dict[str, str],
) -> str:
    """Run a line, or note why it has no numbers; return what became of it, for who watches."""
    try:
        run = measure(line, job, references, options, width)
    except NotMeasuredError as error:
        given_up[line] = str(error)
        return str(error)
    measured[line].append(run)
    return (
        f"{run['wall_s']:.2f} s, CPU {run['cpu_s']:.2f} s, {run['peak_mib']} MiB, "
        f"labels that differ {run['labels_differ']:.4%}"
    )


def describe_command(options: argparse.Namespace) -> str:
    """Return the command without what is of this machine: folders."""
    words = ["python benchmarks/peers.py"]
    words += [f"--{flag} {path.name}" for flag in ("model", "int8") if (path := getattr(options, flag)) is not None]
    words += [f"--side {options.side} --runs {options.runs} --engine {options.engine}"]
    for flag in ("only", "without"):
        names = [f'"{name}"' if " " in name else name for name in getattr(options, flag) or ()]
        words += [f"--{flag} {' '.join(names)}"] if names else []
    return " ".join(words)


def prepare_networks(artifact: Any, folder: Path, *, int8: Path | None) -> None:
    """Write the forms of the network that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    same = pad_convolutions(artifact.data)
    (folder / VALID).write_bytes(artifact.data)
    (folder / SAME).write_bytes(same)
    if int8 is not None:
        shutil.copyfile(int8, folder / "int8.onnx")
    if not (folder / PACKAGE).exists():
        write_same_package(artifact, same, folder / PACKAGE)


def make_reference(job: Job, form: str, options: argparse.Namespace) -> np.ndarray:
    """Return the labels of one pass, computed where they are not kept."""
    kept = Path(job.folder) / f"reference-{Path(form).stem}-{options.side}.npy"
    if not kept.exists():
        run = start(form, job, engine="onnxruntime-cpu", limit=options.limit * 4)
        np.save(kept, read_labels(run["labels"]))
        shutil.rmtree(job.output)
    labels: np.ndarray = np.load(kept)
    return labels


def choose_lines(options: argparse.Namespace) -> list[str]:
    """Return the lines to run, each as NAME@ENGINE."""
    if options.only:
        names = list(options.only)
    else:
        names = [name for name, contender in CONTENDERS.items() if contender.is_usual]
        if options.int8:
            names.insert(1, INT8)
        if options.engine == "openvino":
            names += [f"{name}@onnxruntime-cpu" for name in ALSO_ONNXRUNTIME]
    lines = []
    for name in names:
        base, _, asked = name.partition("@")
        own = None if base == INT8 else CONTENDERS[base].engine
        lines.append(f"{base}@{own or asked or options.engine}")
    return [
        line
        for line in dict.fromkeys(lines)
        if line not in options.without and line.partition("@")[0] not in options.without
    ]


class NotMeasuredError(Exception):
    """A line that has no numbers, and why."""


def measure(
    line: str, job: Job, references: dict[str, np.ndarray], options: argparse.Namespace, width: int
) -> dict[str, Any]:
    """Run one line once, and count the pixels whose label is not that of one pass."""
    name, _, engine = line.partition("@")
    if name == WHOLE:
        require_memory(options.side, width, engine)
    order = Job(**{**asdict(job), "model": str(Path(job.folder) / "int8.onnx")}) if name == INT8 else job
    contender = CONTENDERS[OURS if name == INT8 else name]
    try:
        run = start(OURS if name == INT8 else name, order, engine=engine, limit=options.limit)
        differs = float(np.mean(read_labels(run["labels"]) != references[contender.network]))
    finally:
        shutil.rmtree(job.output, ignore_errors=True)
    return {**run, "labels_differ": differs}


def start(name: str, job: Job, *, engine: str, limit: float) -> dict[str, Any]:
    """Run a contender in a process of its own; return what it says of itself."""
    order = json.dumps({"contender": name, **asdict(job), "engine": engine})
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_", "KMP_"))}
    try:
        done = subprocess.run(
            [sys.executable, str(RUN), order],
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise NotMeasuredError(f"took longer than {limit:g} s") from None
    if done.returncode == -9:
        raise NotMeasuredError("did not fit: the system ended it, as it does where memory runs out")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith((" ", "\t"))]
        raise NotMeasuredError(f"failed: {lines[-1] if lines else 'no reason given'}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def require_memory(side: int, width: int, engine: str) -> None:
    needed = WHOLE_BYTES[engine] * width * (side + 188) ** 2
    available = read_memory().available_bytes
    if available is not None and needed > FREE_SHARE * available:
        raise NotMeasuredError(f"did not fit: needs {needed / 2**30:.0f} GiB, {available / 2**30:.0f} GiB are free")


def read_labels(path: str) -> np.ndarray:
    array = np.asarray(zarr.open_array(path, mode="r")[:])
    return array.reshape(array.shape[-2:])


def describe(
    line: str, measured: dict[str, list[dict[str, Any]]], given_up: dict[str, str], options: argparse.Namespace
) -> dict[str, Any]:
    """Return a line's row: medians, every run, and how long it takes for each second of ours."""
    name, _, engine = line.partition("@")
    runs = measured[line]
    contender = CONTENDERS.get(name, CONTENDERS[OURS])
    row: dict[str, Any] = {
        "name": name,
        "engine": engine,
        "what": contender.what,
        "network": Path(contender.network).stem,
    }
    if name == INT8:
        row["what"] = "segment --write labels of the network in int8"
        row["labels_differ_from"] = "one pass of the fp32 network: by int8's rounding, not by seams"
    if line in given_up or not runs:
        return {**row, "not_measured": given_up.get(line, "no run")}
    wall, cpu = [run["wall_s"] for run in runs], [run["cpu_s"] for run in runs]
    row |= {
        "mpx_per_s": round(options.side**2 / statistics.median(wall) / 1e6, 3),
        "wall_s": wall,
        "cpu_s": cpu,
        "cpu_s_per_mpx": round(statistics.median(cpu) / options.side**2 * 1e6, 4),
        "peak_mib": max(run["peak_mib"] for run in runs),
        "labels_differ": max(run["labels_differ"] for run in runs),
        "imports_s": statistics.median(run["imports_s"] for run in runs),
        "imports_mib": runs[-1]["imports_mib"],
        "versions": runs[-1]["versions"],
    }
    for key, ours in (("times_ours", f"{OURS}@{options.engine}"), ("times_ours_same_engine", f"{OURS}@{engine}")):
        pairs = list(zip(runs, measured.get(ours, []), strict=False))
        if pairs:
            row[key] = {
                "wall": round(statistics.median(a["wall_s"] / b["wall_s"] for a, b in pairs), 3),
                "cpu": round(statistics.median(a["cpu_s"] / b["cpu_s"] for a, b in pairs), 3),
            }
    return row


if __name__ == "__main__":
    main()
