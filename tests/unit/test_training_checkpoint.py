"""A checkpoint comes back as it was, and whatever else is given is named and refused."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from tests.tiny import no_file_above  # noqa: E402
from unet_deploy.card import ClassInfo, InputContract, ModelCard, Network, Normalisation, Training  # noqa: E402
from unet_deploy.card_json import dump_card  # noqa: E402
from unet_deploy.errors import (  # noqa: E402
    CardError,
    CheckpointError,
    ModelNotFoundError,
    NoSpaceError,
    OutputExistsError,
    OutputPathError,
)
from unet_deploy.training.checkpoint import (  # noqa: E402
    CHECKPOINT_KEY,
    load_checkpoint,
    save_checkpoint,
    write_torch_file,
)
from unet_deploy.training.network import UNet  # noqa: E402

CARD = ModelCard(
    name="tiny",
    description="",
    network=Network(depth=1, base_width=2, in_channels=1, classes=2),
    input=InputContract(dtype="uint8", value_range=(0.0, 255.0), channels=("grey",)),
    normalisation=Normalisation(mean=(128.0,), std=(40.0,), source="made up"),
    classes=(ClassInfo(name="inside", colour="#000000"), ClassInfo(name="membrane", colour="#ffffff")),
    training=Training(
        data="",
        licence="",
        citation="",
        images=1,
        validation=(),
        steps=1,
        seed=0,
        seconds=1.0,
        versions={},
        scores={},
        recipe={},
    ),
)


@pytest.fixture
def model() -> UNet:
    return UNet(depth=1, base_width=2)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "unet-deploy train" in str(caught.value) or "again" in str(caught.value)
    return str(caught.value)


def content(model: UNet, **changes: Any) -> dict[str, Any]:
    return {CHECKPOINT_KEY: 1, "card": dump_card(CARD), "weights": model.state_dict(), **changes}


def test_what_is_saved_comes_back(tmp_path: Path, model: UNet) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, model=model, card=CARD)
    loaded, card = load_checkpoint(path)
    x = torch.randn(1, 1, 28, 28)
    assert card == CARD
    assert not loaded.training
    assert torch.equal(loaded(x), model.eval()(x))
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
    assert all(p.requires_grad for p in loaded.parameters())


def test_the_file_holds_no_path(tmp_path: Path, model: UNet) -> None:
    save_checkpoint(tmp_path / "secret-project.pt", model=model, card=CARD)
    assert b"secret-project" not in (tmp_path / "secret-project.pt").read_bytes()


def test_an_existing_file_is_replaced_only_when_asked(tmp_path: Path, model: UNet) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match=r"model\.pt exists already") as caught:
        save_checkpoint(path, model=model, card=CARD)
    assert "--overwrite" in str(caught.value)
    assert path.read_bytes() == b"precious"
    save_checkpoint(path, model=model, card=CARD, overwrite=True)
    assert load_checkpoint(path)[1] == CARD


def test_places_that_cannot_be_written_to(tmp_path: Path, model: UNet) -> None:
    with pytest.raises(OutputPathError, match="is a folder, a file was expected"):
        save_checkpoint(tmp_path, model=model, card=CARD, overwrite=True)
    with pytest.raises(OutputPathError, match="there is no folder"):
        save_checkpoint(tmp_path / "nowhere" / "model.pt", model=model, card=CARD)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, model: UNet) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, model=model, card=CARD)
    before = path.read_bytes()
    broken = replace(CARD, training=replace(CARD.training, seconds=float("nan")))
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(path, model=model, card=broken, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, model: UNet) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, model=model, card=CARD)
    before = path.read_bytes()
    with (
        no_file_above(1000),
        pytest.raises(NoSpaceError, match=r"the disk is full: model\.pt needs 0\.0 MiB") as caught,
    ):
        save_checkpoint(path, model=model, card=CARD, overwrite=True)
    text = str(caught.value)
    assert f"it was to be written to {tmp_path}; what stood there before is whole" in text
    assert "fix: free some space and go on with --resume" in text
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    save_checkpoint(path, model=model, card=CARD, overwrite=True)  # space was made
    assert load_checkpoint(path)[1] == CARD


def test_another_failure_of_the_disk_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_torch_file(tmp_path / "nowhere" / "a.pt", {})
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="folder"):
        write_torch_file(folder, {"a": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_write_left_beside_the_file_is_not_read(tmp_path: Path, model: UNet) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, model=model, card=CARD)
    path.with_name(".model.pt.4711.part").write_bytes(path.read_bytes()[:100])
    assert load_checkpoint(path)[1] == CARD
    save_checkpoint(path, model=model, card=CARD, overwrite=True)
    assert load_checkpoint(path)[1] == CARD


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no checkpoint file") as caught:
        load_checkpoint(tmp_path / "model.pt")
    assert "unet-deploy train" in str(caught.value)


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_truncated_file(tmp_path: Path, model: UNet, share: float) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, model=model, card=CARD)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "is truncated or damaged" in refusal(path)


def test_a_file_with_flipped_bytes_in_its_table_of_values(tmp_path: Path, model: UNet) -> None:
    path = tmp_path / "model.pt"
    for pickled in (b"\x80\x02}q\x00.", b"", b"\x80"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
        assert "is damaged: torch cannot read it" in refusal(path)


def test_a_flipped_bit_anywhere(tmp_path: Path, model: UNet) -> None:
    """Whatever the damage, it is ours to name; torch alone would read on past a wrong checksum."""
    path, random, refusals = tmp_path / "model.pt", np.random.default_rng(0), list[str]()
    save_checkpoint(path, model=model, card=CARD)
    whole = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            loaded = load_checkpoint(path)[0]
        except CheckpointError as error:
            refusals.append(str(error))
        else:  # padding, and dates that nobody reads
            weights = loaded.state_dict()
            assert all(torch.equal(weights[name], expected) for name, expected in model.state_dict().items())
    assert len(refusals) > 30
    assert all("damaged" in refusal for refusal in refusals)


def test_what_torch_alone_would_read_past_is_named(tmp_path: Path, model: UNet) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, model=model, card=CARD)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data/0"))
    value = whole.index(model.state_dict()["contracting.0.0.weight"].numpy().tobytes())
    record = whole.index(name.encode(), whole.index(b"PK\x01\x02"))  # in the table of contents
    for place, bit in ((value, 0x01), (record - 8, 0x10)):  # a weight; the mark that the entry is a folder
        damaged = bytearray(whole)
        damaged[place] ^= bit
        path.write_bytes(damaged)
        assert f"is damaged: {name} in it is not as it was written" in refusal(path)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_objects_are_refused_and_do_not_run(tmp_path: Path, model: UNet) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    torch.save(content(model, bomb=Bomb(trace)), path)
    assert "holds pickled objects; loading them could run code" in refusal(path)
    torch.save(torch.nn.Linear(2, 2), path)
    assert "a whole module saved with torch.save(model) is such a file" in refusal(path)
    path.write_bytes(pickle.dumps(Bomb(trace)))
    assert "is a bare pickle or an old torch file" in refusal(path)
    assert not trace.exists()


def test_other_formats_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"\x08\x08\x12\x07pytorch")
    assert "is a file that starts with b'\\x08\\x08\\x12\\x07'" in refusal(path)
    for names, expected in (
        (("m/models/model.json", "m/archive_format"), "is an exported program (torch.export, .pt2)"),
        (("serialized_exported_program.json",), "a zip file that torch did not write"),
        (("m/serialized_exported_program.json",), "is an exported program (torch.export, .pt2)"),
        (("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"), "is TorchScript, which holds code"),
        (("word/document.xml",), "is a zip file that torch did not write"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"")
        assert expected in refusal(path)


def test_a_real_exported_program(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, path)
    assert "is an exported program (torch.export, .pt2)" in refusal(path)


def test_another_programs_checkpoint(tmp_path: Path, model: UNet) -> None:
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path)
    text = refusal(path)
    assert "the key 'unet_deploy_checkpoint' is missing" in text
    assert "it holds 'contracting.0.0.weight'" in text
    torch.save([torch.zeros(1)], path)
    assert "it holds list" in refusal(path)


def test_another_version_of_ours(tmp_path: Path, model: UNet) -> None:
    torch.save(content(model, **{CHECKPOINT_KEY: 2}), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="checkpoint version 2 came, this release reads version 1"):
        load_checkpoint(tmp_path / "model.pt")


def test_contents_that_are_not_exactly_card_and_weights(tmp_path: Path, model: UNet) -> None:
    path = tmp_path / "model.pt"
    for changes in ({"card": 1}, {"weights": {"a": 1}}, {"extra": "x"}):
        torch.save(content(model, **changes), path)
        assert "does not hold exactly a card (text) and weights (tensors)" in refusal(path)


def test_a_card_that_cannot_be_read(tmp_path: Path, model: UNet) -> None:
    torch.save(content(model, card="{}"), tmp_path / "model.pt")
    with pytest.raises(CardError, match=r"model card version None came"):
        load_checkpoint(tmp_path / "model.pt")


def test_weights_of_another_network(tmp_path: Path, model: UNet) -> None:
    path = tmp_path / "model.pt"
    torch.save(content(UNet(depth=1, base_width=3)), path)
    text = refusal(path)
    assert "are not those of the network its card describes" in text
    assert "torch.float32 (3,) came, torch.float32 (2,) was expected" in text
    assert "more" in text
    weights = model.state_dict()
    del weights["head.bias"]
    torch.save(content(model, weights={**weights, "foot.bias": torch.zeros(2)}), path)
    text = refusal(path)
    assert "head.bias: missing" in text
    assert "foot.bias: unknown" in text
    torch.save(content(model, weights={**model.state_dict(), "head.bias": torch.tensor([0.0, float("nan")])}), path)
    assert "head.bias: holds NaN or infinity" in refusal(path)


def test_a_card_that_asks_for_terabytes_costs_nothing(tmp_path: Path, model: UNet) -> None:
    huge = replace(CARD, network=Network(depth=8, base_width=1024, in_channels=1, classes=2))
    torch.save(content(model, card=dump_card(huge)), tmp_path / "model.pt")
    assert "are not those of the network its card describes" in refusal(tmp_path / "model.pt")
