"""``unet-deploy check``: a true model passes, one whose card lies is refused, both through the real engine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.conftest import Outcome
from tests.tiny import edit_card, make_pixels, write_array
from unet_deploy.card import TestTensor
from unet_deploy.card_json import CARD_HASH_KEY, METADATA_KEY, dump_card
from unet_deploy.runtime.artifact import hash_card, hash_graph, load_artifact
from unet_deploy.runtime.engines.onnxruntime_cpu import OnnxruntimeCpuEngine
from unet_deploy.runtime.normalise import normaliser_of_image

Cli = Callable[..., Outcome]


def rows(text: str) -> list[tuple[str, str]]:
    return [(name, value) for name, value in (re.split(r" {2,}", line, maxsplit=1) for line in text.splitlines())]


def write_liar(source: Path, target: Path) -> Path:
    """Write an artifact whose graph looks one pixel further than its card says, and is otherwise in order.

    A max-pooling of 3 by 3 with stride 1 stands before everything: no weight of the card is missing or added.
    """
    artifact, model = load_artifact(source), onnx.load(source)
    first = next(node for node in model.graph.node if "image" in node.input)
    first.input[[*first.input].index("image")] = "wider"
    pool = helper.make_node("MaxPool", ["image"], ["wider"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
    model.graph.node.insert(0, pool)
    tensor = artifact.card.test_tensor
    assert tensor is not None
    engine = OnnxruntimeCpuEngine(model.SerializeToString(), precision="fp32", threads=1)
    engine.open()
    batch = np.stack([normaliser_of_image(artifact.card, image)(image) for image in tensor.image])
    card = artifact.card.with_export(
        graph_sha256=hash_graph(model), test_tensor=TestTensor(image=tensor.image, logits=engine.infer(batch))
    )
    texts = {METADATA_KEY: dump_card(card), CARD_HASH_KEY: hash_card(dump_card(card))}
    for entry in model.metadata_props:
        entry.value = texts.get(entry.key, entry.value)
    target.write_bytes(model.SerializeToString(deterministic=True))
    return target


def test_a_true_model_passes(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("check", tiny_model, "--engine", "onnxruntime-cpu", "--threads", "1")
    assert outcome.code == 0
    assert outcome.err.splitlines() == [
        "check: receptive field: 8 impulses",
        "check: tiled against whole",
        "check: extremes",
    ]
    shown = rows(outcome.out)
    assert shown[-1] == ("verdict", "passed")
    found = dict(shown)
    assert found["declared"] == "context 20 px before and 20 after a core, divisor 4"
    assert re.match(r"(onnxruntime|openvino)\S* on cpu, \1 [\d.]+$", found["engine"])
    assert found["picture"] == "the procedural sample"
    assert re.match(
        r"onnxruntime-cpu on cpu: difference \S+ \(at most \S+\), opened in ", dict(shown[::-1])["replayed"]
    )
    assert [name for name, _ in shown].count("seams") == 2
    assert "why tiles keep to the grid" in found["off grid"]
    assert found["extremes"] == "all black finite, all white finite, a checkerboard finite"


def test_on_a_volume_for_machines(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    write_array(tmp_path / "v.zarr", make_pixels((3, 90, 70)), names="zyx")
    outcome = cli("check", tiny_model, "--volume", "v.zarr", "--engine", "onnxruntime-cpu", "--json")
    assert outcome.code == 0
    facts = json.loads(outcome.out)
    assert (facts["passed"], facts["problems"]) == (True, [])
    assert facts["picture"] == "v.zarr, t 0, z 1, y 0:90, x 0:70"
    assert facts["engine"]["engine"] == "onnxruntime-cpu"
    assert all(seam["difference"] <= seam["limit"] for seam in facts["seams"])
    assert facts["misaligned"]["differing"] > 0.1
    assert facts["receptive_field"]["is_within"] is True
    assert facts["extremes_finite"] == {"all black": True, "all white": True, "a checkerboard": True}


@pytest.mark.slow
def test_the_bundled_network_reaches_no_further_than_declared(cli: Cli) -> None:
    outcome = cli("check", "membrane", "--json")
    assert outcome.code == 0
    field = json.loads(outcome.out)["receptive_field"]
    assert field["is_within"]
    assert field["declared"] == {"before": 92, "after": 96}
    assert min(*field["y"].values(), *field["x"].values()) >= 48  # guard: impulses are felt, and from afar
    assert 80 <= max(*field["y"].values(), *field["x"].values()) <= 96


def test_a_card_that_lies_is_refused(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    write_liar(tiny_model, tmp_path / "liar.onnx")
    assert cli("inspect", "liar.onnx").code == 0  # nothing else gives it away
    outcome = cli("check", "liar.onnx", "--engine", "onnxruntime-cpu")
    assert outcome.code == 4
    assert rows(outcome.out)[-1] == ("verdict", "FAILED: 4 problem(s)")
    assert "error[parity]: tiny (liar.onnx) does not compute what its card promises" in outcome.err
    measured = re.search(
        r"the card declares 20 px before and 20 px after a core, an impulse is felt over (\d+) and (\d+) px on axis y, "
        r"(\d+) and (\d+) px on axis x",
        outcome.err,
    )
    assert measured is not None
    assert max(map(int, measured.groups())) == 21
    assert "differ from one pass by" in outcome.err
    assert re.search(r"engine: (onnxruntime-cpu|openvino) on cpu", outcome.err)
    assert outcome.err.splitlines()[-1].startswith("  fix: do not segment with it here: try --device cpu, ")
    assert "Traceback" not in outcome.err
    assert json.loads(cli("check", "liar.onnx", "--json").out)["passed"] is False


def test_a_device_that_computes_something_else_is_refused_at_once(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    """Nothing is proved on an engine that fails the test tensor; here the tensor was changed, not the device."""
    artifact = load_artifact(tiny_model)
    tensor = artifact.card.test_tensor
    assert tensor is not None
    changed = artifact.card.with_export(
        graph_sha256=str(artifact.card.graph_sha256),
        test_tensor=TestTensor(image=tensor.image, logits=tensor.logits + np.float32(1)),
    )
    wrong = json.loads(dump_card(changed))
    edit_card(tiny_model, tmp_path / "wrong.onnx", lambda card: card.update(test_tensor=wrong["test_tensor"]))
    outcome = cli("check", "wrong.onnx", "--engine", "onnxruntime-cpu")
    assert (outcome.code, outcome.out) == (4, "")
    assert "error[test-tensor]" in outcome.err


def test_what_is_no_model_or_no_volume(cli: Cli, tiny_model: Path) -> None:
    assert "error[model-not-found]" in cli("check", "none.onnx").err
    outcome = cli("check", tiny_model, "--volume", "none.zarr")
    assert outcome.code == 3
    assert "error[volume-not-found]: there is nothing at none.zarr" in outcome.err
