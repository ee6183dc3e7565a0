"""``unet-deploy bench``: which engine, precision and tile is the fastest on this machine, in about a minute."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unet_deploy.cli import _bench_report as report
from unet_deploy.cli import _options as flags
from unet_deploy.cli._report import show_json
from unet_deploy.errors import DeviceError, OutputPathError, UsageError

if TYPE_CHECKING:
    from unet_deploy.runtime.artifact import Artifact
    from unet_deploy.runtime.trials import Trial

SECONDS = 60
MODEL_SUFFIXES = (".onnx", ".engine", ".pt", ".pth")
"""Checkpoints among them: that they are none is said with what to do."""
MOST_NAMED = 5
"""Of the files that could not be forgotten."""
VOLUME_SHARE = 0.3
"""Of the time, what is left for a volume."""


def bench(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="MODEL|VOLUME",
            help="Models (.onnx, .engine, or a bundled network's name), and perhaps a volume. Without a model: as "
            "segment chooses one. Files beside it in other precisions (model.int8.onnx) are tried as well.",
        ),
    ] = None,
    image: flags.ImageOption = None,
    channel: flags.ChannelOption = None,
    axes: flags.AxesOption = None,
    level: flags.FittingLevelOption = None,
    input_range: flags.InputRangeOption = None,
    device: flags.DeviceOption = "auto",
    engine: flags.EngineOption = None,
    threads: Annotated[
        int,
        typer.Option(
            "--threads",
            min=0,
            help="CPU threads of the network; 0: one a core. What is found is for runs with the same --threads.",
        ),
    ] = 0,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds", min=1, max=86_400, help="How long it may take, about; what it had no time for is said."
        ),
    ] = SECONDS,
    keep: Annotated[
        bool | None,
        typer.Option(
            "--keep/--no-keep",
            help="Remember the result for the choices of segment and plan. Default: unless other programs keep the "
            "processor busy.",
        ),
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget what is remembered of this machine, and measure nothing.")
    ] = False,
    trust_engine: flags.TrustEngineOption = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Measure engines, precisions and tiles on this machine, and say which flags segment is fastest with.

    What was measured is remembered: segment and plan, with the same --threads, then choose engine and tile by it. With
    a volume it says how long that will take, and segments a few blocks of it into a temporary folder.
    """
    from unet_deploy.cli._bench_volume import try_volume
    from unet_deploy.runtime.advice import advise
    from unet_deploy.runtime.engines import candidates
    from unet_deploy.runtime.machine import busy_share
    from unet_deploy.runtime.trials import rank, run_trials, split_by_use

    if forget:
        _forget(paths or [], as_json=as_json)
        return
    candidates(device, engine)  # a name that is none is told at once
    given, volume = sort_paths(paths or [])
    how_read = _reading_flags(image, channel, axes, level, input_range)
    if how_read and volume is None:
        raise UsageError(
            f"{' '.join(how_read)} came without a volume",
            "it says how a volume is read",
            fix="leave it out, or name the volume too: unet-deploy bench VOLUME.zarr",
        )
    asked, loaded, notes = _load(given, trust_engine=trust_engine)
    artifacts, useless = split_by_use(loaded, device=device)
    notes += [f"{artifact.source}: a CPU computes fp16 in fp32, so it is no faster" for artifact in useless]
    choice: dict[str, Any] = {"device": device, "engine": engine, "threads": threads}
    reading: dict[str, Any] = {
        "image": image,
        "channels": channel or (),
        "axes": axes,
        "level": level,
        "input_range": flags.parse_input_range(input_range),
    }
    trying = None if volume is None else try_volume(volume, artifacts[0], reading)
    busy = busy_share()
    deadline = time.monotonic() + seconds
    share = 1.0 if trying is None else 1 - VOLUME_SHARE
    trials = run_trials(artifacts, **choice, seconds=share * seconds, say=lambda text: _say(f"measuring: {text}"))
    require_any(trials)
    busy = max(busy or 0.0, busy_share() or 0.0)
    keeping = keep_telling(trials, is_wanted=keep, busy=busy)
    advices = [advise(trials, artifact, **choice) for artifact in artifacts]
    found = report.Found(
        artifacts=tuple(artifacts),
        asked=asked,
        is_given=bool(given),
        flags=(*how_read, *_flags_given(device, engine, threads, trust_engine=trust_engine)),
        path=volume,
        rows=rank(trials),
        trials=trials,
        advices=tuple(advice for advice in advices if advice is not None),
        notes=tuple(notes),
        keeping=keeping,
        volume=None,
        busy=busy,
    )
    if trying is not None:
        left = deadline - time.monotonic()
        tried = trying.run(trials, found.advices, device=device, threads=threads, seconds=left, say=_say)
        found = replace(found, volume=tried)
    if as_json:
        show_json(report.to_object(found))
    else:
        report.show(found)


def sort_paths(paths: list[Path]) -> tuple[list[Path], Path | None]:
    """Return which of the arguments are models, and the volume among them.

    Raises
    ------
    UsageError
        If there is more than one volume.
    """
    from unet_deploy.runtime.artifact import bundled_names, is_bundled

    def is_model(path: Path) -> bool:
        is_named = is_bundled(path) or (not path.exists() and get_close_matches(str(path), bundled_names()) != [])
        return path.suffix in MODEL_SUFFIXES or is_named

    models = [path for path in paths if is_model(path)]
    volumes = [path for path in paths if not is_model(path)]
    if len(volumes) > 1:
        raise UsageError(
            f"{len(volumes)} arguments are no models, at most one volume was expected",
            f"taken for volumes: {', '.join(map(str, volumes))}",
            "models end with .onnx or .engine, or are the name of a bundled network",
            fix=f"unet-deploy bench {' '.join(map(str, [*models, volumes[0]]))}",
        )
    return models, volumes[0] if volumes else None


def require_any(trials: tuple[Trial, ...]) -> None:
    """Raise if nothing could be measured.

    Raises
    ------
    DeviceError
        If no engine ran any model.
    """
    if any(trial.costs is not None for trial in trials):
        return
    reasons = dict.fromkeys(f"{t.engine}, {t.artifact.card.precision}: {t.reason}" for t in trials)
    fixes = [trial.fix for trial in trials if trial.fix and trial.reason != "not installed"] or [
        trial.fix for trial in trials if trial.fix
    ]
    raise DeviceError("nothing could be measured: no engine ran the model here", *reasons, fix=fixes[0])


def keep_telling(trials: tuple[Trial, ...], *, is_wanted: bool | None, busy: float) -> report.Keeping:
    """Keep what was measured, where that is enough to choose by; return what became of it.

    Parameters
    ----------
    trials
        What was measured.
    is_wanted
        Whether to keep it; None for unless the machine was too busy.
    busy
        Share of the processor's time that other programs took.
    """
    from unet_deploy.runtime.kept_costs import keep_costs
    from unet_deploy.runtime.trials import TOO_BUSY

    if is_wanted is False:
        return "not asked for"
    if is_wanted is None and busy >= TOO_BUSY:
        return "too busy"
    telling = [trial for trial in trials if trial.is_telling]
    paths = [keep_costs(trial.artifact, trial.costs) for trial in telling if trial.costs is not None]
    if None in paths:
        return "not possible"
    if not telling:
        return "too little"
    return "kept" if len(telling) == sum(trial.costs is not None for trial in trials) else "in part"


def _reading_flags(
    image: str | None, channels: Sequence[str] | None, axes: str | None, level: int | None, input_range: str | None
) -> tuple[str, ...]:
    """Return the flags of bench that say how the volume is read; segment must be given them too."""
    given = {"--image": image, "--axes": axes, "--level": level, "--input-range": input_range}
    each = [(flag, str(value)) for flag, value in given.items() if value is not None]
    return tuple(word for pair in [*each, *(("--channel", name) for name in channels or ())] for word in pair)


def _flags_given(device: str, engine: str | None, threads: int, *, trust_engine: bool) -> tuple[str, ...]:
    """Return the flags of bench that segment must be given too."""
    return (
        *(() if device == "auto" else ("--device", device)),
        *(() if engine is None else ("--engine", engine)),
        *(() if threads == 0 else ("--threads", str(threads))),
        *(("--trust-engine",) if trust_engine else ()),
    )


def _load(given: list[Path], *, trust_engine: bool) -> tuple[frozenset[str], list[Artifact], list[str]]:
    """Return the hashes of the models asked for, or that segment takes; these and those beside; what was left out."""
    from unet_deploy.runtime.trials import find_siblings

    wanted: list[Path | None] = [*given] or [None]
    loaded = [flags.load_model(path, trust_engine=trust_engine) for path in wanted]
    found: dict[str, Artifact] = {artifact.sha256: artifact for artifact in loaded}
    notes: list[str] = []
    for artifact in loaded:
        siblings, left_out = find_siblings(artifact)
        for sibling in siblings:
            found.setdefault(sibling.sha256, sibling)
        notes += left_out
    return frozenset(artifact.sha256 for artifact in loaded), [*found.values()], [*dict.fromkeys(notes)]


def _forget(paths: list[Path], *, as_json: bool) -> None:
    """Forget what is remembered of this machine, and tell what became of it.

    Raises
    ------
    UsageError
        If models or volumes were named.
    OutputPathError
        If not all could be forgotten; what could be is.
    """
    from unet_deploy.runtime.kept_costs import forget_costs

    if paths:
        raise UsageError(
            f"--forget came with {', '.join(map(str, paths))}",
            "it forgets all that is remembered of this machine, of whatever network",
            fix="unet-deploy bench --forget",
        )
    forgotten = forget_costs()
    count, left = forgotten.count, [f"{path}: {reason}" for path, reason in forgotten.left]
    if as_json:
        show_json({"forgotten": count, "left": left})
    if left:
        is_each_known = all(path.suffix == ".json" for path, _ in forgotten.left)  # or the folder stands for its files
        number = str(len(left)) if is_each_known else "an unknown number"
        more = [f"and {len(left) - MOST_NAMED} more"] if len(left) > MOST_NAMED else []
        raise OutputPathError(
            f"forgot {count} measurement(s) of this machine, and could not forget {number}",
            *left[:MOST_NAMED],
            *more,
            "segment and plan go on choosing by those of them that they can read",
            fix="make them, and the folder they are in, yours to read and write, then: unet-deploy bench --forget",
        )
    if not as_json:
        typer.echo(
            f"forgot {count} measurement(s) of this machine" if count else "nothing was remembered of this machine"
        )


def _say(text: str) -> None:
    typer.echo(text, err=True)
