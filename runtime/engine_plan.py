"""Engine plans on disk: what TensorRT built, and the sidecar without which it is never loaded.

A plan is native code for one device, so whoever can write one can run anything. Beside ``NAME.engine`` stands
``NAME.engine.json``: the model card, a manifest of what the plan was built from, for and by, and a signature.

1. `load_engine_plan` reads both files once, as bytes; both must be plain files that only the user can have written.
2. The sidecar must parse: version, keys, values, the card.
3. The signature must be of the user's own key (`runtime._private_files`): the plan was built here, by this user.
4. Size and sha256 must be those of the manifest: not truncated, not altered.

TensorRT's own check of a plan answers "valid" to an altered one: these checks come before it sees a byte.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from unet_deploy._json_reader import Reader, is_mapping, load_strict
from unet_deploy.card import InputDtype, JsonObject, ModelCard, Precision
from unet_deploy.card_json import card_to_object, parse_card
from unet_deploy.errors import ModelNotFoundError, NotAnArtifactError, OutputExistsError, UnsafeModelError
from unet_deploy.runtime._private_files import make_key, read_key, read_private, user_data_folder, write_private
from unet_deploy.runtime.engines.base import ByteForm
from unet_deploy.runtime.layout import Kind

Flavour = Literal["tensorrt", "tensorrt-rtx"]
Flag = bool | int | str
Shape = tuple[int, int, int, int]

PLAN_VERSION = 1
SUFFIX = ".engine"
MAX_PLAN_BYTES = 8 * 2**30
MAX_SIDECAR_BYTES = 256 * 2**20
"""The card's test tensor is most of it."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The batches (n, c, y, x) that a plan takes: from `minimum` to `maximum`, fastest at `optimum`."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def holds(self, shape: Shape) -> bool:
        """Tell whether the plan takes batches of that shape."""
        return all(low <= n <= high for low, n, high in zip(self.minimum, shape, self.maximum, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanManifest:
    """What a plan was built from, for and by.

    `onnx_sha256` is of the file that was built; `gpu` and `driver` are None where the build asked no GPU, as that of
    TensorRT-RTX does not. With a `form` the plan begins at raw pixels (`runtime.composition`).
    """

    flavour: Flavour
    version: str
    plan_sha256: str
    plan_bytes: int
    onnx_sha256: str
    precision: Precision
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    driver: str | None
    profiles: tuple[Profile, ...]
    flags: dict[str, Flag]
    form: ByteForm | None = None

    def to_object(self) -> JsonObject:
        """Return JSON values."""
        return {
            "flavour": self.flavour,
            "version": self.version,
            "plan_sha256": self.plan_sha256,
            "plan_bytes": self.plan_bytes,
            "onnx_sha256": self.onnx_sha256,
            "precision": self.precision,
            "compute_capabilities": list(self.compute_capabilities),
            "gpu": self.gpu,
            "driver": self.driver,
            "profiles": [
                {"minimum": list(p.minimum), "optimum": list(p.optimum), "maximum": list(p.maximum)}
                for p in self.profiles
            ],
            "flags": dict(self.flags),
            "form": None if self.form is None else {"dtype": self.form.dtype, "kinds": list(self.form.kinds)},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """A plan in memory that was checked, or just built; `source` is where it came from."""

    data: bytes = field(repr=False)
    manifest: PlanManifest
    card: ModelCard
    source: str


def sidecar_path(path: Path) -> Path:
    """Return where the sidecar of a plan stands.

    >>> sidecar_path(Path("model.engine")).name
    'model.engine.json'
    """
    return path.with_name(f"{path.name}.json")


def write_engine_plan(path: Path, plan: EnginePlan, *, overwrite: bool = False, key_folder: Path | None = None) -> None:
    """Write a plan that was built here, and its sidecar, signed with the user's key.

    Parameters
    ----------
    path
        Where to write the plan; the sidecar stands beside it.
    plan
        What was built.
    overwrite
        Replace existing files.
    key_folder
        Where the user's key is; None is `user_data_folder`.

    Raises
    ------
    OutputExistsError
        If a file is in the way.
    UnsafeModelError
        If the user's key could be another's.
    """
    sidecar = sidecar_path(path)
    for file in (path, sidecar):
        if file.exists() and not overwrite:
            raise OutputExistsError(
                f"{file} exists", "nothing was written", fix="choose another --output, or --overwrite"
            )
    assert len(plan.data) == plan.manifest.plan_bytes, plan.manifest
    key = make_key(key_folder or user_data_folder())
    content = {
        "plan_version": PLAN_VERSION,
        "card": card_to_object(plan.card),
        "manifest": plan.manifest.to_object(),
    }
    text = json.dumps({**content, "signature": _sign(content, key)}, sort_keys=True, allow_nan=False)
    sidecar.unlink(missing_ok=True)  # a plan that is broken off half-way is then one without a sidecar
    write_private(path, plan.data)
    write_private(sidecar, text.encode("ascii"))


def load_engine_plan(path: str | Path, *, is_trusted: bool = False, key_folder: Path | None = None) -> EnginePlan:
    """Read and check a plan and its sidecar, before any TensorRT sees a byte of it.

    Parameters
    ----------
    path
        The plan.
    is_trusted
        Take it on the caller's word that it is not another's: neither the signature nor whose the files are is asked.
        Size, hash and form are.
    key_folder
        Where the user's key is; None is `user_data_folder`.

    Raises
    ------
    ModelNotFoundError
        If there is no file.
    NotAnArtifactError
        If there is no sidecar, or it is none of this release's.
    CardError
        If the card in it is none of this release's.
    UnsafeModelError
        If the plan was built or altered by somebody else, or could have been.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelNotFoundError(
            f"no engine plan at {path}",
            "a file written by `unet-deploy export --target tensorrt` or tensorrt-rtx was expected",
            fix="check the path, or build one: unet-deploy export model.pt --target tensorrt-rtx",
        )
    sidecar, fix = sidecar_path(path), _fix(None)
    if not sidecar.is_file():
        raise NotAnArtifactError(
            f"{path} has no sidecar",
            f"{sidecar.name} was expected beside it: without it nobody knows who built this native code, and for what",
            fix=fix,
        )
    text = read_private(sidecar, largest=MAX_SIDECAR_BYTES, is_trusted=is_trusted, fix=fix)
    content, signature, manifest, card = _parse(text, source=str(sidecar))
    if not is_trusted:
        key = read_key(key_folder or user_data_folder())
        if key is None or not hmac.compare_digest(signature, _sign(content, key)):
            raise UnsafeModelError(
                f"{path} was not built by you on this machine, or its sidecar was altered",
                f"{sidecar.name} is not signed with your key" + (", and you have none yet" if key is None else ""),
                "a plan is native code: whoever made it decides what runs",
                fix=_fix(manifest.flavour),
            )
    data = read_private(path, largest=MAX_PLAN_BYTES, is_trusted=is_trusted, fix=_fix(manifest.flavour))
    came = len(data), hashlib.sha256(data).hexdigest()
    if came != (manifest.plan_bytes, manifest.plan_sha256):
        raise UnsafeModelError(
            f"{path} is not the plan that its sidecar was written for: it was altered, truncated or replaced",
            f"{manifest.plan_bytes} bytes with sha256 {manifest.plan_sha256[:12]}… were expected, "
            f"{came[0]} with {came[1][:12]}… came",
            fix=_fix(manifest.flavour).partition("; or")[0],
        )
    return EnginePlan(data=data, manifest=manifest, card=card, source=str(path))


def _fix(flavour: Flavour | None) -> str:
    return (
        f"build it here: unet-deploy export model.pt --target {flavour or 'tensorrt-rtx'}; "
        "or, if you know who built it, --trust-engine"
    )


def _sign(content: JsonObject, key: bytes) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hmac.new(key, text.encode("ascii"), hashlib.sha256).hexdigest()


def _parse(text: bytes, *, source: str) -> tuple[JsonObject, str, PlanManifest, ModelCard]:
    """Return what was signed, the signature, and both in our words."""
    try:
        data = load_strict(text.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise NotAnArtifactError(f"{source} is not valid JSON", str(error), fix=_fix(None)) from error
    version = data.get("plan_version") if isinstance(data, dict) else None
    if type(version) is not int or version != PLAN_VERSION:
        raise NotAnArtifactError(
            f"plan version {version!r} came, this release reads version {PLAN_VERSION}", f"in {source}", fix=_fix(None)
        )
    reader = Reader(data, "")
    reader.left.discard("plan_version")
    card_object = reader.take("card", "an object", lambda v: isinstance(v, dict))
    signature = _take_sha256(reader, "signature")
    manifest = _read_manifest(reader.take_object("manifest"))
    reader.finish()
    if not reader.problems:
        assert manifest is not None
        card = parse_card(json.dumps(card_object), source=source)
        if card.precision == manifest.precision:
            return {k: v for k, v in data.items() if k != "signature"}, signature, manifest, card
        reader.note("manifest.precision", f"{card.precision} was expected (the card's), {manifest.precision} came")
    raise NotAnArtifactError(
        f"the sidecar has {len(reader.problems)} problem(s)", f"in {source}", *reader.problems, fix=_fix(None)
    )


def _read_manifest(item: Reader) -> PlanManifest | None:
    flavour = item.take_choice("flavour", get_args(Flavour))
    version = item.take_text("version")
    plan_sha256, onnx_sha256 = (_take_sha256(item, key) for key in ("plan_sha256", "onnx_sha256"))
    plan_bytes = item.take_int("plan_bytes", 1, MAX_PLAN_BYTES)
    precision = item.take_choice("precision", get_args(Precision))
    capabilities = item.take("compute_capabilities", "a list of texts", _is_texts)
    gpu, driver = (
        item.take(key, "text or null", lambda v: v is None or isinstance(v, str)) for key in ("gpu", "driver")
    )
    profiles = [
        _read_profile(Reader(entry, f"{item.path}profiles[{i}].", item.problems))
        for i, entry in enumerate(
            item.take("profiles", "a list of one or more", lambda v: isinstance(v, list) and len(v) > 0) or []
        )
    ]
    flags = item.take(
        "flags", "names to numbers, texts or truths", lambda v: is_mapping(v, lambda x: isinstance(x, bool | int | str))
    )
    form = _read_form(item)
    item.finish()
    if item.problems:
        return None
    return PlanManifest(
        flavour=flavour,
        version=version,
        plan_sha256=plan_sha256,
        plan_bytes=plan_bytes,
        onnx_sha256=onnx_sha256,
        precision=precision,
        compute_capabilities=tuple(capabilities),
        gpu=gpu,
        driver=driver,
        profiles=tuple(p for p in profiles if p is not None),
        flags=flags,
        form=form,
    )


def _read_profile(item: Reader) -> Profile | None:
    shapes = [item.take(key, "four sizes from 1", _is_shape) for key in ("minimum", "optimum", "maximum")]
    item.finish()
    if None in shapes:
        return None
    if not all(a <= b for low, high in pairwise(shapes) for a, b in zip(low, high, strict=True)):
        item.note("", "minimum <= optimum <= maximum was expected")
    return Profile(minimum=tuple(shapes[0]), optimum=tuple(shapes[1]), maximum=tuple(shapes[2]))


def _read_form(item: Reader) -> ByteForm | None:
    data = item.take("form", "an object or null", lambda v: v is None or isinstance(v, dict))
    if data is None:
        return None
    form = Reader(data, f"{item.path}form.", item.problems)
    dtype = form.take_choice("dtype", get_args(InputDtype))
    kinds = form.take("kinds", "a list of results", lambda v: _is_texts(v) and set(v) <= set(get_args(Kind)))
    form.finish()
    return None if dtype is None or kinds is None else ByteForm(dtype=dtype, kinds=tuple(kinds))


def _take_sha256(item: Reader, key: str) -> Any:
    return item.take(key, "64 hexadecimal digits", lambda v: isinstance(v, str) and bool(_SHA256.fullmatch(v)))


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(type(n) is int and 1 <= n < 2**31 for n in value)
