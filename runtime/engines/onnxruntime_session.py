"""What the engines on onnxruntime share: importing it, a session that is where it was asked for, buffers that stay.

1. `make_session` returns a session that is on its provider alone, or raises: onnxruntime itself falls back to the CPU
   with no more than a line in its log. Where the provider asks for it, that is checked node by node.
2. `BoundSession` keeps inputs and outputs of each shape where the provider wants them: allocated once, filled again.
3. `OnnxruntimeEngine` runs batches of either kind, normalised tiles or raw pixels. Of raw batches one computes in a
   thread of its own while the caller fills the next, and fetches and writes the last.
4. If memory runs out, sessions and buffers go, and with them all that onnxruntime's arena holds; the next batch, a
   smaller one, begins anew.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.card import ModelCard
from unet_deploy.errors import DeviceError, MissingDependencyError
from unet_deploy.runtime.engines.base import Batch, ByteForm, ByteResult, RawBatch
from unet_deploy.runtime.engines.memory import is_out_of_memory

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
SLOTS = 2
"""Raw batches on their way: one computes, the other is filled."""
MAX_SHAPES = 2
"""Shapes whose buffers are kept in each slot: a batch, and a block's last, smaller one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Where onnxruntime computes: its name, its word for the memory, its options and those of the session.

    With `checks_nodes`, every node must be there. `reinstall` is the command that mends a package which is not. With
    `captures`, what a shape's buffers need is captured as a graph once, and launched as a whole from then on.
    """

    name: str
    memory: str
    reinstall: str
    index: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    checks_nodes: bool = False
    captures: bool = False


def import_onnxruntime(*, package: str, extra: str, purpose: str) -> Any:
    """Return the package, its telemetry switched off for the whole process.

    Raises
    ------
    MissingDependencyError
        If it is not installed; `package` and `extra` say what brings it.
    """
    # Read as it is imported; else that alone keeps an identity in the user's folder and sends it to its makers.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise MissingDependencyError.of_extra(package, extra=extra, purpose=purpose) from error
    onnxruntime.disable_telemetry_events()  # if somebody imported it before us; on Windows, its events to the system
    return onnxruntime


def make_session(ort: Any, data: bytes, provider: Provider, *, threads: int, severity: int = 3) -> Any:
    """Return a session that is on the provider and nowhere else.

    Parameters
    ----------
    ort
        The package onnxruntime.
    data
        An ONNX file.
    provider
        Where to compute.
    threads
        Threads within one operator on the CPU; 0 leaves it to onnxruntime (one a physical core).
    severity
        From which level on onnxruntime writes to stderr; 3 is errors, 4 almost nothing.

    Raises
    ------
    DeviceError
        If the session, or one of its nodes, is somewhere else. What onnxruntime itself raises passes through.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Planned patterns are allocated beside what the first run held: a third to a half more memory, and no time gained.
    options.enable_mem_pattern = provider.name != "CPUExecutionProvider"
    options.log_severity_level = severity
    # Other threads read and write while this one computes: a spinning pool would take their cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in provider.config.items():
        options.add_session_config_entry(key, value)
    asked = (provider.name, dict(provider.options)) if provider.options else provider.name
    session = ort.InferenceSession(data, options, providers=[asked])
    came = session.get_providers()
    # CUDA's session lists the CPU as well, behind it; `disable_cpu_ep_fallback` and the nodes say that it is not used.
    if came[0] != provider.name or not {*came} <= {provider.name, "CPUExecutionProvider"}:
        raise _elsewhere(ort, provider, f"onnxruntime chose {came}, {provider.name} was asked for")
    if provider.checks_nodes:
        _require_nodes(ort, session, provider)
    return session


def _require_nodes(ort: Any, session: Any, provider: Provider) -> None:
    session.disable_fallback()  # or a batch that fails is run again on the CPU, with a warning
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    if ask is None:  # before 1.24; `disable_cpu_ep_fallback` has then said it at the session's making
        return
    elsewhere = [
        f"{node.op_type} on {group.ep_name}"
        for group in ask()
        if group.ep_name != provider.name
        for node in group.get_nodes()
    ]
    if elsewhere:
        shown = ", ".join(dict.fromkeys(elsewhere))
        raise _elsewhere(
            ort, provider, f"{len(elsewhere)} operators of the network are not on {provider.name}: {shown}"
        )


def _elsewhere(ort: Any, provider: Provider, headline: str) -> DeviceError:
    return DeviceError(headline, f"onnxruntime {ort.__version__}", fix=f"reinstall it: {provider.reinstall}")


_GRAPHS = count(1)
"""Numbers of captured graphs; one that was dropped is never met again."""


def _graph_options(ort: Any, number: int) -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))  # -1: neither capture nor replay
    return options


class _Buffers:
    """The inputs and outputs of one shape, in the provider's memory."""

    def __init__(self, ort: Any, session: Any, provider: Provider, inputs: Mapping[str, Array]) -> None:
        self._session, self._provider = session, provider
        self._names = [output.name for output in session.get_outputs()]
        self._run_options = [_graph_options(ort, n) for n in (-1, next(_GRAPHS))] if provider.captures else []
        self._binding = session.io_binding()
        self._inputs: dict[str, Any] = {}
        self._outputs: list[Any] = []
        for name, value in inputs.items():
            self._inputs[name] = ort.OrtValue.ortvalue_from_shape_and_type(
                list(value.shape), value.dtype.type, provider.memory, provider.index
            )
            self._binding.bind_ortvalue_input(name, self._inputs[name])
        for name in self._names:  # the first run allocates them, of the right shape
            self._binding.bind_output(name, provider.memory, provider.index)

    def fill(self, inputs: Mapping[str, Array]) -> None:
        for name, value in inputs.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(value))

    def compute(self) -> _Buffers:
        """Run the network, and return when it has."""
        # A graph holds addresses: it is not captured before those of the outputs are settled.
        how = self._run_options[bool(self._outputs) :][:1]
        self._session.run_with_iobinding(self._binding, *how)
        if not self._outputs:  # from now on the same memory
            self._outputs = list(self._binding.get_outputs())
            self._binding.clear_binding_outputs()
            for name, value in zip(self._names, self._outputs, strict=True):
                self._binding.bind_ortvalue_output(name, value)
        return self

    def fetch(self) -> dict[str, Array]:
        """Return what was computed; the caller's."""
        is_shared = self._provider.memory == "cpu"  # there `numpy` is a view of memory that the next run writes to
        values = [value.numpy() for value in self._outputs]
        return {n: v.copy() if is_shared else v for n, v in zip(self._names, values, strict=True)}


class BoundSession:
    """A session whose buffers stay, one set for each shape and slot, and a thread to run it beside the caller's.

    Parameters
    ----------
    ort, session, provider
        The package, and what `make_session` made of the provider.
    """

    def __init__(self, ort: Any, session: Any, provider: Provider) -> None:
        self._ort, self._session, self._provider = ort, session, provider
        self._names = [output.name for output in session.get_outputs()]
        self._buffers: OrderedDict[tuple[Any, ...], _Buffers] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name; they are the caller's."""
        return self._filled(inputs, slot=0).compute().fetch()

    def run_unbound(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the same without buffers of ours: best where they would be in the main memory anyway."""
        return dict(zip(self._names, self._session.run(None, inputs), strict=True))

    def stream(self, batches: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """Yield the outputs of each batch in order; the next batch is asked for while one computes."""
        if self._pool is None:  # one thread for good: onnxruntime keeps its handles by thread
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="onnxruntime")
        running: Future[_Buffers] | None = None
        try:
            for number, inputs in enumerate(batches):
                begun = self._pool.submit(self._filled(inputs, slot=number % SLOTS).compute)
                last, running = running, begun
                if last is not None:
                    yield last.result().fetch()
            if running is not None:
                yield running.result().fetch()
        finally:
            if running is not None:  # nobody else may use the buffers meanwhile
                running.exception()

    def close(self) -> None:
        """Free the buffers; a batch that still runs is waited for."""
        if self._pool is not None:
            self._pool.shutdown()
        self._buffers.clear()

    @property
    def shapes(self) -> int:
        """How many sets of buffers are held."""
        return len(self._buffers)

    def _filled(self, inputs: Mapping[str, Array], *, slot: int) -> _Buffers:
        key = (slot, *((name, value.shape, value.dtype.str) for name, value in inputs.items()))
        buffers = self._buffers.pop(key, None)
        if buffers is None:
            while sum(known[0] == slot for known in self._buffers) >= MAX_SHAPES:
                self._buffers.pop(next(known for known in self._buffers if known[0] == slot))
            buffers = _Buffers(self._ort, self._session, self._provider, inputs)
        self._buffers[key] = buffers
        buffers.fill(inputs)
        return buffers


class OnnxruntimeEngine:
    """What both engines do alike once `_begin` was called.

    Parameters
    ----------
    data
        The ONNX file, already checked by `runtime.artifact`.
    provider
        Where to compute.
    threads
        Threads within one operator on the CPU.
    card
        The network's card, to compose graphs that begin at raw pixels; None for an engine that takes no such form.
    """

    severity = 3

    def __init__(self, data: bytes, provider: Provider, *, threads: int, card: ModelCard | None) -> None:
        self._data, self._provider, self._threads, self._card = data, provider, threads, card
        self._ort: Any = None
        self._version = ""
        self._form: ByteForm | None = None
        self._bound: dict[ByteForm | None, BoundSession] = {}

    def infer(self, batch: Batch) -> Batch:
        """Return the logits of a batch."""
        with self._freeing_memory():
            logits: Batch = self._session_of(None).run({"image": batch})["logits"]
        return logits

    def open_bytes(self, form: ByteForm) -> bool:
        """Get ready for raw batches; False if this engine takes no such form."""
        from unet_deploy.runtime.composition import RAW_TYPES

        if self._card is None or form.dtype not in RAW_TYPES:
            return False
        if form != self._form and self._form is not None:
            self._drop(self._form)  # one at a time: each holds the weights again
        try:
            with self._freeing_memory():
                self._session_of(form)
        except Exception as error:  # onnxruntime's exceptions have no common class of their own
            if is_out_of_memory(error):
                raise
            logger.warning("raw %s pixels are converted on the host: %s", form.dtype, str(error).splitlines()[0])
            return False
        self._form = form
        return True

    def stream(self, batches: Iterable[RawBatch], *, gain: Batch, offset: Batch) -> Iterator[ByteResult]:
        """Yield the result of each raw batch in order; see `ByteEngine`."""
        assert self._form is not None, "open_bytes comes first"
        constants = {"gain": gain[:, None, None], "offset": offset[:, None, None]}
        with self._freeing_memory():
            bound = self._session_of(self._form)
            for outputs in bound.stream({"raw": batch, **constants} for batch in batches):
                yield ByteResult(
                    labels=outputs.get("labels"),
                    probabilities=outputs.get("probabilities"),
                    checksum=outputs["checksum"],
                )

    def close(self) -> None:
        """Free the sessions."""
        self._free()
        self._form = self._ort = None

    def _session_of(self, form: ByteForm | None) -> BoundSession:
        """Return the session of a form, None for the plain network; made where it is not there."""
        assert self._ort is not None, "the engine is not open"
        if form not in self._bound:
            data = self._data
            if form is not None:
                from unet_deploy.runtime.composition import compose_bytes

                assert self._card is not None
                data = compose_bytes(data, self._card, form)
            session = make_session(self._ort, data, self._provider, threads=self._threads, severity=self.severity)
            self._bound[form] = BoundSession(self._ort, session, self._provider)
        return self._bound[form]

    def _drop(self, form: ByteForm | None) -> None:
        if (bound := self._bound.pop(form, None)) is not None:
            bound.close()

    def _free(self) -> None:
        for form in [*self._bound]:
            self._drop(form)

    @contextmanager
    def _freeing_memory(self) -> Iterator[None]:
        """Let go of everything where memory runs out; the error passes through."""
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                self._free()
            raise
