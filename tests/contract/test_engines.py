"""One suite that every engine passes: shape, phase, receptive field, batches, threads, and the replayed test tensor."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.contract.engines import KINDS, ON_A_GPU, EngineUnderTest
from unet_deploy.card import TestTensor
from unet_deploy.errors import DeviceError, MissingDependencyError, TestTensorError, UnknownNameError
from unet_deploy.geometry import Interval
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines import CheckedEngine, open_engine, parse_device
from unet_deploy.runtime.engines.base import Batch, EngineDescription
from unet_deploy.runtime.tolerances import TOLERANCES, Tolerance


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> EngineUnderTest:
    return KINDS[request.param](request)


@pytest.fixture
def engine(kind: EngineUnderTest) -> Iterator[CheckedEngine]:
    opened = kind.open()
    yield opened
    opened.close()


# Shape and type.


@pytest.mark.parametrize(("n", "y", "x"), [(1, 1, 1), (1, 2, 1), (1, 1, 5), (3, 2, 3)])
def test_logits_are_the_input_less_the_context(
    kind: EngineUnderTest, engine: CheckedEngine, n: int, y: int, x: int
) -> None:
    g = kind.card.geometry
    logits = engine.infer(kind.batch(n, y, x))
    sides = y * g.divisor + g.surplus, x * g.divisor + g.surplus
    assert logits.shape == (n, kind.card.network.classes, *sides)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert logits.std() > 0


def test_the_batch_is_not_changed(kind: EngineUnderTest, engine: CheckedEngine) -> None:
    batch = kind.batch(2, 1, 2)
    before = batch.copy()
    engine.infer(batch)
    np.testing.assert_array_equal(batch, before, strict=True)


@pytest.mark.parametrize("wrong", ["dtype", "channels", "side y", "side x", "axes"])
def test_a_batch_that_cannot_be_is_our_bug(kind: EngineUnderTest, engine: CheckedEngine, wrong: str) -> None:
    batch: Any = kind.batch(1, 1, 1)
    broken = {
        "dtype": batch.astype(np.float64),
        "channels": np.concatenate([batch, batch], axis=1),
        "side y": batch[:, :, 1:],
        "side x": batch[..., 2:],
        "axes": batch[0],
    }[wrong]
    with pytest.raises((AssertionError, ValueError)):
        engine.infer(broken)


# Tiles agree.


def test_a_batch_is_its_images(kind: EngineUnderTest, engine: CheckedEngine) -> None:
    batch = kind.batch(4, 1, 2)
    together = engine.infer(batch)
    for image, logits in zip(batch, together, strict=True):
        kind.same(engine.infer(image[None])[0], logits)
    kind.same(engine.infer(batch[::-1].copy())[::-1], together)


@pytest.mark.parametrize(("y", "x"), [(1, 0), (0, 1), (2, 1), (3, 3)])
def test_a_tile_in_phase_agrees_on_the_overlap(kind: EngineUnderTest, engine: CheckedEngine, y: int, x: int) -> None:
    divisor, batch = kind.card.geometry.divisor, kind.batch(1, 5, 6)
    whole = engine.infer(batch)
    dy, dx = y * divisor, x * divisor
    part = engine.infer(np.ascontiguousarray(batch[:, :, dy:, dx:]))
    kind.same(part, np.ascontiguousarray(whole[:, :, dy:, dx:]))


@pytest.mark.parametrize("axis", [2, 3])
def test_a_tile_out_of_phase_does_not(kind: EngineUnderTest, engine: CheckedEngine, axis: int) -> None:
    # Or the tests above would pass for a network without pooling.
    g, batch = kind.card.geometry, kind.batch(1, 5, 5)
    batch = np.round(np.cumsum(np.cumsum(batch, axis=2), axis=3) % 19).astype(np.float32) - 9
    whole, divisor = engine.infer(batch), g.divisor
    pixels = batch.shape[axis] - divisor
    off = np.ascontiguousarray(np.take(batch, range(1, 1 + pixels), axis=axis))
    moved = np.take(whole, range(1, 1 + g.output_side(pixels)), axis=axis)
    came = engine.infer(off)
    assert (np.abs(came - moved) > 1e-3 * np.abs(whole).max()).mean() > 0.2


@pytest.mark.parametrize(("y", "x"), [(1, 1), (1, 4), (2, 3), (4, 2)])
def test_sizes_agree_on_the_overlap(kind: EngineUnderTest, engine: CheckedEngine, y: int, x: int) -> None:
    batch, small = kind.batch(2, 4, 4), kind.batch(2, y, x)
    sides = small.shape[2:]
    part = engine.infer(np.ascontiguousarray(batch[:, :, : sides[0], : sides[1]]))
    whole = engine.infer(batch)
    kind.same(part, np.ascontiguousarray(whole[:, :, : part.shape[2], : part.shape[3]]))


# The receptive field.


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("end", ["first", "last"])
def test_a_core_depends_on_its_context_and_on_nothing_beyond(
    kind: EngineUnderTest, engine: CheckedEngine, axis: int, end: str
) -> None:
    """What a core of whole divisors sees: the context before it, the context and the surplus after it."""
    g = kind.card.geometry
    core = Interval(2 * g.divisor, 4 * g.divisor)  # of the output, away from its ends
    batch = kind.batch(1, 6, 6)

    def logits_of_core(changed: Batch) -> Batch:
        return np.take(engine.infer(changed), range(core.start, core.stop), axis=axis)

    def after_changing(row: int, by: int) -> Batch:
        changed = batch.copy()
        place = [slice(None)] * 4
        place[axis] = slice(row, row + 1)
        changed[tuple(place)] += by
        return logits_of_core(changed)

    before = logits_of_core(batch)
    # Output pixel o stands at input pixel o + context.
    inner, step = {
        "first": (core.start, -1),
        "last": (core.stop - 1 + 2 * g.context + g.surplus, 1),
    }[end]
    assert max(np.abs(after_changing(inner, by) - before).max() for by in (97, -97)) > 0
    for beyond in (1, 2, g.divisor):
        if 0 <= inner + step * beyond < batch.shape[axis]:
            np.testing.assert_array_equal(after_changing(inner + step * beyond, 97), before)


def test_every_channel_counts(kind: EngineUnderTest, engine: CheckedEngine) -> None:
    batch = kind.batch(1, 1, 1)
    before = engine.infer(batch)
    for channel in range(batch.shape[1]):
        changed = batch.copy()
        changed[:, channel] += 3
        assert (engine.infer(changed) != before).any()


# Life and threads.


def test_threads_get_what_one_would(kind: EngineUnderTest, engine: CheckedEngine) -> None:
    batches = [kind.batch(1 + i % 2, 1 + i % 3, 1, seed=i) for i in range(12)]
    expected = [engine.infer(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for came, wanted in zip(pool.map(engine.infer, batches), expected, strict=True):
            np.testing.assert_array_equal(came, wanted, strict=True)


def test_an_engine_closes_twice_and_is_of_no_use_then(kind: EngineUnderTest) -> None:
    engine = kind.open()
    batch = kind.batch(1, 1, 1)
    engine.infer(batch)
    engine.close()
    engine.close()
    with pytest.raises(AssertionError, match=r"^the engine is not open$"):
        engine.infer(batch)


def test_an_engine_must_be_opened_first(kind: EngineUnderTest) -> None:
    with pytest.raises(AssertionError, match=r"^the engine is not open$"):
        CheckedEngine(kind.make(), kind.card).infer(kind.batch(1, 1, 1))


def test_an_engine_opens_again(kind: EngineUnderTest, engine: CheckedEngine) -> None:
    batch = kind.batch(1, 2, 1)
    expected = engine.infer(batch)
    again = kind.open()
    np.testing.assert_array_equal(again.infer(batch), expected)
    again.close()


def test_it_says_what_it_is(kind: EngineUnderTest, engine: CheckedEngine) -> None:
    said = engine.describe()
    assert (said.engine, said.device, said.precision) == (kind.name, kind.device, kind.card.precision)
    assert said.provider
    assert all(isinstance(k, str) and isinstance(v, str) and v for k, v in said.versions.items())
    assert said.to_object() == {
        "engine": said.engine,
        "device": said.device,
        "precision": said.precision,
        "provider": said.provider,
        "versions": said.versions,
        "choice": [],  # this one was not chosen
    }
    assert engine.classes == kind.card.network.classes
    assert (said.engine, said.precision) in TOLERANCES


# The test tensor.


def tensor_of(kind: EngineUnderTest) -> TestTensor:
    tensor = kind.card.test_tensor
    assert tensor is not None
    return tensor


def test_the_test_tensor_is_replayed(kind: EngineUnderTest, engine: CheckedEngine) -> None:
    limit = TOLERANCES[kind.name, kind.card.precision].limit(float(np.abs(tensor_of(kind).logits).max()))
    assert 0 <= engine.test_difference <= limit


@pytest.mark.parametrize("what", ["one logit", "not a number", "image", "mean", "classes"])
def test_an_engine_that_computes_something_else_does_not_open(kind: EngineUnderTest, what: str) -> None:
    image, logits = tensor_of(kind).image.copy(), tensor_of(kind).logits.copy()
    card = kind.card
    if what == "one logit":
        logits[0, -1, 0, 0] += np.abs(logits).max()
    elif what == "not a number":
        logits[0, 0, -1, -1] = np.nan
    elif what == "image":
        image ^= 0x55
    elif what == "mean":
        card = replace(
            card, normalisation=replace(card.normalisation, mean=tuple(m + 7 for m in card.normalisation.mean))
        )
    else:
        logits = np.ascontiguousarray(logits[:, ::-1])
    card = replace(card, test_tensor=TestTensor(image=image, logits=logits))
    engine = CheckedEngine(kind.make(), card)
    with pytest.raises(
        TestTensorError,
        match=rf"^{kind.name} on {kind.device} does not compute what the model's parent computed\n"
        r"  test tensor: largest difference .+, at most .+ was expected\n"
        rf"  model: {card.name}, precision fp32; .+\n",
    ) as caught:
        engine.open()
    assert caught.value.fix.startswith("use another device (--device cpu)")
    with pytest.raises(AssertionError, match=r"^the engine is not open$"):
        engine.infer(kind.batch(1, 1, 1))


def test_a_card_without_a_test_tensor_opens(kind: EngineUnderTest) -> None:
    engine = kind.open(replace(kind.card, test_tensor=None))
    assert engine.test_difference == 0
    engine.close()


# What an engine gives back is checked as well.


class WrongEngine:
    """An engine that gives back what it was told to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def open(self) -> None:
        """Do nothing."""

    def infer(self, batch: Batch) -> Batch:
        return np.asarray(self.answer)

    def close(self) -> None:
        """Do nothing."""

    def describe(self) -> EngineDescription:
        return EngineDescription(engine="fake", device="cpu", precision="fp32", provider="numpy", versions={})


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (np.zeros((1, 2, 3, 4), np.float32), r"\(1, 2, 3, 4\)"),
        (np.zeros((1, 3, 4, 4), np.float64), "float64"),
        (np.zeros((1, 2, 44, 44), np.float32), r"\(1, 2, 44, 44\)"),  # padded convolutions
    ],
)
def test_an_answer_of_another_shape_is_not_passed_on(fake_artifact: Any, answer: Any, shown: str) -> None:
    card = fake_artifact(depth=2, classes=3).card
    engine = CheckedEngine(WrongEngine(answer), card).open()
    with pytest.raises(AssertionError, match=shown):
        engine.infer(np.zeros((1, 1, 44, 44), np.float32))


# The choice of a device.


@pytest.mark.parametrize(
    ("device", "expected"), [("auto", ("auto", 0)), ("cpu", ("cpu", 0)), ("cuda", ("cuda", 0)), ("cuda:3", ("cuda", 3))]
)
def test_a_device_name_is_read(device: str, expected: tuple[str, int]) -> None:
    assert parse_device(device) == expected


@pytest.mark.parametrize(
    "device", ["", "gpu", "CPU", "cpu:0", "auto:1", "cuda:x", "cuda:-1", "cuda:1:2", "cuda: 1", "cuda:²", "cuda:"]
)
def test_another_device_name_is_refused(device: str) -> None:
    with pytest.raises(
        UnknownNameError, match=r"^unknown device: .*\n  known: auto, cpu, cuda, cuda:0\n  fix: "
    ) as caught:
        parse_device(device)
    assert repr(device) in caught.value.headline


def test_a_near_miss_is_told_the_name() -> None:
    with pytest.raises(UnknownNameError, match=r"\n  fix: did you mean 'cuda'\?$"):
        parse_device("cudaa")


def test_what_is_named_is_used(tiny_artifact: Artifact) -> None:
    for device in ("cpu", "auto"):
        engine = open_engine(tiny_artifact, device=device, engine="onnxruntime-cpu")
        assert (engine.describe().engine, engine.describe().provider) == ("onnxruntime-cpu", "CPUExecutionProvider")
        engine.close()


def test_a_missing_onnxruntime_is_named(monkeypatch: pytest.MonkeyPatch, tiny_artifact: Artifact) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    with pytest.raises(
        MissingDependencyError,
        match=r"^running a model needs the package 'onnxruntime', which is not installed\n"
        r"  it comes with the extra 'cpu'\n",
    ) as caught:
        open_engine(tiny_artifact, engine="onnxruntime-cpu")
    assert caught.value.fix == "pip install 'unet-deploy[cpu]'"


def test_another_provider_than_the_one_asked_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, tiny_artifact: Artifact
) -> None:
    class Options:
        def add_session_config_entry(self, key: str, value: str) -> None:
            """Take anything."""

    class Session:
        def __init__(self, data: bytes, options: Options, providers: list[str]) -> None:
            assert providers == ["CPUExecutionProvider"]

        def get_providers(self) -> list[str]:
            return ["AzureExecutionProvider", "CPUExecutionProvider"]

    foreign = types.SimpleNamespace(
        SessionOptions=Options, InferenceSession=Session, disable_telemetry_events=lambda: None, __version__="9.9"
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", foreign)
    with pytest.raises(
        DeviceError,
        match=r"^onnxruntime chose \['AzureExecutionProvider', 'CPUExecutionProvider'\], "
        r"CPUExecutionProvider was asked for\n  onnxruntime 9\.9\n",
    ) as caught:
        open_engine(tiny_artifact, engine="onnxruntime-cpu")
    assert caught.value.fix == "reinstall it: pip install --force-reinstall onnxruntime"


def test_tolerances_say_why() -> None:
    assert Tolerance(1e-3, 0.5, "x").limit(100) == 0.6
    assert {name for name, _ in TOLERANCES} == set(KINDS) | ON_A_GPU  # every engine is in this suite
    assert all(tolerance.why and tolerance.rtol >= 0 and tolerance.atol >= 0 for tolerance in TOLERANCES.values())
    assert TOLERANCES["fake", "fp32"].limit(1e9) == 0
