"""Model files made to do harm: each is mounted for real, and refused by every door it could come in by.

An attack is a file, and the words of its refusal. It must be refused as our error with what to do, before an engine
sees it, by `load_artifact` and by the command line; nothing is written, nothing runs, no byte of another file is shown,
and no memory is taken. The forger of these tests is careful: hashes are made to fit wherever a forger can.

What a hash cannot stop is a forger who trains a network, or edits a card, and signs it anew: a hash is no signature.
Such a file is data that computes what it computes, and harms nobody's machine. No more is promised.
"""

from __future__ import annotations

import base64
import os
import pickle
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import AttributeProto, helper

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")
pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")

from tests.conftest import Outcome  # noqa: E402
from tests.foreign_graphs import save, smp_like  # noqa: E402
from tests.tiny import CARD, edit_card, make_pixels, snapshot, write_image  # noqa: E402
from tests.unit.test_artifact import forged, point_outside  # noqa: E402
from unet_deploy.card_json import dump_card  # noqa: E402
from unet_deploy.errors import (  # noqa: E402
    CardError,
    CheckpointError,
    ModelError,
    NotAnArtifactError,
    TestTensorError,
    UnsafeModelError,
)
from unet_deploy.exporters import AdoptionSettings, adopt_model  # noqa: E402
from unet_deploy.exporters.foreign import load_foreign  # noqa: E402
from unet_deploy.runtime.artifact import Artifact, load_artifact  # noqa: E402
from unet_deploy.training.checkpoint import CHECKPOINT_KEY, load_checkpoint  # noqa: E402
from unet_deploy.training.network import UNet  # noqa: E402

Cli = Callable[..., Outcome]
Change = Callable[[Any], object]
Forge = Callable[[Change], bytes]
"""Gives the victim's file with its graph changed, and its hashes made to fit."""
Mount = Callable[[Path, Forge], Path]
SECRET = b"-----BEGIN PRIVATE KEY----- do not show this to anyone -----"
MEMORY = 64 * 2**20
"""No attack on the tiny network may take more."""


@dataclass(frozen=True)
class Attack:
    """How a file is made, and how it must be refused; `doors` are the victims whose graph it may be mounted on."""

    name: str
    mount: Mount
    error: type[ModelError] | tuple[type[ModelError], ...]
    words: str
    doors: tuple[str, ...] = ("ours", "adopted", "foreign")


def write(folder: Path, data: bytes, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def changed(change: Change) -> Mount:
    """Mount a graph that was changed."""
    return lambda folder, forge: write(folder, forge(change))


def unchanged(model: Any) -> None:
    """Change nothing."""


# ---- weights in another file


def outside(place: Callable[[Path, Path], str]) -> Mount:
    """Mount weights that lie in a secret file; `place` says how it is reached from the model's folder."""

    def mount(folder: Path, forge: Forge) -> Path:
        models = folder / "models"
        models.mkdir()
        location = place(models, folder / "secret.bin")
        return write(models, forge(lambda model: point_outside(model.graph.initializer[0], location)))

    return mount


def by_symlink(models: Path, secret: Path) -> str:
    try:
        (models / "weights.bin").symlink_to(secret)
    except OSError:
        pytest.skip("this user may not make symbolic links")
    return "weights.bin"


def by_linked_folder(models: Path, secret: Path) -> str:
    try:
        (models / "data").symlink_to(secret.parent, target_is_directory=True)
    except OSError:
        pytest.skip("this user may not make symbolic links")
    return f"data/{secret.name}"


def by_hardlink(models: Path, secret: Path) -> str:
    (models / "weights.bin").hardlink_to(secret)
    return "weights.bin"


# ---- graphs that do more than a network


def add_node(operator: str, *, domain: str = "", **attributes: Any) -> Change:
    def change(model: Any) -> None:
        model.graph.node.append(
            helper.make_node(operator, [model.graph.input[0].name], ["unused"], domain=domain, **attributes)
        )
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


def add_branch(model: Any) -> None:
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "branch", [], [])
    node = helper.make_node("If", ["x"], ["unused"], then_branch=inner, else_branch=inner)
    model.graph.node.append(node)


def add_loop(operator: str) -> Change:
    def change(model: Any) -> None:
        inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "body", [], [])
        model.graph.node.append(helper.make_node(operator, [model.graph.input[0].name], ["unused"], body=inner))

    return change


def hide_graph(model: Any) -> None:
    """A sub-graph in an attribute that says it is a number."""
    attribute = AttributeProto(name="axis", type=AttributeProto.INT, i=1)
    attribute.g.CopyFrom(helper.make_graph([], "hidden", [], []))
    model.graph.node[0].attribute.append(attribute)


def add_function(model: Any) -> None:
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("", "Conv", ["a"], ["b"], [node], [helper.make_opsetid("", 18)]))


def declare(*dims: int) -> Change:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        del tensor.dims[:]
        tensor.dims.extend(dims)
        tensor.raw_data = b""

    return change


def add_attribute(value: Any) -> Change:
    return lambda model: model.graph.node[0].attribute.append(helper.make_attribute("note", value))


def use_opset(version: int) -> Change:
    return lambda model: setattr(model.opset_import[0], "version", version)


# ---- files changed after their export


def change_card(folder: Path, forge: Forge) -> Path:
    model = onnx.load_model_from_string(forge(unchanged))
    entry = next(entry for entry in model.metadata_props if entry.key == "unet_deploy")
    entry.value = entry.value.replace('"std": [40.0]', '"std": [41.0]')
    data = model.SerializeToString(deterministic=True)
    assert data != forge(unchanged)
    return write(folder, data)


def inflate_card(folder: Path, forge: Forge) -> Path:
    """Give the card a test tensor of zeros that inflates a thousandfold."""
    import zlib

    source = write(folder, forge(unchanged), "source.onnx")

    def change(card: dict[str, Any]) -> None:
        image = card["test_tensor"]["image"]
        image["shape"] = [1, 1, 2**15 + 44, 2**15 + 44]
        key = next(key for key, value in image.items() if isinstance(value, str) and len(value) > 100)
        image[key] = base64.b64encode(zlib.compress(bytes(2**28), 9)).decode()

    return edit_card(source, folder / "model.onnx", change)


def change_weight(folder: Path, forge: Forge) -> Path:
    model = onnx.load_model_from_string(forge(unchanged))
    tensor = model.graph.initializer[2]
    tensor.raw_data = tensor.raw_data[:-1] + bytes([tensor.raw_data[-1] ^ 1])
    return write(folder, model.SerializeToString(deterministic=True))


def double_weight(model: Any) -> None:
    import numpy as np

    for tensor in model.graph.initializer:
        if tensor.name == "head.weight":
            tensor.raw_data = (2 * np.frombuffer(tensor.raw_data, np.float32)).tobytes()


def sign_other_mean(folder: Path, forge: Forge) -> Path:
    source = write(folder, forge(unchanged), "source.onnx")
    return edit_card(source, folder / "model.onnx", lambda card: card["normalisation"].update(mean=[90.0]))


# ---- files of another kind


class Payload:
    """Runs a shell command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.command = f'"{sys.executable}" -c "open({str(canary)!r}, chr(119))"'

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def pickled_as_onnx(folder: Path, forge: Forge) -> Path:
    return write(folder, pickle.dumps(Payload(folder / "canary")))


def checkpoint_as_onnx(folder: Path, forge: Forge) -> Path:
    torch.save(Payload(folder / "canary"), folder / "model.onnx")
    return folder / "model.onnx"


ELSEWHERE = r"tensor '[\w.]+' lies in another file|weights in another file: '\w+'"
NO_INTEGERS = "attributes that are no (integers|numbers or words)"
NO_ATTRIBUTE = "Unrecognized attribute|" + NO_INTEGERS
ATTACKS = (
    Attack("weights-above", outside(lambda models, secret: f"../{secret.name}"), UnsafeModelError, ELSEWHERE),
    Attack("weights-absolute", outside(lambda models, secret: str(secret)), UnsafeModelError, ELSEWHERE),
    Attack("weights-by-symlink", outside(by_symlink), UnsafeModelError, ELSEWHERE),
    Attack("weights-by-linked-folder", outside(by_linked_folder), UnsafeModelError, ELSEWHERE),
    Attack("weights-by-hardlink", outside(by_hardlink), UnsafeModelError, ELSEWHERE),
    Attack(
        "custom-operator",
        changed(add_node("Fetch", domain="com.example")),
        UnsafeModelError,
        r"Fetch came|com\.example\.Fetch",
    ),
    Attack(
        "engine-context",
        changed(add_node("EPContext", domain="com.microsoft", embed_mode=0, ep_cache_context="../plan.engine")),
        UnsafeModelError,
        r"EPContext came|com\.microsoft\.EPContext",
    ),
    Attack(
        "unknown-operator",
        changed(add_node("Einsum", equation="i->i")),
        UnsafeModelError,
        "Einsum came",
        doors=("ours", "adopted"),
    ),
    Attack("function-in-the-file", changed(add_function), UnsafeModelError, "functions, training information"),
    Attack("if", changed(add_branch), UnsafeModelError, "If (came|'unused')"),
    Attack("loop", changed(add_loop("Loop")), UnsafeModelError, "Loop (came|'unused')"),
    Attack("scan", changed(add_loop("Scan")), UnsafeModelError, "Scan (came|'unused')"),
    Attack("hidden-graph", changed(hide_graph), UnsafeModelError, NO_INTEGERS, doors=("ours", "adopted")),
    Attack(
        "huge-tensor",
        changed(declare(2**40, 2**20)),
        UnsafeModelError,
        r"declares \d{19} bytes and has 0",
        doors=("ours", "adopted"),
    ),
    Attack(
        "wrapping-tensor",
        changed(declare(2**62, 4)),
        UnsafeModelError,
        r"declares \d{20} bytes and has 0",
        doors=("ours", "adopted"),
    ),
    Attack(
        "huge-text",
        changed(add_attribute("A" * 2**22)),
        (UnsafeModelError, CardError),
        NO_ATTRIBUTE,
        doors=("ours", "adopted"),
    ),
    Attack(
        "huge-texts",
        changed(add_attribute(["A" * 2**12] * 2**10)),
        UnsafeModelError,
        NO_INTEGERS,
        doors=("ours", "adopted"),
    ),
    Attack(
        "newer-operators",
        changed(use_opset(99)),
        UnsafeModelError,
        r"ai\.onnx 18 was expected, ai\.onnx 99 came",
        doors=("ours", "adopted"),
    ),
    Attack(
        "newer-format",
        changed(lambda m: setattr(m, "ir_version", 99)),
        UnsafeModelError,
        "10 was expected, 99",
        doors=("ours", "adopted"),
    ),
    Attack("edited-card", change_card, CardError, "the model card of .* was edited or damaged", doors=("ours",)),
    Attack("inflating-card", inflate_card, CardError, "test_tensor", doors=("ours",)),
    Attack("edited-weight", change_weight, CardError, r"graph_sha256 \w+… was expected, \w+… came", doors=("ours",)),
    Attack("pickle", pickled_as_onnx, NotAnArtifactError, "is not an ONNX file, or is damaged", doors=("ours",)),
    Attack("torch-file", checkpoint_as_onnx, NotAnArtifactError, "is not an ONNX file, or is damaged", doors=("ours",)),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where an attack is mounted, with a secret that must not be read."""
    target = tmp_path / "mounted"
    target.mkdir()
    (target / "secret.bin").write_bytes(SECRET * 100)
    return target


@pytest.fixture(scope="session")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A network of another program, adopted."""
    folder = tmp_path_factory.mktemp("adopted")
    source = save(smp_like(), folder / "other.onnx")
    return adopt_model(source, folder / "ours.onnx", AdoptionSettings(mean=(100.0,), std=(50.0,)), threads=1).artifact


@pytest.fixture
def refused(folder: Path, tmp_path: Path, cli: Cli) -> Callable[..., None]:
    """Mounts an attack, and sees that Python and the command line refuse it and nothing is left."""

    def check(attack: Attack, forge: Forge, load: Callable[[Path], object], *commands: tuple[str | Path, ...]) -> None:
        path = attack.mount(folder, forge)
        write_image(tmp_path / "v.zarr", make_pixels((1, 30, 30)))
        before, size = snapshot(tmp_path), path.stat().st_size
        tracemalloc.start()
        with pytest.raises(attack.error, match=attack.words) as caught:
            load(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 * size + MEMORY
        assert caught.value.exit_code == 4
        assert caught.value.fix
        for words in commands:
            outcome = cli(*words, path)
            assert (outcome.code, outcome.out) == (4, ""), words
            assert f"error[{caught.value.code}]" in outcome.err
            assert "\n  fix: " in outcome.err
            assert "PRIVATE KEY" not in outcome.err
            assert "Traceback" not in outcome.err
        assert snapshot(tmp_path) == before  # nothing was written, nothing ran

    return check


def through(door: str) -> Any:
    """Parametrise a test by the attacks that may be mounted there."""
    attacks = [attack for attack in ATTACKS if door in attack.doors]
    return pytest.mark.parametrize("attack", attacks, ids=lambda attack: attack.name)


SEGMENT = ("segment", "v.zarr", "-o", "out.zarr", "-m")


@through("ours")
def test_a_hostile_model_is_refused(attack: Attack, refused: Callable[..., None], tiny_artifact: Artifact) -> None:
    refused(attack, partial(forged, tiny_artifact), load_artifact, SEGMENT, ("inspect",), ("check",))


@through("adopted")
def test_a_hostile_adopted_model_is_refused(attack: Attack, refused: Callable[..., None], adopted: Artifact) -> None:
    """Its graph may hold more operators than ours, and nothing else."""
    refused(attack, partial(forged, adopted), load_artifact, SEGMENT)


@through("foreign")
def test_a_hostile_model_is_not_adopted(attack: Attack, refused: Callable[..., None]) -> None:
    def forge(change: Change) -> bytes:
        model = smp_like()
        change(model)
        return bytes(model.SerializeToString())

    refused(attack, forge, load_foreign, ("adopt", "--mean", "0", "--std", "1", "-o", "ours.onnx"))


@pytest.mark.parametrize("mount", [changed(double_weight), sign_other_mean], ids=["weights", "card"])
def test_a_forger_who_signs_anew_is_caught_by_the_test_tensor(
    mount: Mount, tiny_artifact: Artifact, folder: Path, cli: Cli, tmp_path: Path
) -> None:
    path = mount(folder, partial(forged, tiny_artifact))
    write_image(tmp_path / "v.zarr", make_pixels((1, 30, 30)))
    before = snapshot(tmp_path)
    load_artifact(path)  # every hash fits
    outcome = cli("segment", "v.zarr", "-o", "out.zarr", "--device", "cpu", "-m", path)
    assert outcome.code == 4
    assert f"error[{TestTensorError.code}]" in outcome.err
    assert snapshot(tmp_path) == before


def test_a_model_that_is_a_link_is_the_file_it_names(tiny_model: Path, tmp_path: Path) -> None:
    """Only bytes reach an engine, so where they lie is the user's own business."""
    try:
        (tmp_path / "model.onnx").symlink_to(tiny_model)
    except OSError:
        pytest.skip("this user may not make symbolic links")
    assert load_artifact(tmp_path / "model.onnx").sha256 == load_artifact(tiny_model).sha256


# ---- checkpoints


def whole_module(path: Path, canary: Path) -> None:
    module = torch.nn.Linear(2, 2)
    module.payload = Payload(canary)
    torch.save(module, path)


def payload_beside_weights(path: Path, canary: Path) -> None:
    weights = UNet(depth=2, base_width=2).state_dict()
    torch.save({CHECKPOINT_KEY: 1, "card": dump_card(CARD), "weights": weights, "more": Payload(canary)}, path)


def bare_pickle(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(canary)))


def old_torch_file(path: Path, canary: Path) -> None:
    torch.save(Payload(canary), path, _use_new_zipfile_serialization=False)


def zipped(**files: bytes) -> Callable[[Path, Path], None]:
    def make(path: Path, canary: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", pickle.dumps(Payload(canary)))
            for name, data in files.items():
                archive.writestr(f"model/{name}", data)

    return make


def zip_bomb(path: Path, canary: Path) -> None:
    """A real checkpoint with one more entry that inflates a thousandfold."""
    weights = UNet(depth=2, base_width=2).state_dict()
    torch.save({CHECKPOINT_KEY: 1, "card": dump_card(CARD), "weights": weights}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        top = archive.namelist()[0].partition("/")[0]
        with archive.open(f"{top}/data/999", "w") as entry:
            for _ in range(256):
                entry.write(bytes(2**20))


def overlapping_zip(path: Path, canary: Path) -> None:
    """Entries that all stand for the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", bytes(2**20))
        first = archive.infolist()[0]
        for index in range(500):
            other = zipfile.ZipInfo(f"m/data/{index}")
            other.header_offset, other.file_size, other.compress_size, other.CRC = (
                first.header_offset,
                first.file_size,
                first.compress_size,
                first.CRC,
            )
            archive.filelist.append(other)
        archive._didModify = True


CHECKPOINTS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "whole-module": (whole_module, "holds pickled objects; loading them could run code, so it is refused"),
    "payload-beside-weights": (payload_beside_weights, "holds pickled objects; loading them could run code"),
    "bare-pickle": (bare_pickle, "is a bare pickle or an old torch file"),
    "old-torch-file": (old_torch_file, "is a bare pickle or an old torch file"),
    "torchscript": (zipped(**{"constants.pkl": b"", "code/a.py": b""}), "is TorchScript, which holds code"),
    "exported-program": (zipped(**{"models/model.json": b"{}"}), "is an exported program"),
    "zip-bomb": (zip_bomb, "inflates beyond itself"),
    "overlapping-zip": (overlapping_zip, "inflates beyond itself"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_hostile_checkpoint_is_refused(name: str, tmp_path: Path, cli: Cli) -> None:
    make, words = CHECKPOINTS[name]
    make(tmp_path / "model.pt", tmp_path / "canary")
    before = snapshot(tmp_path)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(tmp_path / "model.pt")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEMORY
    assert caught.value.fix
    outcome = cli("export", "model.pt", "-o", "model.onnx")
    assert outcome.code == 4
    assert "error[checkpoint]" in outcome.err
    assert "\n  fix: " in outcome.err
    assert snapshot(tmp_path) == before  # no model, and no canary: the payload did not run


def test_the_payload_is_a_real_one(tmp_path: Path) -> None:
    """Or the tests above would prove nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
