"""The files of a bioimage.io package, in a folder or a zip: read by plain name and bounded in size, never unpacked."""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from unet_deploy.errors import AdoptionError, MissingDependencyError, ModelNotFoundError, UnsafeModelError

DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml", "model.yaml")
FORMATS = ("0.4", "0.5")


def open_files(path: Path) -> tuple[Callable[[str, int], bytes], str]:
    """Return a reader of the package's files, by name and largest size, and the name of its description.

    Raises
    ------
    ModelNotFoundError
        If the package, or a file that is asked for, is not there.
    UnsafeModelError
        If a file is larger than it may be, or outside of the package.
    AdoptionError
        If the zip is damaged.
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
                _require_size(archive.getinfo(name).file_size, limit, name, path)
                data = file.read(limit + 1)
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:  # RuntimeError: encrypted
            raise AdoptionError(
                f"{name} of {path} cannot be unpacked", str(error) or type(error).__name__, fix="download it again"
            ) from error
        _require_size(len(data), limit, name, path)
        return data

    found = [name for name in DESCRIPTIONS if name in names]
    if not found:
        raise _missing(DESCRIPTIONS[0], path)
    return read, found[0]


def _plain(name: str, source: str) -> str:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
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


def parse_description(text: bytes, source: str) -> dict[str, Any]:
    """Return a description of a model as plain values.

    Raises
    ------
    AdoptionError
        If it is no YAML, no model, or of a format that is not known here.
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
    described = data if isinstance(data, dict) else {}
    version = str(described.get("format_version"))
    if described.get("type") != "model" or ".".join(version.split(".")[:2]) not in FORMATS:
        raise AdoptionError(
            f"{source} describes {described.get('type')!r} in format {version}",
            f"a model in format {' or '.join(FORMATS)} was expected",
            fix="update it with bioimageio.core, or adopt its ONNX file by itself",
        )
    return described
