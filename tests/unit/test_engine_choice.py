"""Which engine runs: what is named is used or is an error; else the first that works, and it says why."""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest

from unet_deploy.card import Precision, TestTensor
from unet_deploy.errors import (
    DeviceError,
    MissingDependencyError,
    NotAnArtifactError,
    TestTensorError,
    UnetDeployError,
    UnknownNameError,
    UsageError,
)
from unet_deploy.runtime import segment, segment_array
from unet_deploy.runtime.artifact import Artifact, load_artifact
from unet_deploy.runtime.engines import candidates, open_engine
from unet_deploy.runtime.engines.base import Engine, EngineOptions, Verdict
from unet_deploy.runtime.engines.cache import EngineRequest, drop_engine, get_engine, settle_engine
from unet_deploy.runtime.engines.choice import (
    CPU_ORDERS,
    CUDA_ORDER,
    ENGINES,
    EngineKind,
    choose,
)
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.engines.openvino import MAX_SHAPES, OpenvinoEngine
from unet_deploy.runtime.tolerances import TOLERANCES

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra 'openvino' is not installed"
)


class Named(FakeEngine):
    """The integer engine; under another name it says so, or does not open."""

    def __init__(self, artifact: Artifact, failure: UnetDeployError | None) -> None:
        super().__init__(artifact.card.network)
        self.failure = failure

    def open(self) -> None:
        if self.failure is not None:
            raise self.failure


MISSING = MissingDependencyError.of_extra("nothere", extra="nothere", purpose="the engine nothere")
BROKEN = DeviceError("the driver is too old", "driver 1.0, 2.0 was expected", "and more", fix="update it")
WRONG = TestTensorError("it computes something else", "by 7", fix="report this")


def kind(failure: UnetDeployError | None = None) -> EngineKind:
    return EngineKind(name="fake", device="cpu", make=lambda artifact, options: Named(artifact, failure))


# Names.


def test_every_engine_is_in_every_order_and_has_tolerances() -> None:
    names = {item.name for item in ENGINES}
    assert len(names) == len(ENGINES)
    assert set(CPU_ORDERS) == set(get_args(Precision))
    for order in (CUDA_ORDER, *CPU_ORDERS.values()):
        device = "cuda" if order is CUDA_ORDER else "cpu"
        assert set(order.names) == {item.name for item in ENGINES if item.device == device}
        assert order.why
    assert names == {name for name, _ in TOLERANCES} - {"fake"}


@pytest.mark.parametrize("precision", get_args(Precision))
def test_candidates_of_a_device(precision: str) -> None:
    cpu = [item.name for item in candidates("cpu", precision=precision)]
    cuda = [item.name for item in candidates("cuda:1", precision=precision)]
    assert cpu == list(CPU_ORDERS[precision].names)
    assert cuda == list(CUDA_ORDER.names)
    assert [item.name for item in candidates("auto", precision=precision)] == cuda + cpu
    assert [item.name for item in candidates("cpu", "openvino")] == ["openvino"]
    assert [item.name for item in candidates("auto", "openvino")] == ["openvino"]


@pytest.mark.parametrize(
    ("engine", "fix"),
    [
        ("openvno", "did you mean 'openvino'?"),
        ("onnxruntime-gpu", "did you mean 'onnxruntime-cpu'?"),
        ("", "use one of"),
    ],
)
def test_an_unknown_engine_is_told_the_nearest(engine: str, fix: str) -> None:
    with pytest.raises(
        UnknownNameError,
        match=rf"^unknown engine: '{engine}'\n"
        r"  known: onnxruntime-cpu, onnxruntime-cuda, openvino, tensorrt, tensorrt-rtx\n  fix: ",
    ) as caught:
        candidates("auto", engine)
    assert caught.value.fix.startswith(fix)


def test_an_engine_of_another_device_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^engine openvino runs on cpu, and device cuda:1 was asked for\n") as caught:
        candidates("cuda:1", "openvino")
    assert caught.value.fix == "--device cpu, or leave --engine out"


def test_names_are_refused_before_the_volume_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown engine: 'torch'"):
        segment(tmp_path / "nothing.zarr", engine="torch")
    with pytest.raises(UnknownNameError, match="unknown engine: 'torch'"):
        segment_array(None, engine="torch")


# The order of trying.


def test_the_first_that_works_is_taken(fake_artifact: Any, caplog: pytest.LogCaptureFixture) -> None:
    kinds = [kind(error) for error in (MISSING, BROKEN, WRONG, None, None)]
    with caplog.at_level(logging.INFO, logger="unet_deploy"):
        engine = choose(kinds, fake_artifact())
    assert [(v.verdict, v.is_taken) for v in engine.describe().choice] == [
        ("not installed (pip install 'unet-deploy[nothere]')", False),
        ("the driver is too old; driver 1.0, 2.0 was expected", False),
        ("it computes something else; by 7", False),
        (f"first of those that work ({CPU_ORDERS['fp32'].why})", True),
        ("not tried: fake comes first", False),
    ]
    said = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert said[:3] == [
        ("INFO", "engine fake passed over: not installed (pip install 'unet-deploy[nothere]')"),
        ("WARNING", "engine fake passed over: the driver is too old; driver 1.0, 2.0 was expected"),
        ("WARNING", "engine fake passed over: it computes something else; by 7"),
    ]
    assert said[3][1].startswith("engine fake taken: first of those that work")


def test_a_bug_is_not_passed_over(fake_artifact: Any) -> None:
    def make(artifact: Artifact, options: EngineOptions) -> Engine:
        raise TypeError("our bug")

    with pytest.raises(TypeError, match="our bug"):
        choose([EngineKind(name="fake", device="cpu", make=make), kind()], fake_artifact())


def test_the_only_candidates_error_is_the_answer(fake_artifact: Any) -> None:
    with pytest.raises(DeviceError) as caught:
        choose([kind(BROKEN)], fake_artifact())
    assert caught.value is BROKEN


def test_an_engine_without_a_tolerance_for_the_precision_is_refused(fake_artifact: Any) -> None:
    artifact = fake_artifact()
    artifact = replace(artifact, card=replace(artifact.card, precision="int8"))
    with pytest.raises(
        DeviceError, match=r"^fake has not been shown to run int8 models right\n  it runs: fp32; model: tiny\n"
    ) as caught:
        choose([kind()], artifact)
    assert caught.value.fix.startswith("leave --engine out")


def test_where_none_works_all_is_said(monkeypatch: pytest.MonkeyPatch, tiny_artifact: Artifact) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        MissingDependencyError,
        match=r"^the engine openvino needs the package 'openvino', which is not installed\n"
        r"  it comes with the extra 'openvino'\n"
        r"  onnxruntime-cpu: not installed \(pip install 'unet-deploy\[cpu\]'\)\n",
    ) as caught:
        open_engine(tiny_artifact, device="cpu")
    assert caught.value.fix == "pip install 'unet-deploy[openvino]'"


@needs_openvino
def test_a_failure_tells_more_than_a_missing_package(monkeypatch: pytest.MonkeyPatch, tiny_artifact: Artifact) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    tensor = tiny_artifact.card.test_tensor
    assert tensor is not None
    forged = TestTensor(image=tensor.image, logits=tensor.logits + 1)
    artifact = replace(tiny_artifact, card=replace(tiny_artifact.card, test_tensor=forged))
    with pytest.raises(
        TestTensorError,
        match=r"^openvino on cpu does not compute (.+\n)+  onnxruntime-cpu: not installed \(pip install ",
    ):
        open_engine(artifact, device="cpu")


# What is named is used.


def test_a_missing_openvino_is_named(monkeypatch: pytest.MonkeyPatch, tiny_artifact: Artifact) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        MissingDependencyError,
        match=r"^the engine openvino needs the package 'openvino', which is not installed\n"
        r"  it comes with the extra 'openvino'\n",
    ) as caught:
        open_engine(tiny_artifact, engine="openvino")
    assert caught.value.fix == "pip install 'unet-deploy[openvino]'"
    assert caught.value.exit_code == 5


@needs_openvino
def test_openvino_is_used_when_named_or_alone(monkeypatch: pytest.MonkeyPatch, tiny_artifact: Artifact) -> None:
    named = open_engine(tiny_artifact, engine="openvino").describe()
    assert (named.engine, named.choice) == (
        "openvino",
        (Verdict(engine="openvino", verdict="asked for", is_taken=True),),
    )
    first = open_engine(tiny_artifact, device="cpu").describe()
    assert (first.engine, first.choice[1].is_tried) == ("openvino", False)
    assert first.to_object()["choice"][1] == {
        "engine": "onnxruntime-cpu",
        "verdict": "not tried: openvino comes first",
    }
    monkeypatch.setitem(sys.modules, "openvino", None)
    alone = open_engine(tiny_artifact, device="cpu").describe()
    assert alone.engine == "onnxruntime-cpu"
    assert alone.to_object()["choice"][0] == {
        "engine": "openvino",
        "verdict": "not installed (pip install 'unet-deploy[openvino]')",
    }


@needs_openvino
@pytest.mark.parametrize("precision", get_args(Precision))
def test_engines_agree(tiny_products: dict[str, Path], precision: str) -> None:
    artifact = load_artifact(tiny_products[precision])
    side = artifact.card.geometry.tile_side(64)
    batch = np.random.default_rng(0).standard_normal((2, 1, side, side), np.float32)
    opened = [open_engine(artifact, engine=name, threads=1) for name in ("onnxruntime-cpu", "openvino")]
    logits = [engine.infer(batch) for engine in opened]
    limit = TOLERANCES["openvino", precision].limit(float(np.abs(logits[0]).max()))
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=limit)
    assert [engine.describe().precision for engine in opened] == [precision] * 2


@needs_openvino
def test_the_order_is_by_precision(tiny_products: dict[str, Path]) -> None:
    for precision, path in tiny_products.items():
        said = open_engine(load_artifact(path), device="cpu", threads=1).describe()
        assert said.engine == CPU_ORDERS[precision].names[0]
        assert [v.engine for v in said.choice] == list(CPU_ORDERS[precision].names)


# OpenVINO's own refusals and habits.


class Core:
    """An OpenVINO that computes in bfloat16, whatever it is told."""

    def set_property(self, plugin: str, settings: dict[str, Any]) -> None:
        assert (plugin, settings["INFERENCE_PRECISION_HINT"]) == ("CPU", "f32")

    def get_property(self, plugin: str, name: str) -> Any:
        return type("Bfloat16", (), {"get_type_name": lambda self: "bf16"})()


def test_bfloat16_is_not_used_silently(monkeypatch: pytest.MonkeyPatch, tiny_artifact: Artifact) -> None:
    foreign = type(sys)("openvino")
    vars(foreign).update(Core=Core, Type=type("Type", (), {"f32": object()}), __version__="9.9-1-x")
    monkeypatch.setitem(sys.modules, "openvino", foreign)
    with pytest.raises(
        DeviceError, match=r"^OpenVINO computes in bf16, float32 was asked for\n  openvino 9\.9, plugin CPU\n"
    ) as caught:
        open_engine(tiny_artifact, engine="openvino")
    assert caught.value.fix == "--engine onnxruntime-cpu"


def test_an_openvino_that_cannot_be_loaded_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    (tmp_path / "openvino.py").write_text("raise ImportError('libtbb.so.12: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        DeviceError,
        match=r"^OpenVINO is installed and cannot be loaded\n"
        r"  ImportError: libtbb\.so\.12: cannot open shared object file\n",
    ) as caught:
        open_engine(tiny_artifact, engine="openvino")
    assert caught.value.fix == "reinstall it: pip install --force-reinstall openvino"


@needs_openvino
@pytest.mark.parametrize("what", ["no graph", "no operator of OpenVINO's"])
def test_what_openvino_cannot_read_is_no_artifact(tiny_artifact: Artifact, what: str) -> None:
    model = onnx.load_model_from_string(tiny_artifact.data)
    model.graph.node[0].op_type = "Convolute"
    data = b"no graph" if what == "no graph" else model.SerializeToString()
    message = r"^OpenVINO [\d.]+ cannot load the model\n  (DecodeError|\w+Failure|RuntimeError): .+\n"
    with pytest.raises(NotAnArtifactError, match=message) as caught:
        open_engine(replace(tiny_artifact, data=data), engine="openvino")
    assert caught.value.fix == "export the model again with this release"


@needs_openvino
def test_openvino_keeps_few_shapes_and_its_answers_are_the_callers(tiny_artifact: Artifact) -> None:
    engine = OpenvinoEngine(tiny_artifact.data, precision="fp32", threads=1)
    engine.open()
    sides = [tiny_artifact.card.geometry.tile_side(4 * cells) for cells in (1, 2, 3)]
    batches = [np.random.default_rng(side).standard_normal((1, 1, side, side), np.float32) for side in sides]
    first = [engine.infer(batch) for batch in batches]
    kept = [logits.copy() for logits in first]
    for _ in range(2):
        for batch, logits, copy in zip(batches, first, kept, strict=True):
            np.testing.assert_array_equal(engine.infer(batch), copy)
            np.testing.assert_array_equal(logits, copy)
            assert len(engine.shapes) <= MAX_SHAPES
    assert engine.shapes[-1] == batches[-1].shape
    engine.close()


@needs_openvino
def test_importing_openvino_reports_to_nobody(tmp_path: Path) -> None:
    """Imported as usual, it writes an identity to the user's folder and sends an event to its makers."""
    code = "import sys; from unet_deploy.runtime.engines.openvino import import_openvino as f; f(); " + (
        "assert not any(name.startswith('openvino_telemetry') for name in sys.modules), 'telemetry was imported'"
    )
    home = {"HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "TF_BUILD", "JENKINS_URL")}
    subprocess.run([sys.executable, "-c", code], env=environment | home, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []


# Workers.


@pytest.fixture
def request_of(tiny_artifact: Artifact) -> Iterator[Callable[..., EngineRequest]]:
    made: list[EngineRequest] = []

    def make(**settings: Any) -> EngineRequest:
        made.append(EngineRequest(artifact=tiny_artifact, threads=1, **settings))
        return made[-1]

    yield make
    for item in made:
        drop_engine(item)


def test_a_settled_request_names_its_engine(request_of: Callable[..., EngineRequest]) -> None:
    open_request = request_of(device="cpu")
    settled, description = settle_engine(open_request)
    taken = next(verdict for verdict in description.choice if verdict.is_taken)
    assert settled == replace(open_request, engine=taken.engine)
    assert taken.verdict == f"first of those that work ({CPU_ORDERS['fp32'].why})"
    assert get_engine(settled) is get_engine(open_request)  # opened once
    assert pickle.loads(pickle.dumps(settled)).engine == taken.engine


@needs_openvino
def test_a_worker_without_the_settled_engine_fails(
    monkeypatch: pytest.MonkeyPatch, request_of: Callable[..., EngineRequest]
) -> None:
    settled, _ = settle_engine(request_of(device="cpu"))
    drop_engine(settled)  # as in another process, where nothing is open
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match="needs the package 'openvino'"):
        get_engine(settled)
    again = get_engine(request_of(device="cpu"))  # dropped: a new run chooses anew
    assert again.describe().engine == "onnxruntime-cpu"


@needs_openvino
def test_engines_of_one_model_are_kept_apart(request_of: Callable[..., EngineRequest]) -> None:
    first, second = (get_engine(request_of(engine=name)) for name in ("onnxruntime-cpu", "openvino"))
    assert (first.describe().engine, second.describe().engine) == ("onnxruntime-cpu", "openvino")


def test_a_callers_own_engine_is_not_settled(fake_artifact: Any, fake_factory: Any) -> None:
    request = EngineRequest(artifact=fake_artifact(), factory=fake_factory)
    settled, description = settle_engine(request)
    assert settled == request
    assert (description.engine, description.choice) == ("fake", ())
    drop_engine(settled)
