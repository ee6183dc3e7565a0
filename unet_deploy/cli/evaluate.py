"""``unet-deploy evaluate``: how good a prediction is, by the field's own measures.

1. Check the flags and the report's place; with ``--model``, segment the images first.
2. Open prediction and truth, pair their slices, and choose the kind of scores by what is there.
3. Score slice by slice; then read a few slices again for the report's pictures.
4. A table on stdout, or JSON; what was decided on the way goes to stderr.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unet_deploy.cli import _options as flags
from unet_deploy.cli._evaluate_flags import (
    KINDS,
    TABLES,
    check_flags,
    check_flags_of_kind,
    check_names,
    parse_thresholds,
)
from unet_deploy.cli._report import format_seconds, show_json, show_progress, show_rows
from unet_deploy.cli.train import parse_classes

if TYPE_CHECKING:
    from unet_deploy.cli._comparison import Comparison
    from unet_deploy.cli._evaluation import Evaluation, Table
    from unet_deploy.cli._inputs import Inputs


def evaluate(
    prediction: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTION", help="Zarr, TIFF, PNG, a folder of these, or 01_RES; images with --model."
        ),
    ],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="The annotation: likewise, or 01_GT.")],
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="|".join(KINDS), help="What to score. Default: by what is there.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", metavar="FILE|NAME", help="Segment PREDICTION, images, with this first."),
    ] = None,
    channel: flags.ChannelOption = None,
    input_range: flags.InputRangeOption = None,
    device: flags.DeviceOption = "auto",
    engine: flags.EngineOption = None,
    threads: flags.ThreadsOption = 0,
    trust_engine: flags.TrustEngineOption = False,
    tta: flags.TtaOption = False,
    axes: flags.AxesOption = None,
    truth_axes: Annotated[
        str | None, typer.Option("--truth-axes", metavar="NAMES", help="Axis names of TRUTH, a bare Zarr array.")
    ] = None,
    positive: Annotated[
        int | None,
        typer.Option(
            "--positive",
            metavar="VALUE",
            help="Value of TRUTH that is the inside of cells (membranes; default: all but 0) or class 1 (classes).",
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME=VALUE", help="A class and its value in TRUTH; repeat, class 0 first."),
    ] = None,
    probability: Annotated[
        str | None,
        typer.Option("--probability", metavar="N|NAME", help="Which class's probability of PREDICTION to score."),
    ] = None,
    predicts: Annotated[
        str | None,
        typer.Option(
            "--predicts", metavar="interior|membrane", help="What the probability is of. Default: by the class's name."
        ),
    ] = None,
    radius: Annotated[
        int | None,
        typer.Option(
            "--radius",
            metavar="PX",
            help="How far the warping error looks for a split; -1, the default, is everywhere.",
        ),
    ] = None,
    thresholds: Annotated[
        str | None,
        typer.Option("--thresholds", metavar="T,T,...", help="On probability (membranes) or IoU (instances)."),
    ] = None,
    per_slice: Annotated[
        bool, typer.Option("--per-slice", help="Objects do not continue from slice to slice (instances).")
    ] = False,
    min_size: Annotated[
        int,
        typer.Option(
            "--min-size", metavar="PX", min=0, help="Drop smaller objects of those made of a model's classes."
        ),
    ] = 0,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="isbi2012|ctc2015", help="Show your row in the paper's table.")
    ] = None,
    compare_by: Annotated[
        str | None,
        typer.Option("--compare-by", metavar="COLUMN", help="Column of that table to rank by, or your data set's."),
    ] = None,
    as_json: flags.JsonOption = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html|FILE.png|FOLDER", help="Draw the errors of slices.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="PATH", help="Images to draw the truth's outline over.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report.")] = False,
) -> None:
    """Score a prediction against an annotation, and compare it with the paper's tables.

    Zarr and TIFF volumes are read slice by slice, and may be larger than memory.
    """
    started = time.perf_counter()
    check_names(kind=kind, compare=compare, compare_by=compare_by, predicts=predicts)
    check_flags(kind=kind, compare=compare, model=model, images=images, report=report, tta=tta)
    parsed = parse_thresholds(thresholds)
    if radius is not None:
        from unet_deploy.metrics import WarpingCounter

        WarpingCounter(radius=radius)  # says what is wrong with it before any work
    class_values = parse_classes(classes)
    if report is not None:
        from unet_deploy.cli._evaluation_report import check_report_path

        check_report_path(report, overwrite=overwrite)
    from unet_deploy.cli._inputs import Request, open_inputs

    request = Request(
        prediction=prediction,
        truth=truth,
        kind=kind if kind is not None or compare is None else TABLES[compare],
        model=model,
        channels=tuple(channel or ()),
        input_range=flags.parse_input_range(input_range),
        device=device,
        engine=engine,
        threads=threads,
        trust_engine=trust_engine,
        axes=axes,
        truth_axes=truth_axes,
        positive=positive,
        class_values=class_values,
        probability=probability,
        predicts=predicts,
        per_slice=per_slice,
        images=images,
        tta=tta,
        min_size=min_size,
    )
    with ExitStack() as stack:
        inputs = open_inputs(request, stack, say=_say)
        check_flags_of_kind(
            inputs.kind,
            positive=positive,
            classes=classes,
            probability=probability,
            predicts=predicts,
            radius=radius,
            thresholds=parsed,
            per_slice=per_slice,
            min_size=min_size or None,
        )
        evaluation = _score(inputs, thresholds=parsed, radius=-1 if radius is None else radius)
        comparison = None
        if compare is not None:
            from unet_deploy.cli._comparison import compare_with

            comparison = compare_with(compare, evaluation, inputs, by=compare_by, say=_say)
        facts = _facts(inputs, evaluation, comparison, seconds=time.perf_counter() - started)
        if report is not None:
            facts["report"] = str(_report(report, inputs, evaluation, comparison, facts))
    if as_json:
        show_json(facts)
    else:
        _show(inputs, evaluation, comparison, facts)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _score(inputs: Inputs, *, thresholds: tuple[float, ...] | None, radius: int) -> Evaluation:
    from unet_deploy.cli import _evaluation as scoring
    from unet_deploy.cli import _object_scores as objects
    from unet_deploy.metrics import IOU_THRESHOLDS, ISBI_THRESHOLDS

    with show_progress() as progress:
        on_slice = _count_slices(len(inputs.paired.pairs), progress)
        paired, read = inputs.paired, inputs.read
        match inputs.kind:
            case "classes":
                return scoring.score_classes(paired, read, names=inputs.class_names, on_slice=on_slice)
            case "membranes":
                chosen = ISBI_THRESHOLDS if thresholds is None else thresholds
                scored = scoring.score_membranes(paired, read, thresholds=chosen, radius=radius, on_slice=on_slice)
                inputs.require_positive_seen()
                return scored
            case "instances":
                chosen = IOU_THRESHOLDS if thresholds is None else thresholds
                return objects.score_instances(paired, read, thresholds=chosen, on_slice=on_slice)
            case _:
                return objects.score_ctc(paired, read, on_slice=on_slice)


def _count_slices(total: int, progress: Callable[[Any], None]) -> Callable[[int], None]:
    from unet_deploy.runtime.execute import Progress

    started = time.perf_counter()

    def on_slice(done: int) -> None:
        seconds = time.perf_counter() - started
        progress(Progress(stage="scoring", done=done, total=total, failed=0, pixels=0, seconds=seconds))

    return on_slice


def _facts(inputs: Inputs, evaluation: Evaluation, comparison: Comparison | None, *, seconds: float) -> dict[str, Any]:
    return {
        "kind": evaluation.kind,
        "prediction": inputs.paired.prediction.where,
        "truth": inputs.paired.truth.where,
        "slices": len(inputs.paired.pairs),
        "read_as": dict(inputs.facts),
        "notes": list(inputs.paired.notes),
        "scores": {score.key: score.value for score in evaluation.summary},
        **evaluation.details,
        "compare": None if comparison is None else comparison.to_object(),
        "report": None,
        "seconds": seconds,
    }


def _summary_table(evaluation: Evaluation) -> Table:
    from unet_deploy.cli._evaluation import Table

    better = {"lower": "lower is better", "higher": "higher is better", "": ""}
    return Table(
        title="scores",
        header=("score", "value", "", ""),
        rows=tuple((s.title, s.text, better[s.better], s.note) for s in evaluation.summary),
    )


def _report(
    path: Path, inputs: Inputs, evaluation: Evaluation, comparison: Comparison | None, facts: dict[str, Any]
) -> Path:
    from unet_deploy.cli import _evaluation_pictures as pictures
    from unet_deploy.cli._evaluation_report import Report, choose_slices, write_report

    labels = [item["label"] for item in evaluation.details.get("classes", ())]
    legend = (
        pictures.class_legend(inputs.class_names, labels)
        if evaluation.kind == "classes"
        else pictures.LEGENDS[evaluation.kind]
    )
    drawn = Report(
        title=f"Evaluation of {Path(inputs.paired.prediction.where).name}",
        facts=(*inputs.facts, *(("note", note) for note in inputs.paired.notes)),
        tables=(
            _summary_table(evaluation),
            *(() if comparison is None else (comparison.table,)),
            *evaluation.tables,
        ),
        notes=() if comparison is None else comparison.notes,
        legend=legend,
        pictures=tuple(
            inputs.draw(inputs.paired.pairs[index], evaluation) for index in choose_slices(len(inputs.paired.pairs))
        ),
        n_slices=len(inputs.paired.pairs),
    )
    return write_report(path, drawn, {**facts, "report": str(path)})


def _show(inputs: Inputs, evaluation: Evaluation, comparison: Comparison | None, facts: dict[str, Any]) -> None:
    show_rows([*inputs.facts, ("time", format_seconds(facts["seconds"]))])
    tables = (_summary_table(evaluation), *(table for table in evaluation.tables if not table.is_detail))
    for table in tables:
        _show_table(table)
    if comparison is not None:
        _show_table(comparison.table)
        for note in comparison.notes:
            typer.echo(f"  {note}")
    if facts["report"] is not None:
        typer.echo(f"\nlook    {facts['report']}")


def _show_table(table: Table) -> None:
    """Print a table: text to the left, numbers to the right."""
    rows = [table.header, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.header))]
    is_text = [
        column == 0
        or any(row[column] and not row[column][0].isdigit() and row[column] not in ("none", "-") for row in table.rows)
        for column in range(len(table.header))
    ]
    typer.echo(f"\n{table.title}" if table.title != "scores" else "")
    for row in rows:
        cells = [
            f"{cell:<{width}}" if left else f"{cell:>{width}}"
            for cell, width, left in zip(row, widths, is_text, strict=True)
        ]
        typer.echo(("  " + "  ".join(cells)).rstrip())
