"""What was measured of engines on this machine, kept for later runs.

1. A file for each engine, precision, number of threads and network's sizes, in the user's data folder. Weights are no
   part of it: a network that was trained anew is as fast.
2. What it was measured on is written into it: processor and usable cores, or GPU and driver; system; versions of the
   engine's packages. What was measured on anything else is not taken: a home folder may serve several machines.
   Nor is what was measured with another number of threads: with 4, another engine or tile may be the fastest.
3. A file is written whole or not at all, so two processes may keep costs at once; the last one counts.
4. A file that is damaged, foreign or made by another release is as if nothing had been measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unet_deploy.card import AnyNetwork
from unet_deploy.runtime._private_files import user_data_folder, write_private
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_costs import EngineCosts
from unet_deploy.runtime.machine import Gpus, ask_driver, read_processor

COSTS = "costs"
"""The folder in the user's data folder."""
FORMAT = 2
"""To be raised when an engine of ours changes so much that what was measured before says nothing."""
_LARGEST = 2**20
_CUDA_INDEX = re.compile(r"cuda:([0-9]{1,4})")

Key = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCosts:
    """How many measurements of this machine are kept, and the ISO date of the last one; None without any."""

    count: int
    last: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """How many measurements were deleted, and what could not be, or not even be read: each path with the reason."""

    count: int
    left: tuple[tuple[Path, str], ...] = ()


def read_costs(
    artifact: Artifact,
    *,
    engine: str,
    device: str = "auto",
    threads: int = 0,
    folder: Path | None = None,
    ask: Callable[[], Gpus] = ask_driver,
) -> EngineCosts | None:
    """Return what was measured here of an engine on such a network; None if nothing was.

    Parameters
    ----------
    artifact
        The model; its network's sizes and precision count.
    engine, device, threads
        As for `open_engine`. Threads must be the same as when it was measured.
    folder
        Where costs are kept; the user's own by default.
    ask
        What tells which GPUs there are.
    """
    key = _key(artifact.card.network, artifact.card.precision, engine=engine, device=device, threads=threads, ask=ask)
    place = _place(folder)
    return None if key is None or place is None else _read(place / _name(key), key)


def keep_costs(
    artifact: Artifact, costs: EngineCosts, *, folder: Path | None = None, ask: Callable[[], Gpus] = ask_driver
) -> Path | None:
    """Keep what was measured of an engine on an artifact's network, in place of what was kept of it before.

    Returns
    -------
    Path or None
        The file; None where nothing can be kept: without a home folder, on a disk that takes no more, or if the engine
        is none that is installed here.
    """
    network, precision = artifact.card.network, costs.precision
    key = _key(network, precision, engine=costs.engine, device=costs.device, threads=costs.threads, ask=ask)
    place = _place(folder)
    if key is None or place is None:
        return None
    path = place / _name(key)
    data = json.dumps({"format": FORMAT, "key": key, "costs": costs.to_object()}, indent=1)
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, data.encode())
    except OSError:
        return None
    return path


def has_costs(folder: Path | None = None) -> bool:
    """Tell, at next to no cost, whether anything was ever kept."""
    place = _place(folder)
    try:
        return place is not None and place.is_dir()
    except OSError:  # a home that is another user's, as in some containers
        return False


def count_costs(folder: Path | None = None, *, ask: Callable[[], Gpus] = ask_driver) -> KeptCosts:
    """Return how much is kept of this machine, of whatever versions of its engines."""
    dates = [costs.measured for _, costs in _of_this_machine(folder, ask, [])]
    return KeptCosts(count=len(dates), last=max(dates, default=None))


def forget_costs(folder: Path | None = None, *, ask: Callable[[], Gpus] = ask_driver) -> Forgotten:
    """Delete what is kept of this machine, and leave what is of others; return what became of it."""
    gone, left = 0, list[tuple[Path, str]]()
    for path, _ in _of_this_machine(folder, ask, left):
        try:
            path.unlink(missing_ok=True)  # another process may be forgetting too
            gone += 1
        except OSError as error:
            left.append((path, f"it cannot be deleted: {error.strerror or error}"))
    return Forgotten(count=gone, left=tuple(left))


def _of_this_machine(
    folder: Path | None, ask: Callable[[], Gpus], left: list[tuple[Path, str]]
) -> Iterator[tuple[Path, EngineCosts]]:
    """Yield the files of this machine; what cannot be read, and so may be of it, is added to `left`."""
    machines: dict[str, list[Key]] = {}
    for path in _list_files(_place(folder), left):
        try:
            found = _load(path)
        except FileNotFoundError:  # another process was faster
            continue
        except OSError as error:
            left.append((path, f"it cannot be read, and may be of this machine: {error.strerror or error}"))
            continue
        key = None if found is None else found.get("key")
        kind = key.get("device") if isinstance(key, dict) else None
        if kind not in ("cpu", "cuda"):
            continue
        if kind not in machines:
            machines[kind] = _machines(kind, ask)
        assert isinstance(key, dict)
        costs = _read(path, key)
        if costs is not None and key.get("machine") in machines[kind]:
            yield path, costs


def _list_files(place: Path | None, left: list[tuple[Path, str]]) -> list[Path]:
    if place is None:
        return []
    try:
        with os.scandir(place) as entries:  # a glob takes a folder that is not to be looked into for an empty one
            return sorted(Path(e) for e in entries if e.name.endswith(".json") and not e.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        left.append((place, f"it cannot be looked into: {error.strerror or error}"))
        return []


def _place(folder: Path | None) -> Path | None:
    if folder is not None:
        return folder
    try:
        return user_data_folder() / COSTS
    except RuntimeError:  # no home, as in some containers
        return None


def _key(
    network: AnyNetwork, precision: str, *, engine: str, device: str, threads: int, ask: Callable[[], Gpus]
) -> Key | None:
    """Return what a measurement depends on; None if the engine or its device is not here."""
    from unet_deploy.runtime.engines.choice import ENGINES  # which imports this module
    from unet_deploy.runtime.survey import ORIGINS, installed_versions

    kinds = {kind.name: kind.device for kind in ENGINES}
    if engine not in kinds:
        return None
    kind = kinds[engine]
    found = _CUDA_INDEX.fullmatch(device)
    index = int(found[1]) if found is not None and kind == "cuda" else 0
    machines, versions = _machines(kind, ask), installed_versions(ORIGINS[engine].packages)
    if index >= len(machines) or not versions:
        return None
    return {
        "machine": machines[index],
        "device": kind,
        "engine": engine,
        "versions": versions,
        "precision": precision,
        "threads": threads,
        "network": {"kind": type(network).__name__, **asdict(network)},
    }


def _machines(kind: str, ask: Callable[[], Gpus]) -> list[Key]:
    """Return the devices of a kind, in words that another one like it has too: the processor, or each GPU."""
    system = f"{platform.system()} {platform.machine()}"
    if kind == "cpu":
        processor = read_processor()
        return [{"system": system, "processor": processor.name, "usable_cores": processor.usable}]
    return [{"system": system, "gpu": gpu.name, "driver": gpu.driver} for gpu in ask().found]


def _name(key: Key) -> str:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return f"{key['engine']}-{key['precision']}-{digest[:16]}.json"


def _read(path: Path, key: Key) -> EngineCosts | None:
    """Return the costs in a file, None if they are of another key or cannot be."""
    try:
        found = _load(path)
    except OSError:
        return None
    if found is None or found.get("format") != FORMAT or found.get("key") != key:
        return None
    costs = EngineCosts.from_object(found.get("costs"))
    return costs if costs is not None and costs.engine == key["engine"] else None


def _load(path: Path) -> dict[str, Any] | None:
    """Return what a file holds, None if it is damaged; an OSError is the caller's business."""
    with path.open("rb") as file:
        text = file.read(_LARGEST + 1)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
