"""What the flags of ``evaluate`` may be, alone and together; said before any work where it can be."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from unet_deploy.errors import ConfigurationError, UnknownNameError, UsageError

KINDS = ("classes", "membranes", "instances", "ctc")
TABLES = {"isbi2012": "membranes", "ctc2015": "ctc"}
"""The paper's tables, and the kind of scores that each shows."""


def check_names(*, kind: str | None, compare: str | None, compare_by: str | None, predicts: str | None) -> None:
    """Refuse names that are not known, with what was perhaps meant.

    Raises
    ------
    UnknownNameError
        If a name is unknown.
    UsageError
        If a column came without its table.
    """
    for what, came, known in (
        ("kind of scores", kind, KINDS),
        ("published table", compare, tuple(TABLES)),
        ("meaning of a probability", predicts, ("interior", "membrane")),
    ):
        if came is not None and came not in known:
            raise UnknownNameError.of_unknown_name(what, came, known)
    if compare_by is not None:
        if compare is None:
            raise UsageError(
                f"--compare-by {compare_by} came without --compare",
                "it names a column of one of the paper's tables",
                fix=f"--compare {' or '.join(TABLES)}",
            )
        from unet_deploy.metrics.published import published_table

        published_table(compare).column(compare_by)  # says which columns there are, before any work


def check_flags(
    *, kind: str | None, compare: str | None, model: Path | None, images: Path | None, report: Path | None, tta: bool
) -> None:
    """Refuse flags that contradict each other.

    Raises
    ------
    UsageError
        If some do.
    """
    if kind is not None and compare is not None and TABLES[compare] != kind:
        raise UsageError(
            f"--compare {compare} came with --kind {kind}",
            f"that table's measures are those of {TABLES[compare]}",
            fix=f"--kind {TABLES[compare]} --compare {compare}",
        )
    if tta and model is None:
        raise UsageError(
            "--tta came without --model",
            "it says how a model is to segment PREDICTION, images; this PREDICTION is scored as it is",
            fix="--model FILE, or segment --tta first",
        )
    if images is not None and (report is None or model is not None):
        raise UsageError(
            "--images came " + ("with --model" if model is not None else "without --report"),
            "they are drawn in the report; with --model, PREDICTION is the images",
            fix="leave --images out" if model is not None else "--report report.html",
        )


def check_flags_of_kind(kind: str, **given: Any) -> None:
    """Refuse flags that would change nothing, once the kind is known.

    Raises
    ------
    UsageError
        If one says nothing about the kind, or two say the same.
    ConfigurationError
        If IoU thresholds are below 0.5.
    """
    meaning = {
        "positive": ("membranes", "classes"),
        "classes": ("classes",),
        "probability": ("membranes",),
        "predicts": ("membranes",),
        "radius": ("membranes",),
        "thresholds": ("membranes", "instances"),
        "per_slice": ("instances",),
        "min_size": ("instances", "ctc"),
    }
    for name, kinds in meaning.items():
        if given[name] not in (None, False) and kind not in kinds:
            flag = {"classes": "--class"}.get(name, "--" + name.replace("_", "-"))
            raise UsageError(
                f"{flag} came, which says nothing about {kind}",
                f"it is for {' and '.join(kinds)}",
                fix=f"leave it out, or --kind {kinds[0]}",
            )
    if kind == "instances" and given["thresholds"] is not None and given["thresholds"][0] < 0.5:
        raise ConfigurationError(
            f"--thresholds {given['thresholds'][0]:g},... came for instances; IoU thresholds lie in [0.5, 1)",
            "below 0.5 an object could match several others",
            fix="--thresholds 0.5,0.75,0.95",
        )
    if given["positive"] is not None and given["classes"]:
        raise UsageError(
            "--positive and --class came together",
            "both say which value of the truth is which class",
            fix="leave one of them out",
        )


def parse_thresholds(text: str | None) -> tuple[float, ...] | None:
    """Return thresholds from ``0.5,0.75``.

    Raises
    ------
    ConfigurationError
        If they are no numbers, do not increase, or lie outside [0, 1).
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigurationError(
            f"--thresholds {text} came, numbers with commas between were expected",
            "on the probability of the inside of cells, or on IoU",
            fix="--thresholds 0.5,0.75,0.95",
        ) from error
    if not all(0 <= value < 1 for value in values) or any(b <= a for a, b in pairwise(values)):
        known = sorted({value for value in values if 0 <= value < 1}) or [0.5]
        raise ConfigurationError(
            f"--thresholds {text} came; they must increase and lie in [0, 1)",
            "scores are listed in their order; nothing is above 1",
            fix=f"--thresholds {','.join(f'{value:g}' for value in known)}",
        )
    return values
