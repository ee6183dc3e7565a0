"""The files of a bioimage.io package, in a folder or a zip: read by plain name and bounded in size, never unpacked.

Of a zip no more is inflated than it declares, and it may not declare much more than it has. A description is YAML,
whose aliases let a few lines stand for any number of values: they are counted before anyone prints a part of them.
"""

from __future__ import annotations

import importlib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from unet_deploy.errors import AdoptionError, MissingDependencyError, ModelNotFoundError, UnsafeModelError

DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml", "model.yaml")
FORMATS = ("0.4", "0.5")
FREE_BYTES, MOST_INFLATION = 64 * 2**20, 20
"""A file in a zip may inflate beyond `FREE_BYTES` only if that is at most so many times what it takes there."""
MAX_VALUES, MAX_DEPTH, MAX_INTEGER = 100_000, 50, 2**63
"""Of a description; one of the bioimage.io collection has a few hundred values."""
MAX_NAME = 255
"""Characters of a part of a path; more is an error of most file systems."""


def open_files(path: Path) -> tuple[Callable[[str, int], bytes], str]:
    """Return a reader of the package's files, by name and largest size, and the name of its description.

    Raises
    ------
    ModelNotFoundError
        If the package, or a file that is asked for, is not there.
    UnsafeModelError
        If a file is larger than it may be, inflates beyond reason, or lies outside of the package.
    AdoptionError
        If the zip is damaged, or compressed otherwise than bioimage.io does.
    """
    if not path.exists():
        raise ModelNotFoundError(
            f"no model at {path}", "an ONNX file or a bioimage.io package was expected", fix="check the path"
        )
    if path.suffix.lower() == ".zip":
        return _open_zip(path)
    folder = path if path.is_dir() else path.parent

    def read(name: str, limit: int) -> bytes:
        file = folder / _plain(name, str(path))
        if not file.is_file():
            raise _missing(name, path)
        if folder.resolve() not in file.resolve().parents:
            raise _outside(name, str(path))
        _require_size(file.stat().st_size, limit, name, path)
        return file.read_bytes()

    if path.is_file():
        return read, path.name
    found = [name for name in DESCRIPTIONS if (folder / name).is_file()]
    if not found:
        raise _missing(DESCRIPTIONS[0], path)
    return read, found[0]


def _open_zip(path: Path) -> tuple[Callable[[str, int], bytes], str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise AdoptionError(
            f"{path} is no zip file, or is damaged", str(error) or type(error).__name__, fix="download it again"
        ) from error

    def read(name: str, limit: int) -> bytes:
        if _plain(name, str(path)) not in names:
            raise _missing(name, path)
        try:
            with zipfile.ZipFile(path) as archive, archive.open(name) as file:
                entry = archive.getinfo(name)
                _require_size(entry.file_size, limit, name, path)
                _require_inflation(entry, path)
                data = file.read(entry.file_size)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
            raise AdoptionError(
                f"{name} of {path} cannot be unpacked", str(error) or type(error).__name__, fix="download it again"
            ) from error
        return data

    found = [name for name in DESCRIPTIONS if name in names]
    if not found:
        raise _missing(DESCRIPTIONS[0], path)
    return read, found[0]


def _plain(name: str, source: str) -> str:
    pure = PurePosixPath(name)
    is_long = max(map(len, pure.parts), default=0) > MAX_NAME
    if is_long or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name:
        raise _outside(name, source)
    return name


def _outside(name: str, source: str) -> UnsafeModelError:
    return UnsafeModelError(
        f"{source} names a file outside of itself: {name}",
        "a name within the package was expected",
        fix="download the file into the package, and name it there",
    )


def _missing(name: str, path: Path) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{path} holds no {name}", "a bioimage.io package was expected", fix="download it whole, or adopt an ONNX file"
    )


def _require_size(size: int, limit: int, name: str, path: Path) -> None:
    if size > limit:
        raise UnsafeModelError(
            f"{name} of {path} is {size} bytes or more, at most {limit} were expected",
            "no model needs more",
            fix="download the package again, and do not trust this one",
        )


def _require_inflation(entry: zipfile.ZipInfo, path: Path) -> None:
    """Refuse what fills the memory from a small file; Python bounds what deflate gives, of other methods nothing."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise AdoptionError(
            f"{entry.filename} of {path} is compressed by method {entry.compress_type}",
            "stored or deflated was expected, as bioimage.io has it",
            fix="unpack the package, and adopt the folder",
        )
    if entry.file_size > max(FREE_BYTES, MOST_INFLATION * entry.compress_size):
        raise UnsafeModelError(
            f"{entry.filename} of {path} declares {entry.file_size} bytes in {entry.compress_size}",
            f"weights do not shrink {MOST_INFLATION}-fold: this would fill the memory",
            fix="download the package again, and do not trust this one",
        )


def parse_description(text: bytes, source: str) -> dict[str, Any]:
    """Return a description of a model as plain values.

    Raises
    ------
    AdoptionError
        If it is no YAML, no model, or of a format that is not known here.
    UnsafeModelError
        If it holds more than any description.
    MissingDependencyError
        If PyYAML is not installed.
    """
    try:
        yaml: Any = importlib.import_module("yaml")
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        raise MissingDependencyError(
            "reading a bioimage.io package needs the package 'yaml', which is not installed",
            "it comes with dask, which this installation lacks",
            fix="pip install pyyaml",
        ) from error
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise AdoptionError(
            f"{source} is no YAML", next(iter(str(error).splitlines()), type(error).__name__), fix="download it again"
        ) from error
    _require_bounded(data, source)
    described = data if isinstance(data, dict) else {}
    version = str(described.get("format_version"))
    if described.get("type") != "model" or ".".join(version.split(".")[:2]) not in FORMATS:
        raise AdoptionError(
            f"{source} describes {described.get('type')!r} in format {version}",
            f"a model in format {' or '.join(FORMATS)} was expected",
            fix="update it with bioimageio.core, or adopt its ONNX file by itself",
        )
    return described


def _require_bounded(data: Any, source: str) -> None:
    """Refuse values that are many or deep once aliases are followed, or integers that no float holds."""
    left: list[tuple[Any, int]] = [(data, 0)]
    count = 0
    while left:
        value, depth = left.pop()
        count += 1
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        is_large = isinstance(value, int) and abs(value) > MAX_INTEGER
        if count > MAX_VALUES or depth > MAX_DEPTH or is_large:
            raise UnsafeModelError(
                f"{source} holds more than a description of a model",
                f"at most {MAX_VALUES} values, {MAX_DEPTH} deep, and integers of 64 bits were expected",
                fix="download the package again, and do not trust this one",
            )
        if isinstance(parts, list | tuple | set):
            left += [(part, depth + 1) for part in parts]
