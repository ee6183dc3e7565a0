"""Segment a Dask array lazily: the pipeline's way in.

1. The result is a Dask array of blocks, planned like any run; nothing is computed until the caller computes it, but
   for one thing: where the card asks for percentiles of the volume, one pass over the array takes them at once. Were it
   part of the graph, Dask would keep every chunk in memory from that pass to the segmentation.
2. Each block is one task on the slices of the input that its halo touches: no ``map_overlap`` (12 to 14 tasks a
   chunk, and its ``reflect`` repeats the edge pixel).
3. The numbers are those of `segment`, whatever the chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import ChannelError, UnsupportedAxesError
from unet_deploy.percentiles import PercentileSearch
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_costs import CAUTIOUS
from unet_deploy.runtime.engines import candidates
from unet_deploy.runtime.engines.cache import EngineFactory, EngineRequest, get_engine
from unet_deploy.runtime.execute import segment_window
from unet_deploy.runtime.expected_costs import expect_costs
from unet_deploy.runtime.layout import require_kinds
from unet_deploy.runtime.normalise import Normaliser, choose_normaliser, needs_statistics
from unet_deploy.runtime.ome import require_axes
from unet_deploy.runtime.plan import BLOCKS_IN_FLIGHT, Block, Extents, plan_segmentation
from unet_deploy.runtime.preparation import plan_for, resolve_model
from unet_deploy.runtime.windows import WindowPlan, plan_window, spread

TREE_WIDTH = 8
"""So many counts of digits are added at a time."""


def segment_array(
    array: Any,
    *,
    model: str | Path | Artifact | None = None,
    axes: str | None = None,
    kind: str = "labels",
    channels: Sequence[int] = (),
    input_range: tuple[float, float] | None = None,
    device: str = "auto",
    engine: str | None = None,
    threads: int = 0,
    tile: tuple[int, int] | None = None,
    batch: int = 1,
    max_memory_bytes: int | None = None,
    tta: bool = False,
    engine_factory: EngineFactory | None = None,
) -> Any:
    """Return the segmentation of a Dask array as a Dask array.

    Parameters
    ----------
    array
        ``dask.array.Array`` of 2 to 5 of the axes t, c, z, y, x, any chunks.
    model
        An artifact, its path, or the name of a bundled network; the bundled ``membrane`` if None.
    axes
        Names of the axes, such as ``"zyx"``; yx, zyx and tczyx are taken for 2, 3 and 5 axes.
    kind
        ``"labels"``: uint8, the array's axes without c. ``"probabilities"``: uint8, 255 for certain, with c the class.
    channels
        Indices along c, in the model's order; all by default.
    input_range, device, engine, threads, tile, batch, max_memory_bytes, tta, engine_factory
        As in `segment`, but that each process which computes blocks chooses for itself where no `engine` is named: name
        one if they have different packages, or are on machines of which `unet-deploy bench` has measured some. Without
        an `input_range`, a model that scales each volume by its own percentiles computes the whole array once now, to
        take them (float32 twice).

    Returns
    -------
    dask.array.Array
        uint8, chunked as planned; computing it runs the network.

    Raises
    ------
    UnsupportedAxesError, ChannelError, ValueRangeError, TileNotLegalError, ConfigurationError, ModelError
        Before the result is computed, if array and model do not fit.
    """
    import dask
    import dask.array

    (wanted,) = require_kinds([kind])
    candidates(device, engine)
    artifact = resolve_model(model)
    card = artifact.card
    axes = _require_axes(array, axes)
    count = array.shape[axes.index("c")] if "c" in axes else 1
    chosen = tuple(channels) or tuple(range(count))
    if len(chosen) != card.network.in_channels or not all(0 <= c < count for c in chosen):
        raise ChannelError(
            f"channels {list(chosen)} came, {card.network.in_channels} of the array's {count} were expected",
            f"the model takes: {', '.join(card.input.channels)}",
            fix=f"channels={list(range(card.network.in_channels))}",
        )
    sizes = dict(zip(axes, array.shape, strict=True))
    chunk = dict(zip(axes, array.chunksize, strict=True))
    plan = plan_for(
        artifact,
        partial(
            plan_segmentation,
            card.network,
            Extents(t=sizes.get("t", 1), z=sizes.get("z", 1), y=sizes["y"], x=sizes["x"]),
            source_chunk=(chunk.get("z", 1), chunk["y"], chunk["x"]),
            bytes_per_value=array.dtype.itemsize,
            batch=batch,
            max_memory_bytes=max_memory_bytes,
            tta=tta,
            costs=CAUTIOUS
            if engine_factory is not None
            else expect_costs(artifact, device=device, engine=engine, threads=threads),
        ),
        tile=tile,
    )
    measured = None
    if needs_statistics(card, input_range=input_range):
        assert card.normalisation.percentiles is not None
        measured = _measure(array, axes, chosen, card.normalisation.percentiles)
    normaliser = choose_normaliser(
        card, str(array.dtype), input_range=input_range, source="the Dask array", measured=measured
    )
    request = dask.delayed(
        EngineRequest(
            artifact=artifact,
            device=device,
            engine=engine,
            threads=threads,
            batch_shape=plan.batch_shape,
            factory=engine_factory,
            tta=tta,
        ),
        traverse=False,
    )
    task = dask.delayed(_segment_piece, pure=True, traverse=False)
    channel_index: Any = slice(None) if chosen == tuple(range(count)) else list(chosen)
    classes = card.network.classes

    def block_array(block: Block) -> Any:
        y = plan_window(plan.geometry, block.tiles_y, plan.extents.y)
        x = plan_window(plan.geometry, block.tiles_x, plan.extents.x)
        place = {"t": slice(block.t, block.t + 1), "c": channel_index, "z": block.z.slice}
        place |= {"y": y.source.slice, "x": x.source.slice}
        source = array[tuple(place[axis] for axis in axes)]  # one slicing: it is a task for every chunk it touches
        values = task(source, block, y, x, axes=axes, request=request, normaliser=normaliser, kind=wanted, batch=batch)
        shape = (1, classes if wanted == "probabilities" else 1, block.z.size, block.y.size, block.x.size)
        return dask.array.from_delayed(values, shape=shape, dtype=np.uint8)

    nested: list[Any] = [block_array(block) for block in plan.blocks()]
    for size in reversed(plan.block_counts):
        nested = [nested[i : i + size] for i in range(0, len(nested), size)]
    result = dask.array.block(_insert_channel_level(nested[0]))  # (t, c, z, y, x)
    kept = {*axes} - {"c"} | ({"c"} if kind == "probabilities" else set())
    return result[tuple(slice(None) if axis in kept else 0 for axis in "tczyx")]


def segment_pixels(pixels: npt.NDArray[Any], **options: Any) -> npt.NDArray[np.uint8]:
    """Return the segmentation of an array in memory: what `segment_array` gives, computed. Parameters are as there.

    >>> segment_pixels(np.zeros((40, 50), np.uint8)).shape
    (40, 50)
    """
    import dask
    import dask.array

    lazy = segment_array(dask.array.from_array(pixels, chunks=pixels.shape), **options)
    with dask.config.set(scheduler="threads", num_workers=BLOCKS_IN_FLIGHT):
        result: npt.NDArray[np.uint8] = lazy.compute()
    return result


def _measure(
    array: Any, axes: str, channels: Sequence[int], percentiles: tuple[float, float]
) -> tuple[tuple[float, float], ...]:
    """Return the grey values at two percentiles of each channel; computes the array once for each digit."""
    import dask

    pieces = [array if "c" not in axes else array[(slice(None),) * axes.index("c") + (c,)] for c in channels]
    searches = [
        PercentileSearch.begin(str(array.dtype), piece.size, percentiles, source="the Dask array") for piece in pieces
    ]
    count, add = dask.delayed(PercentileSearch.count, pure=True), dask.delayed(_add, pure=True)
    while not searches[0].is_done:
        sums = []
        for search, piece in zip(searches, pieces, strict=True):
            counts = [count(search, block, source="the Dask array") for block in piece.to_delayed().ravel()]
            while len(counts) > 1:  # a tree, so that few counts are held at a time
                counts = [add(counts[i : i + TREE_WIDTH]) for i in range(0, len(counts), TREE_WIDTH)]
            sums += counts
        computed = dask.compute(*sums)  # all channels together: each chunk is loaded once
        searches = [search.narrowed(counts) for search, counts in zip(searches, computed, strict=True)]
    return tuple(search.values for search in searches)


def _add(counts: list[Any]) -> Any:
    return sum(counts[1:], counts[0])


def _require_axes(array: Any, axes: str | None) -> str:
    names = axes if axes is not None else {2: "yx", 3: "zyx", 5: "tczyx"}.get(array.ndim)
    if names is None or len(names) != array.ndim:
        raise UnsupportedAxesError(
            f"axes {axes!r} came for an array of {array.ndim} axes",
            f"shape {array.shape}",
            fix='name them all in the order t, c, z, y, x, such as axes="czyx"',
        )
    return require_axes(list(names), where="the axes argument", fix='name them in order, such as axes="czyx"')


def _segment_piece(
    pixels: npt.NDArray[Any],
    block: Block,
    y: WindowPlan,
    x: WindowPlan,
    *,
    axes: str,
    request: EngineRequest,
    normaliser: Normaliser,
    kind: str,
    batch: int,
) -> npt.NDArray[np.uint8]:
    """Segment one block from the pixels (of `axes`) that it needs; the Dask task. Returns (1, c, z, y, x)."""
    canonical = np.asarray(pixels)[tuple(slice(None) if axis in axes else None for axis in "tczyx")]  # t of size 1
    segmented = segment_window(
        spread(canonical[0], y, x),
        block,
        engine=get_engine(request),
        normaliser=normaliser,
        kinds=require_kinds([kind]),
        batch=batch,
    )
    if segmented.labels is not None:
        return segmented.labels[None, None]
    assert segmented.probabilities is not None
    return segmented.probabilities[None]


def _insert_channel_level(nested: list[Any]) -> list[Any]:
    """Return nested lists (t, z, y, x) as (t, c, z, y, x), each block holding all channels."""
    return [[by_z] for by_z in nested]
