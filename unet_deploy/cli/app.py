"""The program: its verbs, its exit codes, and how errors are shown.

A verb's module is imported when the verb is used, so that help and version take hardly longer than typer itself.

Exit codes: 0 ok, 2 usage, 3 input data, 4 model, 5 environment, 6 partial result, 70 our bug, 130 interrupted.
"""

from __future__ import annotations

import importlib
import io
import logging
import sys
from collections.abc import Sequence
from typing import Annotated, Any, cast

import typer

from unet_deploy import __version__
from unet_deploy.errors import UnetDeployError, UsageError

EXIT_BUG = 70
EXIT_INTERRUPTED = 130
DEBUG_FLAG = "--debug"
SPOKEN = tuple(f"unet_deploy.runtime.{name}" for name in ("engines.tensorrt_cache", "expected_costs", "holding", "run"))
"""The logs that are always heard: TensorRT builds a plan for minutes, an engine is measured before a long run, a run is
paused, a volume looks unlike others."""
GOES_ON = {"segment": "the same command goes on with it", "train": "train --resume goes on with it"}
"""By verb, what becomes of what was half done when it was interrupted; the others leave nothing that goes on."""
# Newer typer carries its own copy of click, older imports it: the class is found where typer's own errors have it.
_UsageProblem = cast(
    "type[typer.BadParameter]", next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
)

VERBS = {
    "train": "Train the paper's U-Net on annotated images.",
    "export": "Export a trained network, proved equal to its checkpoint.",
    "adopt": "Make another program's ONNX network one that streams like ours.",
    "segment": "Segment a Zarr volume into labels and probabilities.",
    "plan": "Show tiles, blocks, memory, disk and time of a segmentation.",
    "evaluate": "Score a prediction against an annotation.",
    "inspect": "Say what a model or a volume is.",
    "check": "Prove that a model computes here what its card promises.",
    "bench": "Measure this machine, and say which flags are fastest.",
    "doctor": "Say what is installed, and which engines work here.",
    "demo": "Draw a volume, segment it, and show the result as a picture.",
}
"""Each is a function of its own name in a module of `unet_deploy.cli`; what the program's help says of it."""


class _Verbs(typer.core.TyperGroup):
    """The verbs, as names that the help lists; the one that is used takes its name's place."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        own = {name: typer.core.TyperCommand(name, help=said) for name, said in VERBS.items()}
        self.commands = {**own, **self.commands}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name in VERBS else command, rest


def _load(verb: str) -> Any:
    """Return a verb as typer makes it of its function."""
    own = typer.Typer(add_completion=False, rich_markup_mode=None)
    own.command()(getattr(importlib.import_module(f"unet_deploy.cli.{verb}"), verb))
    return typer.main.get_command(own)


app = typer.Typer(
    name="unet-deploy",
    cls=_Verbs,
    help="The U-Net of Ronneberger et al. (2015), from a few annotated images to gigapixel volumes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"unet-deploy {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG_FLAG, help="Show tracebacks and the log; may stand anywhere.")] = False,
) -> None:
    """Train, export and run the paper's U-Net."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the program on `arguments` (by default the process's own) and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    is_debug = DEBUG_FLAG in given
    given = [argument for argument in given if argument != DEBUG_FLAG]
    _configure_logging(is_debug=is_debug)
    for stream in (sys.stdout, sys.stderr):  # a code page that lacks a sign must not cost the result
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        result = typer.main.get_command(app).main(given, prog_name="unet-deploy", standalone_mode=False)
    except UnetDeployError as error:
        if is_debug:
            raise
        show_error(error)
        return error.exit_code
    except _UsageProblem as error:
        error.show()
        return UsageError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        result = EXIT_INTERRUPTED
    except SystemExit:  # typer's way when the reader of stdout left, as `head` does
        return 0
    except Exception as error:
        if is_debug:
            raise
        typer.echo(
            f"error[bug]: {type(error).__name__}: {error}\n"
            f"  unet-deploy {__version__} did not expect this\n"
            f"  fix: run again with {DEBUG_FLAG} and report the traceback with the command you typed",
            err=True,
        )
        return EXIT_BUG
    if result == EXIT_INTERRUPTED:  # typer itself turns Ctrl-C into this code
        goes_on = GOES_ON.get(given[0]) if given else None
        told = "" if goes_on is None else f": what was made is incomplete; {goes_on}"
        typer.echo(f"interrupted{told}", err=True)
    return result if isinstance(result, int) else 0


def _configure_logging(*, is_debug: bool) -> None:
    """Show our own log with --debug, and always what takes minutes; errors reach people as messages.

    Other packages keep their own settings.
    """
    log = logging.getLogger("unet_deploy")
    log.setLevel(logging.INFO if is_debug else logging.CRITICAL)
    log.propagate = False
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
    style = logging.Formatter("%(levelname)s %(name)s: %(message)s" if is_debug else "%(message)s")
    for handler in log.handlers:
        handler.setFormatter(style)
    for name in SPOKEN:
        logging.getLogger(name).setLevel(logging.INFO)


def show_error(error: UnetDeployError) -> None:
    """Print an error of ours to stderr: its code, what came, what was expected, the fix."""
    typer.echo(f"{typer.style(f'error[{error.code}]', fg='red', bold=True)}: {error}", err=True)
