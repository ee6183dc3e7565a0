"""What takes part in benchmarks/peers.py: each goes from a Zarr volume to a Zarr of labels, as its documentation says.

1. Common to all: normalisation, the largest logit as label, and the output's chunks and codec. Who makes the result as
   one array writes it in one go, chunks in parallel; nobody is made to write unaligned.
2. Tile sizes, overlaps, batches and blending are each tool's own default or its documentation's example; where it has
   none, 512 pixels, or 576 with a halo of 96 for those that cut a halo away. `WHAT` says it line by line.
3. A setting that makes a tool better than its default, where one is known, stands as a line of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from peers_networks import HALO, PACKAGE, SAME, VALID, Predictor, label_blocks, open_predictor, torch_network

CORE, STRIDE, CONTEXT, DIVISOR = 388, 384, 92, 16
WINDOW = 512
BLOCK = 576
CHUNK = 1024
ZSTD_LEVEL = 1  # as `segment` writes
BLOCKSIZE_576, BLOCKSIZE_1216 = 23, 63  # 208 + 16 · n


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run: what to read, with what, and where to write. `folder` holds the networks."""

    volume: str
    output: str
    folder: str
    model: str
    engine: str
    threads: int
    mean: float
    std: float

    def normalise(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return what the network takes."""
        return (pixels.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)

    def network(self, name: str) -> bytes:
        """Return a form of the network."""
        return (Path(self.folder) / name).read_bytes()

    def predictor(self, name: str) -> Predictor:
        """Return a form of the network, running in the engine asked for."""
        return open_predictor(self.network(name), engine=self.engine, threads=self.threads)

    def image(self) -> npt.NDArray[Any]:
        """Return all raw pixels."""
        return np.asarray(zarr.open_array(self.volume, mode="r")[:])

    def write(self, labels: npt.NDArray[Any]) -> None:
        """Write all labels."""
        create_labels(self.output, labels.shape)[:] = labels.astype(np.uint8, copy=False)


def create_labels(path: str, shape: tuple[int, ...]) -> zarr.Array[Any]:
    return zarr.create_array(
        path,
        shape=shape,
        chunks=(CHUNK, CHUNK),
        dtype="uint8",
        compressors=zarr.codecs.ZstdCodec(level=ZSTD_LEVEL),
        fill_value=0,
    )


def run_ours(job: Job, *, kinds: tuple[str, ...] = ("labels",)) -> str:
    from unet_deploy.runtime import segment

    result = segment(
        job.volume,
        model=job.model,
        output=job.output,
        write=kinds,
        device="cpu",
        engine=job.engine,
        threads=job.threads,
    )
    return str(Path(str(result.labels)) / "0")


def run_loop(job: Job, *, core: int = CORE, stride: int = STRIDE) -> None:
    predict, source = job.predictor(VALID), zarr.open_array(job.volume, mode="r")
    labels = np.empty(source.shape, np.uint8)
    for y in range(0, source.shape[0], stride):
        for x in range(0, source.shape[1], stride):
            tile = read_mirrored(source, y - CONTEXT, x - CONTEXT, core + 2 * CONTEXT)
            part = predict(job.normalise(tile)[None, None])[0].argmax(0)[:stride, :stride]
            here = labels[y : y + stride, x : x + stride]
            here[:] = part[: here.shape[0], : here.shape[1]]
    job.write(labels)


def read_mirrored(source: Any, y: int, x: int, side: int) -> npt.NDArray[Any]:
    """Return a window that may leave the image, mirrored there as the paper's figure 2 shows."""
    window, pads = [], []
    for start, extent in ((y, source.shape[0]), (x, source.shape[1])):
        window.append(slice(max(start, 0), min(start + side, extent)))
        pads.append((max(-start, 0), max(start + side - extent, 0)))
    return np.pad(np.asarray(source[tuple(window)]), pads, mode="reflect")


def run_whole(job: Job) -> None:
    predict, image = job.predictor(VALID), job.image()
    pads = [(CONTEXT, -(-n // DIVISOR) * DIVISOR - n + CONTEXT + 4) for n in image.shape]
    logits = predict(job.normalise(np.pad(image, pads, mode="reflect"))[None, None])[0]
    job.write(logits[:, : image.shape[0], : image.shape[1]].argmax(0))


def run_monai(
    job: Job,
    *,
    overlap: float,
    window: int = WINDOW,
    mode: str = "constant",
    use_torch: bool = False,
    batch: int = 1,
) -> None:
    import torch
    from monai.inferers import SlidingWindowInferer

    torch.set_num_threads(job.threads)
    if use_torch:
        network = torch_network(job.network(VALID), padding="same", threads=job.threads)
    else:
        predict = job.predictor(SAME)

        def network(windows: Any) -> Any:
            return torch.from_numpy(predict(windows.numpy()))

    inferer = SlidingWindowInferer(roi_size=(window, window), sw_batch_size=batch, overlap=overlap, mode=mode)
    with torch.inference_mode():
        logits = inferer(torch.from_numpy(job.normalise(job.image()))[None, None], network)
        labels = logits[0].argmax(0).to(torch.uint8)
    job.write(labels.numpy())


def run_bioimageio(job: Job, *, blocksize: int) -> None:
    from bioimageio.core import Sample, Tensor, load_model_description, predict

    model = load_model_description(Path(job.folder) / PACKAGE)
    image = Tensor(job.image()[None, None], dims=("batch", "channel", "y", "x"))
    sample = Sample(members={model.inputs[0].id: image}, stat={}, id="mosaic")
    result = predict(model=model, inputs=sample, blocksize_parameter=blocksize)
    job.write(np.asarray(result.members[model.outputs[0].id].data)[0].argmax(0))


def run_patchly(job: Job, *, step: int = 384) -> None:
    from patchly.aggregator import Aggregator
    from patchly.sampler import GridSampler

    predict, image = job.predictor(SAME), job.normalise(job.image())
    sampler = GridSampler(image=image, spatial_size=image.shape, patch_size=(WINDOW, WINDOW), step_size=(step, step))
    aggregator = Aggregator(sampler=sampler, output_size=(2, *image.shape), spatial_first=False)
    for patch, box in sampler:
        aggregator.append(predict(np.ascontiguousarray(patch)[None, None])[0], box)
    job.write(aggregator.get_output().argmax(0))


def run_tiler(job: Job) -> None:
    from tiler import Merger, Tiler

    predict, image = job.predictor(SAME), job.normalise(job.image())
    tiler = Tiler(data_shape=image.shape, tile_shape=(BLOCK, BLOCK), overlap=2 * HALO)
    new_shape, padding = tiler.calculate_padding()
    tiler.recalculate(data_shape=new_shape)
    merger = Merger(tiler=tiler, window="overlap-tile", logits=2)
    for number, tile in tiler(np.pad(image, padding, mode="reflect")):
        merger.add(number, predict(tile[None, None])[0])
    merged = merger.merge(unpad=True, extra_padding=padding, argmax=True)
    job.write(np.asarray(merged))


def run_dask_paper(job: Job) -> None:
    import dask.array as da

    predict = job.predictor(VALID)

    def label(block: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        extents = [n - 2 * CONTEXT for n in block.shape]
        pads = [(0, (-4 - n) % DIVISOR) for n in block.shape]  # the last chunk of a row is no legal tile
        logits = predict(job.normalise(np.pad(block, pads, mode="reflect"))[None, None])[0]
        return logits[:, : extents[0], : extents[1]].argmax(0).astype(np.uint8)

    image = da.from_zarr(job.volume).rechunk((CORE, CORE))
    labels = da.map_overlap(
        label, image, depth=CONTEXT, boundary="reflect", trim=False, dtype=np.uint8, meta=np.empty((0, 0), np.uint8)
    )
    # Without trimming dask takes the chunks for those with overlap; the function has cut it away.
    labels = da.Array(labels.dask, labels.name, image.chunks, dtype=np.uint8)
    da.store(labels.rechunk((CHUNK, CHUNK)), create_labels(job.output, image.shape), lock=False)


def run_dask_same(job: Job) -> None:
    import dask.array as da

    predict = job.predictor(SAME)

    def label(block: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        return predict(job.normalise(block)[None, None])[0].argmax(0).astype(np.uint8)

    image = da.from_zarr(job.volume)
    labels = da.map_overlap(label, image, depth=HALO, boundary="none", dtype=np.uint8, meta=np.empty((0, 0), np.uint8))
    da.store(labels, create_labels(job.output, image.shape), lock=False)


def run_torch_loop(job: Job) -> None:
    import torch

    network = torch_network(job.network(VALID), padding="valid", threads=job.threads)
    source = zarr.open_array(job.volume, mode="r")
    labels = np.empty(source.shape, np.uint8)
    with torch.inference_mode():
        for y in range(0, source.shape[0], STRIDE):
            for x in range(0, source.shape[1], STRIDE):
                tile = read_mirrored(source, y - CONTEXT, x - CONTEXT, CORE + 2 * CONTEXT)
                logits = network(torch.from_numpy(job.normalise(tile))[None, None])[0]
                here = labels[y : y + STRIDE, x : x + STRIDE]
                here[:] = logits.argmax(0).to(torch.uint8).numpy()[: here.shape[0], : here.shape[1]]
    job.write(labels)


def run_reference(job: Job, *, form: str) -> None:
    """Label as one pass over the whole image would, tile by tile: what the seams are counted against."""
    if form == VALID:
        run_loop(job, core=1028, stride=1024)
    else:
        image, predict = job.normalise(job.image()), job.predictor(SAME)
        job.write(label_blocks(predict, image, block=CHUNK, halo=HALO))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One line of the comparison.

    `network` is the form whose own single pass its labels are compared with. `engine` is None for one that takes the
    engine asked for. `is_usual` is False for lines that run only when they are named.
    """

    what: str
    run: Callable[..., str | None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    network: str = VALID
    engine: str | None = None
    packages: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    """Modules that it would import while it runs; they are imported before the clock starts."""
    is_usual: bool = True


OURS = ("unet_deploy.runtime.pipeline", "unet_deploy.runtime.kept_costs", "dask", "distributed", "onnx")
MONAI = ("torch", "monai.inferers", "monai.data")
DASK = ("dask.array", "distributed")
BIOIMAGEIO = (
    "bioimageio.core",
    "bioimageio.core.backends.onnx_backend",
    "dask.array",
    "distributed",
    "imageio.plugins.pillow",
    "jinja2",
    "scipy.sparse",
    "scipy.special",
)
CONTENDERS: dict[str, Contender] = {
    "unet-deploy": Contender(what="segment --write labels", run=run_ours, packages=("zarr", "dask"), imports=OURS),
    "unet-deploy, probabilities too": Contender(
        what="segment, labels and probabilities",
        run=run_ours,
        settings={"kinds": ("labels", "probabilities")},
        packages=("zarr", "dask"),
        imports=OURS,
    ),
    "loop of tiles": Contender(what="a loop of the paper's tiles, 572 → 388, every 384 pixels", run=run_loop),
    "loop of large tiles": Contender(
        what="the same loop, 1212 → 1028, every 1024 pixels", run=run_loop, settings={"core": 1028, "stride": 1024}
    ),
    "whole image": Contender(what="mirrored, one pass", run=run_whole),
    "MONAI 0.25": Contender(
        what="SlidingWindowInferer, windows of 512, overlap 0.25 (its default), constant, batch 1 (its defaults)",
        run=run_monai,
        settings={"overlap": 0.25},
        network=SAME,
        packages=("monai", "torch"),
        imports=MONAI,
    ),
    "MONAI 0.5": Contender(
        what="the same, overlap 0.5",
        run=run_monai,
        settings={"overlap": 0.5},
        network=SAME,
        packages=("monai", "torch"),
        imports=MONAI,
    ),
    "MONAI 0.125, large windows": Contender(
        what="windows of 1024, overlap 0.125",
        run=run_monai,
        settings={"overlap": 0.125, "window": 1024},
        network=SAME,
        packages=("monai", "torch"),
        imports=MONAI,
    ),
    "MONAI 0.5, gaussian": Contender(
        what="overlap 0.5, gaussian weights",
        run=run_monai,
        settings={"overlap": 0.5, "mode": "gaussian"},
        network=SAME,
        packages=("monai", "torch"),
        imports=MONAI,
        is_usual=False,
    ),
    "MONAI 0.25, torch": Contender(
        what="overlap 0.25, the network in torch",
        run=run_monai,
        settings={"overlap": 0.25, "use_torch": True},
        network=SAME,
        engine="torch",
        packages=("monai", "torch"),
        imports=(*MONAI, "unet_deploy.training.network", "onnx"),
    ),
    "MONAI 0.25, torch, batch 4": Contender(
        what="overlap 0.25, the network in torch, four windows at a time",
        run=run_monai,
        settings={"overlap": 0.25, "use_torch": True, "batch": 4},
        network=SAME,
        engine="torch",
        packages=("monai", "torch"),
        imports=(*MONAI, "unet_deploy.training.network", "onnx"),
        is_usual=False,
    ),
    "bioimageio.core": Contender(
        what="predict of a package, blocks of 576 with the package's halo of 96",
        run=run_bioimageio,
        settings={"blocksize": BLOCKSIZE_576},
        network=SAME,
        engine="onnxruntime-cpu",
        packages=("bioimageio.core", "bioimageio.spec"),
        imports=BIOIMAGEIO,
    ),
    "bioimageio.core, large blocks": Contender(
        what="predict of a package, blocks of 1216 with the package's halo of 96",
        run=run_bioimageio,
        settings={"blocksize": BLOCKSIZE_1216},
        network=SAME,
        engine="onnxruntime-cpu",
        packages=("bioimageio.core", "bioimageio.spec"),
        imports=BIOIMAGEIO,
    ),
    "patchly": Contender(
        what="GridSampler and Aggregator, patches of 512 every 384, averaged (its default)",
        run=run_patchly,
        network=SAME,
        packages=("patchly",),
        imports=("patchly.sampler", "patchly.aggregator"),
    ),
    "tiler": Contender(
        what="tiles of 576, overlap 192, window overlap-tile, padded as its documentation says",
        run=run_tiler,
        network=SAME,
        packages=("tiler",),
        imports=("tiler",),
    ),
    "dask.map_overlap": Contender(
        what="chunks of 388, depth 92, boundary reflect, dask's threads",
        run=run_dask_paper,
        packages=("dask",),
        imports=DASK,
    ),
    "dask.map_overlap, large chunks": Contender(
        what="the volume's chunks of 1024, depth 96, boundary none, dask's threads",
        run=run_dask_same,
        network=SAME,
        packages=("dask",),
        imports=DASK,
    ),
    "torch loop": Contender(
        what="a loop of the paper's tiles, 572 → 388, every 384 pixels, in torch",
        run=run_torch_loop,
        engine="torch",
        packages=("torch",),
        imports=("torch", "unet_deploy.training.network", "onnx"),
    ),
}
REFERENCES = {
    form: Contender(what=f"one pass, {form}", run=run_reference, settings={"form": form}, engine="onnxruntime-cpu")
    for form in (VALID, SAME)
}


def import_all(contender: Contender, *, engine: str) -> None:
    """Import what a contender needs; raises as the import does."""
    packages = {"onnxruntime-cpu": ("onnxruntime",), "openvino": ("unet_deploy.runtime.engines.openvino", "openvino")}
    for name in (*contender.imports, *packages.get(engine, ())):
        importlib.import_module(name)
