"""``unet-deploy doctor``: what this machine can do, to be read when something does not work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unet_deploy.cli import _options as flags
from unet_deploy.cli._report import format_bytes, format_seconds, show_json, show_rows
from unet_deploy.errors import DeviceError

if TYPE_CHECKING:
    from unet_deploy.runtime.diagnosis import Diagnosis
    from unet_deploy.runtime.machine import Gpu
    from unet_deploy.runtime.survey import EngineStatus

UNKNOWN = "unknown"
Rows = list[tuple[str, str]]


def doctor(as_json: flags.JsonOption = False) -> None:
    """Say what is installed, which engines work here and why others do not; to be pasted into a bug report."""
    from unet_deploy.runtime.diagnosis import diagnose

    found = diagnose()
    if as_json:
        show_json(found.to_object())
    else:
        show_rows(_rows(found))
    require_engine(found)


def require_engine(found: Diagnosis) -> None:
    """Raise if nothing can segment here.

    Raises
    ------
    DeviceError
        If no engine works.
    """
    if found.works:
        return
    reasons = [f"{status.name}: {status.reason}" for status in found.engines]
    fixes = [fix for problem in found.problems for fix in problem.fix] + [s.fix for s in found.engines if s.fix]
    raise DeviceError(
        "no engine works on this machine",
        *[problem.headline for problem in found.problems],
        *reasons,
        fix=fixes[0] if fixes else "pip install 'unet-deploy[cpu]'",
    )


def _rows(found: Diagnosis) -> Rows:
    absent = [name for name, version in found.packages.items() if version is None]
    return [
        ("unet-deploy", found.version),
        ("python", found.python),
        ("platform", found.platform),
        *((name, version) for name, version in found.packages.items() if version is not None),
        *([("absent", ", ".join(absent))] if absent else []),
        ("torch", _describe_torch(found)),
        *_machine_rows(found),
        *_gpu_rows(found),
        ("codecs", ", ".join(f"{n}" if a == "works" else f"{n} ({a})" for n, a in found.codecs.items())),
        ("tried on", found.model),
        *((f"{status.name}", describe_engine(status)) for status in found.engines),
        ("plan cache", _describe_plan_cache(found)),
        ("measured", _describe_kept_costs(found)),
        *_problem_rows(found),
        ("took", format_seconds(found.seconds)),
        ("verdict", _verdict(found)),
    ]


def _describe_torch(found: Diagnosis) -> str:
    if found.torch is None:
        return "not installed; only training and export need it"
    return f"{found.torch.version}, built for {f'CUDA {found.torch.cuda}' if found.torch.cuda else 'the CPU only'}"


def _machine_rows(found: Diagnosis) -> Rows:
    cpu, memory = found.processor, found.memory
    total, free, limit = (
        UNKNOWN if n is None else format_bytes(n)
        for n in (memory.total_bytes, memory.available_bytes, memory.limit_bytes)
    )
    cores = f"{cpu.cores or UNKNOWN} logical cores" + (f", {cpu.usable} usable" if cpu.usable != cpu.cores else "")
    units = f", {' '.join(cpu.vector_units)}" if cpu.vector_units else ""
    bound = "" if memory.limit_bytes is None else f", limited to {limit}"
    return [
        ("cpu", f"{cpu.name or UNKNOWN}, {cores}{units}"),
        ("memory", f"{total}, {free} available{bound}"),
        *(
            ("disk", f"{name}: {format_bytes(disk.free_bytes)} free of {format_bytes(disk.total_bytes)}")
            for name, disk in found.disks.items()
        ),
    ]


def _gpu_rows(found: Diagnosis) -> Rows:
    return [("gpu", _describe_gpu(gpu)) for gpu in found.gpus.found] or [("gpu", found.gpus.note)]


def _describe_gpu(gpu: Gpu) -> str:
    size = UNKNOWN if gpu.memory_bytes is None else format_bytes(gpu.memory_bytes)
    capability = "" if gpu.compute_capability is None else f", compute capability {gpu.compute_capability}"
    return f"{gpu.name}, {size}, driver {gpu.driver}{capability}"


def _describe_plan_cache(found: Diagnosis) -> str:
    cache = found.plan_cache
    what = "no plans" if not cache.plans else f"{cache.plans} plan(s), {format_bytes(cache.total_bytes)}"
    return f"{cache.folder}: {what}"


def _describe_kept_costs(found: Diagnosis) -> str:
    kept = found.kept_costs
    if kept.last is None:
        return "nothing of this machine yet: unet-deploy bench finds its fastest engine and tile"
    last = f"{kept.count} time(s) on this machine, the last on {kept.last}"
    return f"{last}; engine and tile are chosen by it, until an engine is updated"


def describe_engine(status: EngineStatus) -> str:
    """Return what became of an engine, in a line."""
    from unet_deploy.runtime.kept_plans import NOT_TRIED

    if status.reason.startswith(NOT_TRIED):
        return f"{status.reason}; to try it: {status.fix}"
    if not status.works:
        return f"no: {status.reason}" + (f"; fix: {status.fix}" if status.fix else "")
    took = "" if status.seconds is None else f", opened and replayed in {format_seconds(status.seconds)}"
    if status.difference is None or status.limit is None:
        return f"works on {status.device}{took}"
    return f"works on {status.device}{took}, difference {status.difference:.2g} (at most {status.limit:.2g})"


def _problem_rows(found: Diagnosis) -> Rows:
    rows: Rows = []
    for problem in found.problems:
        rows += [("error", f"{problem.headline}: {problem.detail}"), *(("fix", command) for command in problem.fix)]
    return rows


def _verdict(found: Diagnosis) -> str:
    names = [status.name for status in found.engines if status.works]
    errors = f"; {len(found.problems)} error(s) above to mend" if found.problems else ""
    return (f"segmenting works, on {', '.join(names)}" if names else "nothing can segment here") + errors
