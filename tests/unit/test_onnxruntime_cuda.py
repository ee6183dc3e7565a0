"""onnxruntime on a GPU, without one: what it is told, and what becomes of everything that can be missing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.contract.engines import CPU_IN_PLACE_OF_CUDA
from unet_deploy.errors import DeviceError, DeviceMemoryError, MissingDependencyError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.base import ByteForm, EngineOptions
from unet_deploy.runtime.engines.checked import CheckedEngine
from unet_deploy.runtime.engines.onnxruntime_cuda import OnnxruntimeCudaEngine, cuda_provider
from unet_deploy.runtime.engines.onnxruntime_session import MAX_SHAPES, SLOTS, BoundSession, make_session

GPU, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
WHEEL = {"onnxruntime-gpu": "9.9"}


class FakeValue:
    """A tensor on a GPU that is made up."""

    def __init__(self, shape: Any, dtype: Any, device: str, index: int) -> None:
        self.array, self.device, self.index = np.zeros(shape, dtype), device, index
        self.before_fetch: Callable[[], object] = lambda: None

    def update_inplace(self, value: Any) -> None:
        self.array[:] = value

    def numpy(self) -> Any:
        self.before_fetch()
        return self.array.copy()


class FakeBinding:
    def __init__(self) -> None:
        self.inputs: dict[str, FakeValue] = {}
        self.outputs: dict[str, FakeValue | None] = {}

    def bind_ortvalue_input(self, name: str, value: FakeValue) -> None:
        self.inputs[name] = value

    def bind_output(self, name: str, device: str, index: int) -> None:
        assert (device, index) == ("cuda", 1)
        self.outputs[name] = None

    def bind_ortvalue_output(self, name: str, value: FakeValue) -> None:
        self.outputs[name] = value

    def clear_binding_outputs(self) -> None:
        self.outputs.clear()

    def get_outputs(self) -> list[Any]:
        return list(self.outputs.values())


class FakeOnnxruntime:
    """As much of the package as the engine touches. `elsewhere` are nodes on the CPU; errors are raised where named."""

    __version__ = "9.9"
    cuda_version = "13.0"

    def __init__(
        self,
        artifact: Artifact,
        *,
        available: tuple[str, ...] = (GPU, CPU),
        providers: tuple[str, ...] = (GPU, CPU),
        elsewhere: tuple[str, ...] = (),
        missing: tuple[str, ...] = (),
        making: Exception | None = None,
        running: Callable[[int], Exception | None] = lambda run: None,
    ) -> None:
        self.artifact, self.available, self.providers = artifact, available, providers
        self.elsewhere, self.missing, self.making, self.running = elsewhere, missing, making, running
        self.config: dict[str, str] = {}
        self.asked: Any = None
        self.is_fallback_off = False
        self.sessions = self.runs = 0
        self.values: list[FakeValue] = []
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self.make_value)
        self.severity = 2
        self.disable_telemetry_events = lambda: None
        self.graphs: list[str | None] = []
        self.at_run: Callable[[int], object] = lambda run: None
        self.before_fetch: Callable[[], object] = lambda: None

    def RunOptions(self) -> Any:  # noqa: N802  # its name in the package
        entries: dict[str, str] = {}
        return SimpleNamespace(add_run_config_entry=entries.__setitem__, entries=entries)

    def set_default_logger_severity(self, severity: int) -> None:
        self.severity = severity

    def preload_dlls(self) -> None:
        for name in self.missing:
            print(f"Failed to load {name}: {name}: cannot open shared object file: No such file or directory")
        print("Please follow https://onnxruntime.ai/docs/install/ to install CUDA.")  # as it does

    def get_available_providers(self) -> list[str]:
        return list(self.available)

    def SessionOptions(self) -> Any:  # noqa: N802  # its name in the package
        return SimpleNamespace(add_session_config_entry=self.config.__setitem__)

    def InferenceSession(self, data: bytes, options: Any, providers: list[Any]) -> FakeOnnxruntime:  # noqa: N802
        assert data
        self.sessions += 1
        self.asked = providers
        if self.making is not None:
            raise self.making
        return self

    def make_value(self, shape: Any, dtype: Any, device: str, index: int) -> FakeValue:
        self.values.append(FakeValue(shape, dtype, device, index))
        self.values[-1].before_fetch = self.fetch
        return self.values[-1]

    def fetch(self) -> None:
        self.before_fetch()

    # The session.

    def get_providers(self) -> list[str]:
        return list(self.providers)

    def disable_fallback(self) -> None:
        self.is_fallback_off = True

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="logits")]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        def group(provider: str, operators: tuple[str, ...]) -> Any:
            nodes = [SimpleNamespace(op_type=name) for name in operators]
            return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

        return [group(GPU, ("Conv", "Relu")), group(CPU, self.elsewhere)]

    def io_binding(self) -> FakeBinding:
        return FakeBinding()

    def run_with_iobinding(self, binding: FakeBinding, options: Any = None) -> None:
        self.runs += 1
        self.graphs.append(None if options is None else options.entries["gpu_graph_id"])
        self.at_run(self.runs)
        if (error := self.running(self.runs)) is not None:
            raise error
        n, _, y, x = binding.inputs["image"].array.shape
        g = self.artifact.card.geometry
        shape = (n, self.artifact.card.network.classes, g.output_side(y), g.output_side(x))
        for name in binding.outputs:
            value = binding.outputs[name]
            if value is None:
                binding.outputs[name] = value = self.make_value(shape, np.float32, "cuda", 1)
            value.array[:] = self.runs


@pytest.fixture
def artifact(fake_artifact: Any) -> Artifact:
    made: Artifact = replace(fake_artifact(depth=2), data=b"a graph")
    return made


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, artifact: Artifact) -> Callable[..., Any]:
    """Open the engine on GPU 1 of a made-up onnxruntime; returns both."""

    def make(
        packages: dict[str, str] = WHEEL, provider: Any = None, **settings: Any
    ) -> tuple[OnnxruntimeCudaEngine, FakeOnnxruntime]:
        fake = FakeOnnxruntime(artifact, **settings)
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)
        engine = OnnxruntimeCudaEngine(
            artifact, EngineOptions(device_index=1), provider=provider, packages=lambda: packages
        )
        engine.open()
        return engine, fake

    return make


# What it is told.


def test_the_session_is_strict(opened: Callable[..., Any]) -> None:
    engine, fake = opened()
    ((name, options),) = fake.asked  # the CPU is not even named: onnxruntime would refuse both
    assert name == GPU
    assert options["device_id"] == "1"
    assert options["use_tf32"] == "0"
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert fake.config["session.disable_cpu_ep_fallback"] == "1"
    assert fake.config["session.record_ep_graph_assignment_info"] == "1"
    assert fake.is_fallback_off
    assert fake.runs == 1  # the tile that finds cuDNN missing
    said = engine.describe()
    assert (said.engine, said.device, said.provider) == ("onnxruntime-cuda", "cuda:1", GPU)
    assert said.versions == {"onnxruntime": "9.9", "cuda": "13.0"}


def test_buffers_are_allocated_once_a_shape_on_that_gpu(opened: Callable[..., Any], artifact: Artifact) -> None:
    engine, fake = opened()
    side = artifact.card.geometry.tile_side(16)
    before = len(fake.values)
    answers = [engine.infer(np.full((2, 1, side, side), i, np.float32)) for i in range(4)]
    assert len(fake.values) == before + 2  # one input, one output
    assert {(value.device, value.index) for value in fake.values} == {("cuda", 1)}
    assert [int(answer.flat[0]) for answer in answers] == [2, 3, 4, 5]  # each the caller's own


def test_a_graph_is_captured_when_the_addresses_are_settled(opened: Callable[..., Any], artifact: Artifact) -> None:
    engine, fake = opened(provider=cuda_provider(1, use_graphs=True, prefers_nhwc=True))
    ((_, options),) = fake.asked
    assert (options["enable_cuda_graph"], options["prefer_nhwc"]) == ("1", "1")
    side = artifact.card.geometry.tile_side(16)
    for n in (2, 2, 2, 3, 3, 2):
        engine.infer(np.zeros((n, 1, side, side), np.float32))
    small, *others = fake.graphs  # the first, of the smallest tile, allocates its outputs, as that of each shape does
    assert (small, others[0], others[3]) == ("-1", "-1", "-1")
    first, second = others[1], others[4]
    assert others == ["-1", first, first, "-1", second, first]  # a graph for each set of buffers
    assert first != second
    assert "-1" not in (first, second)


def test_without_graphs_nothing_is_said_of_them(opened: Callable[..., Any]) -> None:
    _, fake = opened()
    ((_, options),) = fake.asked
    assert not {"enable_cuda_graph", "prefer_nhwc"} & {*options}
    assert fake.graphs == [None]


def test_a_result_is_fetched_while_the_next_batch_computes(opened: Callable[..., Any], artifact: Artifact) -> None:
    _, fake = opened()
    bound = BoundSession(fake, fake, cuda_provider(1))
    first, n = fake.runs + 1, 4
    begun = {first + i: threading.Event() for i in range(n)}
    fake.at_run = lambda run: begun[run].set()
    fetched = iter(range(n))

    def before_fetch() -> None:
        following = begun.get(first + next(fetched) + 1)
        assert following is None or following.wait(timeout=20)

    fake.before_fetch = before_fetch
    side = artifact.card.geometry.tile_side(16)
    stream = bound.stream({"image": np.zeros((1, 1, side, side), np.float32)} for _ in range(n))
    assert [int(outputs["logits"].flat[0]) for outputs in stream] == [*range(first, first + n)]
    assert [*fetched] == []
    bound.close()


# What can be missing.


def test_no_onnxruntime_at_all(monkeypatch: pytest.MonkeyPatch, artifact: Artifact) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        MissingDependencyError,
        match=r"^the engine onnxruntime-cuda needs the package 'onnxruntime-gpu', which is not installed\n"
        r"  it comes with the extra 'gpu'\n  fix: pip install 'unet-deploy\[gpu\]'$",
    ):
        OnnxruntimeCudaEngine(artifact, EngineOptions()).open()


def test_only_the_package_for_the_cpu(opened: Callable[..., Any]) -> None:
    with pytest.raises(
        MissingDependencyError,
        match=r"^the engine onnxruntime-cuda needs the package 'onnxruntime-gpu', and the one for the CPU is "
        r"installed\n"
        r"  onnxruntime 9\.8 has: AzureExecutionProvider, CPUExecutionProvider\n"
        r"  the two share one folder: the other must go first\n"
        r"  fix: pip uninstall -y onnxruntime, then pip install 'unet-deploy\[gpu\]'$",
    ) as caught:
        opened({"onnxruntime": "9.8"}, available=("AzureExecutionProvider", CPU))
    assert caught.value.exit_code == 5


def test_both_packages(opened: Callable[..., Any]) -> None:
    with pytest.raises(
        DeviceError,
        match=r"^onnxruntime 9\.8 and onnxruntime-gpu 9\.9 are both installed, and share one folder: .+\n(.+\n)"
        r"  fix: pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'unet-deploy\[gpu\]'$",
    ):
        opened({"onnxruntime-gpu": "9.9", "onnxruntime": "9.8"})


def test_a_package_that_lost_its_provider(opened: Callable[..., Any]) -> None:
    with pytest.raises(
        DeviceError,
        match=r"^onnxruntime-gpu 9\.9 is installed, and has no CUDAExecutionProvider\n"
        r"  it has: CPUExecutionProvider; another onnxruntime may have been written over it\n  fix: reinstall it: pip ",
    ):
        opened(available=(CPU,))


def test_missing_libraries_are_named(opened: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        DeviceError,
        match=r"^onnxruntime cannot use the GPU cuda:1\n"
        r"  Failed to load libcublas\.so\.13\n  Failed to load libcurand\.so\.10\n"
        r"  RuntimeError: nodes are assigned to the default CPU EP\n"
        r"  onnxruntime 9\.9 is built for CUDA 13\.0\n"
        r"  fix: pip install 'unet-deploy\[gpu\]', which brings CUDA's libraries; the driver must be as new",
    ):
        opened(
            missing=("libcublas.so.13", "libcurand.so.10"),
            making=RuntimeError("nodes are assigned to the default CPU EP\nand more"),
        )
    assert capsys.readouterr().out == ""  # stdout is the result's


def test_int8_without_kernels_is_told_another_precision(monkeypatch: pytest.MonkeyPatch, artifact: Artifact) -> None:
    int8 = replace(artifact, card=replace(artifact.card, precision="int8"))
    fake = FakeOnnxruntime(int8, making=RuntimeError("nodes are assigned to the default CPU EP"))
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    with pytest.raises(DeviceError, match=r"\n  fix: a model in fp32 or fp16 \(unet-deploy export --precision fp16\)"):
        OnnxruntimeCudaEngine(int8, EngineOptions(), packages=lambda: WHEEL).open()


def test_a_missing_cudnn_shows_at_the_first_tile(opened: Callable[..., Any]) -> None:
    with pytest.raises(
        DeviceError,
        match=r"^the network does not run on the GPU cuda:1\n  Failed to load libcudnn\.so\.9\n"
        r"  RuntimeError: NOT_IMPLEMENTED : Failed to find kernel for Conv\n  a convolution needs cuDNN 9, .+\n"
        r"  fix: pip install 'unet-deploy\[gpu\]', which brings cuDNN, or --device cpu$",
    ):
        opened(
            missing=("libcudnn.so.9",),
            running=lambda run: RuntimeError("NOT_IMPLEMENTED : Failed to find kernel for Conv"),
        )


# Never on the CPU.


def test_a_session_that_fell_back_is_refused(opened: Callable[..., Any]) -> None:
    with pytest.raises(
        DeviceError,
        match=r"^onnxruntime chose \['CPUExecutionProvider'\], CUDAExecutionProvider was asked for\n"
        r"  onnxruntime 9\.9\n",
    ) as caught:
        opened(providers=(CPU,))
    assert caught.value.fix.startswith("reinstall it: pip uninstall -y onnxruntime onnxruntime-gpu, then ")


def test_a_single_node_on_the_cpu_is_refused(opened: Callable[..., Any]) -> None:
    with pytest.raises(
        DeviceError,
        match=r"^3 operators of the network are not on CUDAExecutionProvider: "
        r"MaxPool on CPUExecutionProvider, Slice on CPUExecutionProvider\n  onnxruntime 9\.9\n",
    ):
        opened(elsewhere=("MaxPool", "MaxPool", "Slice"))


# Memory.


def test_an_engine_without_memory_begins_anew(opened: Callable[..., Any], artifact: Artifact) -> None:
    def running(run: int) -> Exception | None:
        return RuntimeError("Failed to allocate memory for requested buffer of size 9") if run == 2 else None

    engine, fake = opened(running=running)
    checked = CheckedEngine(engine, replace(artifact.card, test_tensor=None))
    checked._is_open = True  # it is
    batch = np.zeros((1, 1, 60, 60), np.float32)
    with pytest.raises(DeviceMemoryError, match=r"^onnxruntime-cuda ran out of memory on cuda:1\n"):
        checked.infer(batch)
    assert fake.sessions == 1
    assert checked.infer(batch[:, :, :44, :44].copy()).shape == (1, 2, 4, 4)
    assert fake.sessions == 2  # the arena of the first went with it


def test_a_gpu_without_room_for_the_network(opened: Callable[..., Any]) -> None:
    """It passes through, for `CheckedEngine` to name."""
    for settings in (
        {"making": RuntimeError("CUDA failure 2: out of memory")},
        {"running": lambda run: RuntimeError("CUDA failure 2: out of memory")},
    ):
        with pytest.raises(RuntimeError, match=r"^CUDA failure 2: out of memory$"):
            opened(**settings)


# The real package, on the provider that is always there.


def test_buffers_are_few(tiny_artifact: Artifact) -> None:
    ort = pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    session = make_session(ort, tiny_artifact.data, CPU_IN_PLACE_OF_CUDA, threads=1)
    bound = BoundSession(ort, session, CPU_IN_PLACE_OF_CUDA)
    g = tiny_artifact.card.geometry
    batches = [
        {"image": np.random.default_rng(i).standard_normal((1, 1, side, side), np.float32)}
        for i, side in enumerate(g.tile_side(g.divisor * cells) for cells in (1, 2, 3, 1, 2, 3, 3, 3))
    ]
    for inputs, came in zip(batches, bound.stream(iter(batches)), strict=True):
        np.testing.assert_array_equal(came["logits"], bound.run_unbound(inputs)["logits"])
    assert bound.shapes <= MAX_SHAPES * SLOTS
    bound.close()
    bound.close()


def test_a_stream_that_is_left_waits_for_its_last_batch(tiny_artifact: Artifact) -> None:
    engine = CheckedEngine(
        OnnxruntimeCudaEngine(
            tiny_artifact, EngineOptions(threads=1), provider=CPU_IN_PLACE_OF_CUDA, packages=lambda: WHEEL
        ),
        tiny_artifact.card,
    ).open()
    side = tiny_artifact.card.geometry.tile_side(64)
    form, one = ByteForm(dtype="uint8", kinds=("labels", "probabilities")), np.full(1, 1 / 40, np.float32)
    assert engine.open_bytes(form)
    raw = np.random.default_rng(0).integers(0, 256, (6, 1, 1, side, side), dtype=np.uint8)
    expected = [r.checksum[0] for r in engine.stream(iter(raw), form, gain=one, offset=-3 * one)]
    stream = engine.stream(iter(raw), form, gain=one, offset=-3 * one)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    again = [r.checksum[0] for r in engine.stream(iter(raw), form, gain=one, offset=-3 * one)]
    assert again == expected
    assert not engine.open_bytes(ByteForm(dtype="uint32", kinds=("labels",)))  # what no graph begins with
    engine.close()


def test_the_provider_is_one_of_a_gpu() -> None:
    assert (cuda_provider(3).index, cuda_provider(3).options["device_id"]) == (3, "3")
