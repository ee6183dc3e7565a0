"""Every engine of a GPU: right, how fast alone, and how fast from Zarr to Zarr. One command for a machine with one GPU.

    python benchmarks/gpu.py [--device cuda] [--seconds 1500] [--width 64 16] [--precisions fp16 int8 fp32]

1. Makes the bundled network at each width in each precision (benchmarks/wide_network.py, with torch).
2. *engines*: for every engine, tile and batch the rate of batches that follow each other, bytes in and bytes out, with
   the operations a second (exact FLOPs of the tile) as a share of what the GPU's tensor cores do at most; and the
   difference of its logits from those of onnxruntime-cpu on the fp32 network.
3. *runs*: a stack of mosaics from Zarr to Zarr in main memory and on the disk, with the fastest engine, tile and batch;
   with labels alone and with probabilities; by one process and by several that share the GPU. Each rate is set
   against the engine alone, and the timeline says what the device waited for.
4. PyTorch on the same network, for comparison.

Most important first: width 64 in fp16. Whatever does not work is in the result with its reason; what was measured is
written at once, and what there was no time for is named. Run it twice: engines of TensorRT are built in the first.

With ``--device cpu`` it rehearses all of this on the CPU; with ``--model`` it takes that artifact alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, describe_machine
from gpu_engines import Variant, compare, fast_folder, peak_of, real_tile, time_engine, time_torch, variants
from gpu_inputs import Networks, OneModel, make_stack

from unet_deploy.errors import UnetDeployError
from unet_deploy.runtime import Artifact, open_engine, segment
from unet_deploy.runtime.machine import read_gpus
from unet_deploy.runtime.normalise import normaliser_of_image

PARITY_CORE = 768
MOST_STAGES = 12
KINDS = (("labels",), ("labels", "probabilities"))
THREADS = 6
"""Of each of several processes, as `plan.DEVICE_BLOCKS_IN_FLIGHT`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fastest:
    """What came to the highest rate of a network: which engine at which tile and batch."""

    mpx_per_s: float
    variant: Variant
    artifact: Artifact
    core: int
    batch: int


@dataclass(slots=True, kw_only=True)
class Results:
    """What was measured; written after every row, so that nothing is lost when something later fails."""

    path: Path
    head: dict[str, Any]
    deadline: float
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"engines": [], "runs": [], "torch": []})
    left_out: list[str] = field(default_factory=list)

    def measure(self, section: str, case: dict[str, Any], do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a row with what `do` measured, or why it could not; empty where the time is up."""
        words = f"{section}: {', '.join(str(value) for value in case.values())}"
        if time.monotonic() > self.deadline:
            self.leave_out(words)
            return {}
        print(words, file=sys.stderr, flush=True)
        start = time.monotonic()
        try:
            row = {**case, **do()}
        except UnetDeployError as error:
            row = {**case, "failed": "; ".join([error.headline, *error.details])}
        except Exception as error:  # whatever an engine raises; the others go on
            row = {**case, "failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        row["stage_s"] = round(time.monotonic() - start, 1)
        self.rows[section].append(row)
        print(f"  {row.get('mpx_per_s', row.get('failed'))}", file=sys.stderr, flush=True)
        self.write()
        return row

    def leave_out(self, words: str) -> None:
        """Say what was not measured."""
        print(f"left out: {words}", file=sys.stderr, flush=True)
        self.left_out.append(words)
        self.write()

    def write(self) -> None:
        """Put everything into the file, at once."""
        result = {**self.head, **self.rows, "not_measured": self.left_out}
        text = json.dumps({**result, "machine": describe_machine()}, indent=2) + "\n"
        begun = self.path.with_suffix(".partial")
        begun.write_text(text, encoding="utf-8")
        begun.replace(self.path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=1500.0, help="no measurement is begun after so long")
    parser.add_argument("--seconds-each", type=float, default=2.0, help="how long an engine is timed at one tile")
    parser.add_argument("--run-seconds", type=float, default=15.0, help="about how long a run should take")
    parser.add_argument("--width", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--precisions", nargs="+", default=["fp16", "int8", "fp32"])
    parser.add_argument("--engines", nargs="+", help="only these, by name")
    parser.add_argument("--cores", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--side", type=int, default=8192, help="of the planes of the stack that is segmented")
    parser.add_argument("--model", help="an artifact, or 'bundled': in place of the networks of each width")
    parser.add_argument("--out", type=Path, help="the file to write; by default one in benchmarks/results")
    options = parser.parse_args()
    gpus = read_gpus()
    name = "-".join(gpus.found[0].name.split()).lower() if gpus.found else f"rehearsal-{options.device}"
    results = Results(
        path=options.out or ROOT / "benchmarks" / "results" / f"gpu-{name}.json",
        head={
            "what": "engines against onnxruntime-cpu on the fp32 network, their speed, and that of whole runs",
            "command": f"python benchmarks/gpu.py {' '.join(sys.argv[1:])}".strip(),
            "gpus": [gpu.name for gpu in gpus.found],
            "driver": gpus.found[0].driver if gpus.found else gpus.note,
        },
        deadline=time.monotonic() + options.seconds,
    )
    results.write()
    with tempfile.TemporaryDirectory() as disk, ExitStack() as held:
        folders = {"disk": Path(disk)}
        if (memory := fast_folder()) is not None:
            folders = {"memory": Path(held.enter_context(tempfile.TemporaryDirectory(dir=memory))), **folders}
        for width in [0] if options.model else options.width:
            try:
                measure_width(width, folders, results, options, gpus.found[0].name if gpus.found else None)
            except Exception as error:  # a network that cannot be made; another width can
                results.leave_out(f"width {width}, the rest: {type(error).__name__}: {error}")
    print(results.path.read_text(encoding="utf-8"))


def measure_width(width: int, folders: dict[str, Path], results: Results, options: Any, gpu: str | None) -> None:
    """Measure the networks of one width, or the model that was given."""
    networks = OneModel(options.model) if options.model else Networks(folders["disk"], width)
    parent = networks.give("fp32")
    core = min(PARITY_CORE, max(options.cores))
    probe = real_tile(parent.card.geometry.tile_side(core))
    reference = open_engine(parent, engine="onnxruntime-cpu")
    expected = reference.infer(np.asarray(normaliser_of_image(parent.card, probe[0])(probe[0])[None]))
    reference.close()
    for precision in [networks.precision] if isinstance(networks, OneModel) else options.precisions:
        common = {"width": parent.card.network.base_width, "precision": precision}
        found: list[Fastest] = []
        for variant in variants(options.device, precision):
            if options.engines and variant.engine not in options.engines:
                continue
            artifact = networks.give(precision, variant.engine)
            found += measure_engine(variant, artifact, probe, expected, common, results, options, gpu)
        if found:
            measure_runs(max(found, key=lambda one: one.mpx_per_s), folders, common, results, options)
        if options.device.startswith("cuda") and networks.checkpoint is not None and precision != "int8":
            measure_torch(networks.checkpoint, parent, common, results, options, gpu)


def measure_engine(
    variant: Variant,
    artifact: Artifact,
    probe: Any,
    expected: Any,
    common: dict[str, Any],
    results: Results,
    options: Any,
    gpu: str | None,
) -> list[Fastest]:
    """Time an engine at every tile and batch; return what came of each."""
    found: list[Fastest] = []
    geometry, channels = artifact.card.geometry, artifact.card.network.in_channels
    for core in options.cores:
        for batch in options.batches:
            side = geometry.tile_side(core)
            case = {**common, "engine": variant.words, "core": core, "tile": side, "batch": batch}

            def time_it(side: int = side, batch: int = batch) -> dict[str, Any]:
                start = time.perf_counter()
                engine = variant.open(artifact, options.device, (batch, channels, side, side))
                opened = time.perf_counter() - start
                try:
                    raw = np.repeat(real_tile(side), batch, axis=0)
                    timed = time_engine(engine, artifact, raw, seconds=options.seconds_each)
                    said = engine.describe().to_object()
                    # Last: another form takes the place of this one in the GPU's memory.
                    parity = compare(engine, artifact, probe, expected) if probe.shape[-1] <= side else {}
                finally:
                    engine.close()
                shown = {key: said[key] for key in ("provider", "device", "versions")}
                peak = peak_of(gpu, common["precision"])
                share = {} if peak is None else {"share_of_peak": round(timed["tflops"] / peak, 4), "peak_tflops": peak}
                return {**timed, **share, **parity, "open_s": round(opened, 2), **shown}

            row = results.measure("engines", case, time_it)
            if "failed" in row and "mpx_per_s" not in row and is_hopeless(row["failed"]):
                return found
            if rate := row.get("mpx_per_s"):
                found.append(Fastest(mpx_per_s=rate, variant=variant, artifact=artifact, core=core, batch=batch))
    return found


def is_hopeless(reason: str) -> bool:
    """Tell whether an engine fails at every tile: it is not installed, or there is no device."""
    return any(words in reason for words in ("not installed", "needs the package", "no NVIDIA GPU", "does not run on"))


def measure_runs(
    best: Fastest, folders: dict[str, Path], common: dict[str, Any], results: Results, options: Any
) -> None:
    """Segment a stack with the fastest engine, tile and batch, in each folder, by so many processes."""
    for place, folder in folders.items():
        planes = max(1, round(options.run_seconds * best.mpx_per_s * 1e6 / options.side**2))
        planes = min(planes, int(0.25 * shutil.disk_usage(folder).free / (options.side**2 * 3.5)) or 1)
        volume = make_stack(folder / "stack.zarr", options.side, planes)
        for kinds in KINDS:
            for workers in options.workers if best.variant.words == best.variant.engine else [1]:
                case = {**common, "engine": best.variant.words, "core": best.core, "batch": best.batch, "in": place}
                case |= {"write": "+".join(kinds), "processes": workers, "planes": planes, "side": options.side}

                run = partial(run_once, volume, best, kinds=kinds, workers=workers, options=options)
                results.measure("runs", case, run)
        shutil.rmtree(volume)


def run_once(volume: Path, best: Fastest, *, kinds: tuple[str, ...], workers: int, options: Any) -> dict[str, Any]:
    """Segment the stack once, beside it, and take the result away."""
    variant, card = best.variant, best.artifact.card
    side = card.geometry.tile_side(best.core)
    shape = (best.batch, card.network.in_channels, side, side)
    output, profile = volume.with_name("out.ome.zarr"), volume.with_name("profile.html")
    try:
        with ExitStack() as held:
            result = segment(
                volume,
                model=best.artifact,
                output=output,
                overwrite=True,
                write=kinds,
                device=options.device,
                engine=variant.engine,
                engine_factory=variant.factory(options.device, shape),
                tile=(side, side),
                batch=best.batch,
                scheduler=held.enter_context(processes(workers)) if workers > 1 else None,
                profile=profile,
            )
    finally:
        profile.unlink(missing_ok=True)
        shutil.rmtree(output, ignore_errors=True)
    return describe_run(result, best.mpx_per_s)


def describe_run(result: Any, alone: float) -> dict[str, Any]:
    """Return what a run showed, set against the engine alone."""
    rate = result.pixels / result.seconds["total"] / 1e6
    in_blocks = result.pixels / result.seconds["blocks"] / 1e6
    waits = result.profile.to_object()["device"]
    return {
        "mpx_per_s": round(rate, 3),
        "mpx_per_s_while_blocks_run": round(in_blocks, 3),
        "engine_alone_mpx_per_s": alone,
        "share_of_engine": round(rate / alone, 4),
        "share_while_blocks_run": round(in_blocks / alone, 4),
        "stages_s": {key: round(value, 3) for key, value in result.seconds.items()},
        "threads_s": {stage.name: round(stage.seconds, 3) for stage in result.profile.stages[:MOST_STAGES]},
        "device": {key: value for key, value in waits.items() if key != "longest_waits"},
        "rungs": len(result.rungs),
    }


def measure_torch(
    checkpoint: Path, artifact: Artifact, common: dict[str, Any], results: Results, options: Any, gpu: str | None
) -> None:
    """Time PyTorch at every tile, a batch of one."""
    for core in options.cores:
        side = artifact.card.geometry.tile_side(core)

        def time_it(side: int = side) -> dict[str, Any]:
            raw, half = real_tile(side), common["precision"] == "fp16"
            timed = time_torch(checkpoint, artifact, raw, half=half, seconds=options.seconds_each)
            peak = peak_of(gpu, common["precision"])
            return timed if peak is None else {**timed, "share_of_peak": round(timed["tflops"] / peak, 4)}

        results.measure("torch", {**common, "core": core, "tile": side, "batch": 1}, time_it)


@contextmanager
def processes(n: int) -> Iterator[Any]:
    """Give a client of so many processes, each of which opens the engine for itself."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=n, threads_per_worker=THREADS, memory_limit=0, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


if __name__ == "__main__":
    main()
