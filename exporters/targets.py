"""What can be exported: targets, the files they are, and what is asked of a request before any work.

A target with a precision is one product. ``openvino`` is the file of ``onnx``, proved through that engine too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal, TypeVar, get_args

from unet_deploy.card import Precision
from unet_deploy.errors import OutputExistsError, OutputPathError, UnknownNameError, UsageError
from unet_deploy.runtime._private_files import require_private_folder
from unet_deploy.runtime.disk_space import full_disk_named
from unet_deploy.runtime.engine_plan import Flag, Flavour, sidecar_path

Target = Literal["onnx", "tensorrt", "tensorrt-rtx", "openvino", "bioimageio"]
Wanted = tuple[Target, Precision]
Name = TypeVar("Name", bound=str)
TARGETS: tuple[Target, ...] = get_args(Target)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

SUFFIXES: dict[Target, str] = {
    "onnx": ".onnx",
    "openvino": ".onnx",
    "tensorrt": ".tensorrt.engine",
    "tensorrt-rtx": ".tensorrt-rtx.engine",
    "bioimageio": ".bioimageio.zip",
}
FLAVOURS: dict[Target, Flavour] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}
_OTHER_KINDS = {".engine": "an engine plan", ".pt": "a checkpoint", ".zip": "a package"}
"""Files are known by their names: an ONNX file of such a name would never be read as one."""
_WHAT: dict[Target, str] = {"tensorrt": "the plan", "tensorrt-rtx": "the plan", "bioimageio": "the package"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """How engine plans are built: TensorRT's flags, the most tiles a batch will have, where the user's key is."""

    flags: Mapping[str, Flag] = field(default_factory=dict)
    batch: int = 1
    key_folder: Path | None = None


def parse_names(kind: str, names: Sequence[str], known: Sequence[Name]) -> tuple[Name, ...]:
    """Return each name once, in the order given.

    >>> parse_names("target", ["onnx", "openvino", "onnx"], TARGETS)
    ('onnx', 'openvino')

    Raises
    ------
    UnknownNameError
        If one is none of those known; `kind` says what they are names of.
    """
    by_name = {str(name): name for name in known}
    for name in names:
        if name not in by_name:
            raise UnknownNameError.of_unknown_name(kind, name, by_name)
    return tuple(dict.fromkeys(by_name[name] for name in names))


def choose_outputs(targets: Iterable[Target], precisions: Sequence[Precision], output: Path) -> dict[Wanted, Path]:
    """Return the file of each product: of one, just the output that was named; of several, names made of it.

    >>> outputs = choose_outputs(("onnx", "tensorrt-rtx"), ("fp32", "int8"), Path("a.onnx"))
    >>> [path.name for path in outputs.values()]
    ['a.onnx', 'a.int8.onnx', 'a.tensorrt-rtx.engine', 'a.int8.tensorrt-rtx.engine']
    >>> choose_outputs(("bioimageio",), ("fp16",), Path("a.zip")).popitem()[1].name
    'a.zip'
    """
    wanted: list[Wanted] = [(target, precision) for target in targets for precision in precisions]
    if len(wanted) == 1 and output.suffix == _suffix(wanted[0][0]):
        return {wanted[0]: output}
    if len(wanted) == 1 and wanted[0][0] in ("onnx", "openvino") and output.suffix not in (".engine", ".zip"):
        return {wanted[0]: output}
    endings = (*SUFFIXES.values(), ".engine", ".zip")
    stem = output.name.removesuffix(next((end for end in endings if output.name.endswith(end)), ""))
    return {
        (target, precision): output.with_name(
            f"{stem}{'' if precision == 'fp32' else f'.{precision}'}{SUFFIXES[target]}"
        )
        for target, precision in wanted
    }


def _suffix(target: Target) -> str:
    """Return the end of a file's name; to `Path` one that is a suffix alone has none."""
    return Path(f"model{SUFFIXES[target]}").suffix


def require_calibration(precisions: Iterable[Precision], calibrate: Path | None) -> None:
    """Refuse int8 without data, and data that nothing needs.

    Raises
    ------
    UsageError
        If so.
    """
    names = set(precisions)
    if "int8" in names and calibrate is None:
        raise UsageError(
            "int8 needs data to calibrate on, and none were given",
            "the range of every layer's values is measured on tiles of data like those that will be segmented",
            fix="--calibrate VOLUME.zarr, or a folder of PNG or TIFF images",
        )
    if calibrate is not None and names <= {"fp32"}:
        raise UsageError(
            f"--calibrate {calibrate} came, and fp32 needs no calibration",
            "nothing was exported",
            fix="leave it out, or add --precision int8",
        )


def require_place(target: Target, output: Path, *, source: Path | None = None, overwrite: bool) -> None:
    """Refuse a place where the product cannot be written, or where it would never be loaded from.

    Raises
    ------
    OutputPathError, OutputExistsError
        If the folder does not exist or cannot be written to, if something is in the way, or if it is what the product
        is made of.
    UnsafeModelError
        If it is a plan, and others could replace it there.
    """
    suffix = _suffix(target)
    if not output.parent.is_dir():
        raise OutputPathError(
            f"the folder of {output} does not exist",
            f"{_WHAT.get(target, 'the ONNX file')} was to be written there",
            fix="create it, or choose --output",
        )
    for path in (output, sidecar_path(output)) if target in FLAVOURS else (output,):
        if path.is_dir():
            raise OutputPathError(
                f"{path} is a folder",
                "a file was to be written there",
                fix=f"--output {path / f'model{suffix}'}",
            )
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise OutputPathError(
                f"{path} is what {_WHAT.get(target, 'the ONNX file')} is to be made of",
                "it would be lost",
                fix=f"--output {path.with_name(f'{path.stem}-exported{suffix}')}",
            )
        if path.exists() and not overwrite:
            raise OutputExistsError(
                f"{path} exists", "nothing was written", fix="choose another --output, or --overwrite"
            )
    if target in ("onnx", "openvino") and output.suffix in _OTHER_KINDS:
        raise OutputPathError(
            f"{output} is the name of {_OTHER_KINDS[output.suffix]}, and an ONNX file was to be written",
            "by its name it would not be read as one",
            fix=f"--output {output.with_suffix('.onnx')}",
        )
    try:
        with TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise OutputPathError(
            f"nothing can be written to {output.parent}",
            f"{_WHAT.get(target, 'the ONNX file')} was to be written there: {error.strerror}",
            fix="choose --output in a folder of your own",
        ) from error
    if target in FLAVOURS:
        require_private_folder(output.parent, fix="choose --output in a folder of your own: a plan is native code")


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file in one move: what was there stays until all of it is written.

    Raises
    ------
    NoSpaceError
        If the disk is full.
    OutputPathError
        If the file may not be replaced, or is in use.
    """
    partial = path.with_name(f".{path.name}.partial")
    with full_disk_named(f"while writing {path}"):
        try:
            partial.write_bytes(data)
            partial.replace(path)
        except PermissionError as error:
            raise OutputPathError(
                f"{path} cannot be written: {error.strerror}",
                "it is read-only, or another program has it open",
                fix="close it there, or choose another --output",
            ) from error
        finally:
            partial.unlink(missing_ok=True)
