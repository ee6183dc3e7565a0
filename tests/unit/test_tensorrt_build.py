"""Plans are built for real by TensorRT-RTX, which needs no GPU; what is asked of TensorRT is seen through a fake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.tensorrt_fake import PLAN, FakeTensorrt
from unet_deploy.errors import DeviceError, MissingDependencyError, NotAnArtifactError, UnknownNameError, UsageError
from unet_deploy.runtime import load_artifact, load_bundled_artifact
from unet_deploy.runtime.composition import compose_bytes
from unet_deploy.runtime.engine_plan import Flavour, Profile
from unet_deploy.runtime.engines.base import ByteForm
from unet_deploy.runtime.engines.tensorrt import RAW_DTYPES
from unet_deploy.runtime.engines.tensorrt_build import (
    RTX_CAPABILITIES,
    build_plan,
    complete_flags,
    import_tensorrt,
    open_log,
    require_version,
)
from unet_deploy.runtime.engines.tensorrt_graph import require_buildable

SMALL = Profile(minimum=(1, 1, 44, 44), optimum=(1, 1, 76, 76), maximum=(4, 1, 140, 140))
BUNDLED = Profile(minimum=(1, 1, 204, 204), optimum=(1, 1, 572, 572), maximum=(4, 1, 956, 956))


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="the extra 'tensorrt-rtx' is not installed")


@pytest.fixture(scope="module")
def membrane() -> bytes:
    return load_bundled_artifact("membrane").data


def make_graph(*nodes: Any, opset: int = 18, domain: str = "", tensors: dict[str, Any] | None = None) -> bytes:
    """Return a graph of an image that passes through nodes."""
    shape = ["n", 1, "y", "x"]
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Relu", ["image"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in (tensors or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, opset)], ir_version=10)
    return bytes(model.SerializeToString())


def make_quantised(zero_point: Any | None, **tensors: Any) -> bytes:
    names = ["s"] if zero_point is None else ["s", "z"]
    values = {"s": np.float32(0.1), **({} if zero_point is None else {"z": zero_point}), **tensors}
    return make_graph(
        helper.make_node("QuantizeLinear", ["image", *names], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *names], ["logits"]),
        tensors={name: np.asarray(value) for name, value in values.items()},
    )


# For real, without a GPU.


def test_rtx_builds_the_bundled_network(rtx: Any, membrane: bytes) -> None:
    built = build_plan(membrane, flavour="tensorrt-rtx", profiles=[BUNDLED])
    assert 8e6 < len(built.data) < 11e6  # 7.8 MB of weights
    assert built.data[:4] == b"vtrt"[::-1] or b"vtrt" in built.data[:64]
    assert built.version == rtx.__version__
    assert built.compute_capabilities == RTX_CAPABILITIES
    assert built.layers > 53
    assert built.timing_cache is None
    assert built.seconds < 30


def test_rtx_knows_a_plan_from_other_bytes(rtx: Any, membrane: bytes) -> None:
    built = build_plan(membrane, flavour="tensorrt-rtx", profiles=[BUNDLED])
    runtime = rtx.Runtime(open_log(rtx))
    size = runtime.engine_header_size
    malformed = int(rtx.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    # Without a GPU no plan is valid here; but only what is no plan is malformed.
    assert int(runtime.get_engine_validity(built.data[:size])[1]) & malformed == 0
    assert int(runtime.get_engine_validity(membrane[:size])[1]) & malformed == malformed


def test_rtx_builds_for_the_capabilities_asked_for(rtx: Any, membrane: bytes) -> None:
    built = build_plan(
        membrane, flavour="tensorrt-rtx", profiles=[BUNDLED], flags={"compute_capabilities": "7.5", "tf32": True}
    )
    assert built.compute_capabilities == ("7.5",)
    both = build_plan(membrane, flavour="tensorrt-rtx", profiles=[BUNDLED, BUNDLED], flags={"workspace_mib": 4096})
    assert len(both.data) > len(built.data)
    with pytest.raises(UnknownNameError, match=r"^unknown compute capability of TensorRT-RTX: '9\.0'\n  known: .*8\.9"):
        build_plan(membrane, flavour="tensorrt-rtx", profiles=[BUNDLED], flags={"compute_capabilities": "9.0"})


@pytest.mark.parametrize("dtype", RAW_DTYPES)
def test_rtx_builds_a_graph_that_begins_at_raw_pixels(rtx: Any, dtype: str) -> None:
    artifact = load_bundled_artifact("membrane")
    form = ByteForm(dtype=dtype, kinds=("labels", "probabilities"))
    built = build_plan(compose_bytes(artifact.data, artifact.card, form), flavour="tensorrt-rtx", profiles=[BUNDLED])
    assert 8e6 < len(built.data) < 11e6
    wide = compose_bytes(artifact.data, artifact.card, ByteForm(dtype="uint16", kinds=("labels",)))
    with pytest.raises(NotAnArtifactError, match=r"cannot parse the graph\n.*data type"):
        build_plan(wide, flavour="tensorrt-rtx", profiles=[BUNDLED])


def test_what_rtx_says_of_a_failure_is_told(rtx: Any, membrane: bytes) -> None:
    wrong = Profile(minimum=(1, 2, 204, 204), optimum=(1, 2, 204, 204), maximum=(1, 2, 204, 204))
    with pytest.raises(
        DeviceError, match=r"^tensorrt-rtx .* cannot build the plan on this machine\n(  .*\n)*.*profile has min=2"
    ):
        build_plan(membrane, flavour="tensorrt-rtx", profiles=[wrong])
    with pytest.raises(DeviceError, match=r"OutOfMemory") as caught:  # and not what it said before
        build_plan(membrane, flavour="tensorrt-rtx", profiles=[BUNDLED], flags={"workspace_mib": 1})
    assert "profile" not in str(caught.value)


def test_what_rtx_cannot_parse_is_told(rtx: Any) -> None:
    with pytest.raises(NotAnArtifactError, match=r"^tensorrt-rtx .* cannot parse the graph\n  .*Plugin not found"):
        build_plan(make_graph(helper.make_node("Foo", ["image"], ["logits"])), flavour="tensorrt-rtx", profiles=[SMALL])


def test_tf32_is_off_unless_asked_for() -> None:
    for is_on, call in ((False, "clear_flag"), (True, "set_flag")):
        trt = FakeTensorrt()
        build_plan(make_graph(), flavour="tensorrt", profiles=[SMALL], flags={"tf32": is_on}, trt=trt)
        assert (call, "BuilderFlag.TF32") in trt.calls
        assert len([c for c in trt.calls if c[0] in ("set_flag", "clear_flag")]) == 1


# What is asked of TensorRT 11, whose names the fake has, and no other.


def test_what_tensorrt_is_asked_for() -> None:
    trt = FakeTensorrt()
    built = build_plan(
        make_graph(),
        flavour="tensorrt",
        profiles=[SMALL],
        flags={"workspace_mib": 64, "hardware_compatibility": "ampere_plus"},
        timing_cache=b"before",
        trt=trt,
    )
    assert (built.data, built.version, built.layers) == (PLAN, "11.4.0.106", 7)
    assert built.timing_cache == b"what was measured"
    assert built.compute_capabilities == ()
    assert trt.calls == [
        ("create_network", 0),
        ("parse", bytes),  # never a path
        ("clear_flag", "BuilderFlag.TF32"),
        ("set_memory_pool_limit", "MemoryPoolType.WORKSPACE", 64 * 2**20),
        ("hardware_compatibility_level", "HardwareCompatibilityLevel.AMPERE_PLUS"),
        ("set_shape", "image", (1, 1, 44, 44), (1, 1, 76, 76), (4, 1, 140, 140)),
        ("create_timing_cache", b"before"),
        ("set_timing_cache", False),
    ]


@pytest.mark.parametrize(("version", "flags"), [("10.12.0.36", 2), ("10.13.3", 2), ("11.0.0", 0), ("12.1.0", 0)])
def test_the_network_is_strongly_typed(version: str, flags: int) -> None:
    trt = FakeTensorrt(version=version)
    build_plan(make_graph(), flavour="tensorrt", profiles=[SMALL], trt=trt)
    assert trt.calls[0] == ("create_network", flags)


@pytest.mark.parametrize("version", ["10.11.0.33", "8.6.1", "10.9"])
def test_a_tensorrt_that_guesses_types_is_refused(version: str) -> None:
    with pytest.raises(
        DeviceError, match=rf"^tensorrt {version} is too old: 10\.12 or newer was expected\n  before, it took"
    ) as caught:
        require_version(FakeTensorrt(version=version), "tensorrt")
    assert caught.value.fix == "pip install --upgrade 'unet-deploy[tensorrt]'"


def test_what_tensorrt_says_of_a_failure_is_told() -> None:
    trt = FakeTensorrt()
    trt.parses = False
    with pytest.raises(
        NotAnArtifactError, match=r"^tensorrt 11\.4\.0\.106 cannot parse the graph\n  node 3 has no meaning\n  fix: "
    ):
        build_plan(make_graph(), flavour="tensorrt", profiles=[SMALL], trt=trt)
    trt.parses, trt.builds = True, False
    with pytest.raises(
        DeviceError, match=r"^tensorrt 11\.4\.0\.106 cannot build the plan on this machine\n  no kernel fits\n"
    ) as caught:
        build_plan(make_graph(), flavour="tensorrt", profiles=[SMALL], trt=trt)
    assert caught.value.fix.startswith("build on the machine with the GPU that will run it")
    trt.builds, trt.profile_index = True, -1
    with pytest.raises(
        UsageError, match=r"^tensorrt takes no profile from \(1, 1, 44, 44\) to \(4, 1, 140, 140\)\n.*input is image"
    ):
        build_plan(make_graph(), flavour="tensorrt", profiles=[SMALL], trt=trt)


def test_a_failure_without_a_word_is_said_so() -> None:
    trt = FakeTensorrt()
    trt.builds = False
    trt._build = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match=r"on this machine\n  it gave no reason\n"):
        build_plan(make_graph(), flavour="tensorrt", profiles=[SMALL], trt=trt)


def test_one_log_a_module() -> None:
    trt = FakeTensorrt()
    log = open_log(trt)
    log.log(trt.ILogger.Severity.ERROR, "bad")
    log.log(trt.ILogger.Severity.WARNING, "so so")
    assert log.problems == ["bad"]
    assert open_log(trt) is log
    assert log.problems == []


# Flags.


def test_flags_are_complete() -> None:
    assert complete_flags("tensorrt", {}) == {
        "tf32": False,
        "workspace_mib": 0,
        "hardware_compatibility": "none",
        "compute_capabilities": "",
    }
    assert complete_flags("tensorrt-rtx", {})["compute_capabilities"] == "8.0,8.6,8.9,12.0"


@pytest.mark.parametrize(
    ("flavour", "flags", "kind", "told"),
    [
        ("tensorrt", {"fp16": True}, UnknownNameError, r"^unknown flag of a TensorRT build: 'fp16'\n"),
        (
            "tensorrt",
            {"hardware_compatibility": "ampere"},
            UnknownNameError,
            r"^unknown hardware compatibility: 'ampere'\n(.*\n)*  fix: did you mean 'ampere_plus'\?",
        ),
        (
            "tensorrt-rtx",
            {"hardware_compatibility": "ampere_plus"},
            UsageError,
            r"^tensorrt-rtx has no hardware compatibility: ampere_plus came\n(.*\n)*  fix: .*--gpu-arch",
        ),
        (
            "tensorrt",
            {"compute_capabilities": "8.9"},
            UsageError,
            r"^tensorrt has no compute capabilities: 8\.9 came\n(.*\n)*  fix: .*--hardware-compatibility",
        ),
    ],
)
def test_flags_that_are_none(flavour: Flavour, flags: dict[str, Any], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        complete_flags(flavour, flags)


# What it would read wrongly.


def test_the_cpus_int8_is_refused(tiny_products: dict[str, Path]) -> None:
    with pytest.raises(NotAnArtifactError, match=r"^tensorrt-rtx would read this graph wrongly\n") as caught:
        build_plan(load_artifact(tiny_products["int8"]).data, flavour="tensorrt-rtx", profiles=[SMALL])
    details = " ".join(caught.value.details)
    assert "32 bit quantised values" in details
    assert "more like these" in details
    assert caught.value.fix == "unet-deploy export model.pt --precision int8 --calibrate DATA --target tensorrt-rtx"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (make_quantised(np.uint8(128)), "QuantizeLinear of image: a zero point of UINT8, INT8 was expected"),
        (make_quantised(np.uint8(0)), "QuantizeLinear of image: a zero point of UINT8, INT8 was expected"),
        (make_quantised(np.int8(3)), "QuantizeLinear of image: a zero point that is not zero"),
        (make_quantised(None), "QuantizeLinear of image: no zero point, which means an unsigned one"),
    ],
)
def test_quantisation_that_is_not_symmetric_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(NotAnArtifactError, match=r"would read this graph wrongly") as caught:
        require_buildable(data, "tensorrt")
    assert caught.value.details[0] == told


def test_a_zero_point_that_is_computed_is_refused() -> None:
    data = make_graph(
        helper.make_node("Cast", ["f"], ["z"], to=TensorProto.INT8),
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["logits"]),
        tensors={"s": np.asarray(np.float32(0.1)), "f": np.asarray(np.float32(0))},
    )
    with pytest.raises(NotAnArtifactError, match=r"QuantizeLinear of image: a zero point that is computed"):
        require_buildable(data, "tensorrt")


def test_symmetric_quantisation_passes(rtx: Any) -> None:
    data = make_quantised(np.int8(0))
    require_buildable(data, "tensorrt")
    assert build_plan(data, flavour="tensorrt-rtx", profiles=[SMALL]).data


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (make_graph(opset=23), r"of operator set ai\.onnx 13 to 22, ai\.onnx 23 came"),
        (make_graph(opset=11), r"ai\.onnx 11 came"),
        (make_graph(domain="com.evil", opset=1), r"com\.evil 1 came"),
        (b"", r"none came"),
        (b"\xff\xffno graph", r"^12 bytes came|^11 bytes came|which are no ONNX graph"),
    ],
)
def test_graphs_that_the_parser_does_not_know(data: bytes, told: str) -> None:
    with pytest.raises(NotAnArtifactError, match=told):
        require_buildable(data, "tensorrt")


def test_artifacts_pass() -> None:
    for name in ("membrane", "nuclei"):
        require_buildable(load_bundled_artifact(name).data, "tensorrt")
    assert onnx.load_model_from_string(load_bundled_artifact("membrane").data).opset_import[0].version == 18


# The module.


def test_a_tensorrt_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(
        MissingDependencyError, match=r"^building for tensorrt needs the package 'tensorrt', which is not installed\n"
    ) as caught:
        import_tensorrt("tensorrt")
    assert caught.value.fix == "pip install 'unet-deploy[tensorrt]'"


def test_a_tensorrt_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "tensorrt", raising=False)
    with pytest.raises(
        DeviceError,
        match=r"^tensorrt is installed and cannot be loaded\n  ImportError: libnvinfer\.so\.11: cannot open\n",
    ):
        import_tensorrt("tensorrt")
    (tmp_path / "tensorrt.py").write_text("import numpy_of_tensorrt")
    with pytest.raises(ModuleNotFoundError, match="numpy_of_tensorrt"):  # not ours to explain
        import_tensorrt("tensorrt")
