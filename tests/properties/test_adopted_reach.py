"""What a foreign graph says of its reach is true: whatever lies beyond it, a cell's result stays, bit for bit.

And it is no wider than need be: for networks that sum what they see, a pixel at the very edge of the reach is felt.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.foreign_graphs import Sketch, logits_of

pytest.importorskip("onnxruntime", reason="foreign graphs are looked at with onnxruntime: extra 'cpu'")

from unet_deploy.exporters.foreign import read_foreign
from unet_deploy.exporters.foreign_graph import rewrite
from unet_deploy.exporters.foreign_reach import SIDES, Reach, find_reach
from unet_deploy.exporters.foreign_write import infer_shapes

LEVELS = st.lists(st.sampled_from(["conv", "wide", "stride", "max", "mean", "residual"]), min_size=1, max_size=3)
UPS = st.sampled_from(["nearest", "linear", "cubic", "transposed", "transposed-3", "transposed-4", "shuffle"])


class SummingSketch(Sketch):
    """A sketch whose weights are positive: nothing cancels, so that all that reaches an output is felt there."""

    def random(self, *shape: int) -> str:
        return self.constant(np.abs(self._rng.normal(1, 0.2, shape)) / np.prod(shape[1:]))


def draw_network(levels: list[str], up: str, seed: int, *, sums: bool) -> Any:
    """Return a network of one pooled level: `levels` on the way down, `up` on the way back, a skip around both."""
    s: Any = (SummingSketch if sums else Sketch)(seed=seed)
    skip = x = s.conv("input", 1, 4)
    x = s.add("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2])
    halved = 1
    for level in levels:
        if level == "conv":
            x = s.conv(x, 4, 4, kernel=5)
        elif level == "wide":
            x = s.conv(x, 4, 4, dilations=[2, 3], pads=[2, 3, 2, 3])
        elif level == "stride":
            x, halved = s.conv(x, 4, 4, stride=2), halved + 1
        elif level == "max":
            x, halved = s.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), halved + 1
        elif level == "mean":
            x = s.add("AveragePool", [x], kernel_shape=[3, 3], pads=[2, 0, 0, 2])  # further to one side
        else:
            x = s.add("Add", [x, s.conv(s.add("Relu", [s.norm(x, 4) if not sums else x]), 4, 4)])
    for _ in range(halved):
        x = rise(s, x, up)
    return s.model(s.conv(s.add("Concat", [x, skip], axis=1), 8, 2))


def rise(s: Sketch, x: str, up: str) -> str:
    scales = s.constant([1, 1, 2, 2])
    match up:
        case "nearest":
            return s.up(x)
        case "linear":
            return s.add("Resize", [x, "", scales], mode="linear", coordinate_transformation_mode="half_pixel")
        case "cubic":
            return s.add("Resize", [x, "", scales], mode="cubic", coordinate_transformation_mode="asymmetric")
        case "transposed":
            return s.add("ConvTranspose", [x, s.random(4, 4, 2, 2)], strides=[2, 2])
        case "transposed-3":
            weight = s.random(4, 4, 3, 3)
            return s.add("ConvTranspose", [x, weight], strides=[2, 2], pads=[1] * 4, output_padding=[1, 1])
        case "transposed-4":
            return s.add("ConvTranspose", [x, s.random(4, 4, 4, 4)], strides=[2, 2], pads=[1] * 4)
        case _:
            return s.add("DepthToSpace", [s.conv(x, 4, 16)], blocksize=2)


def reach_of(model: Any) -> Reach:
    graph = rewrite(read_foreign(model.SerializeToString(), source="drawn"))
    return find_reach(graph, [infer_shapes(graph, side, source="drawn") for side in SIDES], source="drawn")


@settings(max_examples=40)
@given(levels=LEVELS, up=UPS, seed=st.integers(0, 99))
def test_nothing_beyond_the_reach_is_felt(levels: list[str], up: str, seed: int) -> None:
    model = draw_network(levels, up, seed, sums=False)
    reach = reach_of(model)
    d, start = reach.divisor, reach.context
    side = start + d + reach.context + d
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((1, 1, side, side)).astype(np.float32)
    other = rng.standard_normal((1, 1, side, side)).astype(np.float32) * 10
    seen = np.s_[:, :, start - reach.before : start + d + reach.after, start - reach.before : start + d + reach.after]
    other[seen] = image[seen]
    cell = np.s_[:, :, start : start + d, start : start + d]
    results = [logits_of(model, tile)[cell] for tile in (image, other)]
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-5 * np.abs(results[0]).max())

    # A tile that ends where the context does gives the same: no padding is met.
    small = image[:, :, : 2 * start + d, : 2 * start + d]
    np.testing.assert_allclose(results[0], logits_of(model, small)[cell], rtol=0, atol=1e-5 * np.abs(results[0]).max())


@settings(max_examples=25)
@given(
    levels=st.lists(st.sampled_from(["conv", "wide", "stride", "mean", "residual"]), min_size=1, max_size=2),
    up=st.sampled_from(["nearest", "transposed", "transposed-3", "transposed-4", "shuffle"]),
    seed=st.integers(0, 9),
)
def test_the_edge_of_the_reach_is_felt(levels: list[str], up: str, seed: int) -> None:
    model = draw_network(levels, up, seed, sums=True)
    reach = reach_of(model)
    d, start = reach.divisor, reach.context
    side = 2 * start + 2 * d
    image = np.ones((1, 1, side, side), np.float32)
    plain = logits_of(model, image)[:, :, start : start + d, start : start + d]
    felt = []
    for at in (start - reach.before, start + d + reach.after - 1):
        for axis in (2, 3):
            changed = image.copy()
            changed[(slice(None),) * axis + (at,)] = 1e6
            felt.append((logits_of(model, changed)[:, :, start : start + d, start : start + d] != plain).any())
    assert any(felt[:2])  # on one axis or the other: the context is the larger one
    assert any(felt[2:])
