"""`train` as a function: what it writes, what it says where, and what it refuses before any work."""

from __future__ import annotations

import subprocess
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")
io = pytest.importorskip("skimage.io", reason="the extra 'train' is not installed")

from unet_deploy.cli.train import parse_classes, parse_pixel_size, train  # noqa: E402
from unet_deploy.errors import (  # noqa: E402
    ConfigurationError,
    MissingDependencyError,
    OutputExistsError,
    TileNotLegalError,
    TrainingDataError,
    UsageError,
)
from unet_deploy.training import load_checkpoint, read_training_data  # noqa: E402


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        label = (random.random((30, 40)) < 0.3).astype(np.uint8)
        save(images / f"{index}.png", (random.integers(0, 50, (30, 40)) + 100 * label).astype(np.uint8))
        save(labels / f"{index}.png", label)
    return images, labels


def save(path: Path, array: np.ndarray) -> None:
    io.imsave(path, array, check_contrast=False)


def run(folders: tuple[Path, Path], output: Path, **flags: Any) -> None:
    small: dict[str, Any] = {"depth": 1, "width": 2, "tile": 28, "steps": 3, **flags}
    train(*folders, output=output, **small)


def test_it_writes_a_checkpoint_and_says_what_to_type_next(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "discs.pt"
    run(folders, output, classes=["dark=0", "bright=1"], exclude=["0"], pixel_size_nm="4,5", data="noise")
    said = capsys.readouterr()
    _, card = load_checkpoint(output)
    assert (card.name, card.training.data, card.input.pixel_size_nm) == ("discs", "noise", (4.0, 5.0))
    assert [c.name for c in card.classes] == ["dark", "bright"]
    assert said.out.startswith(f"wrote {output}: 3 of 3 steps were best, ")
    assert "of pixels differ, Dice" in said.out
    assert said.out.endswith(f"next: unet-deploy export {output}\n")
    assert "training on 1 images of uint8: dark " in said.err
    assert "validating on 2 (the last tenth; choose with --validate)" in said.err
    assert "leaving out 0" in said.err
    assert "step 3/3" in said.err


def test_what_stands_at_the_output_is_refused_before_the_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match="exists already"):
        run((tmp_path / "no", tmp_path / "no"), tmp_path / "model.pt")
    with pytest.raises(TrainingDataError, match="labels: there is no folder"):
        run((tmp_path / "no", tmp_path / "no"), tmp_path / "model.pt", overwrite=True)
    assert (tmp_path / "model.pt").read_bytes() == b"precious"


def test_flags_that_cannot_be_meant(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(TileNotLegalError, match="tile side 29 on axis y and x"):
        run(folders, tmp_path / "model.pt", tile=29)
    with pytest.raises(ConfigurationError, match=r"2 setting\(s\) of the training cannot be") as caught:
        run(folders, tmp_path / "model.pt", threads=0, steps=0)
    assert "threads: 0 is not above 0" in str(caught.value)
    with pytest.raises(UsageError, match="--class 'membrane' is not NAME=VALUE with a whole number") as refused:
        parse_classes(["membrane"])
    assert "--class membrane=0" in str(refused.value)
    with pytest.raises(UsageError, match="--class 'a' is given twice"):
        parse_classes(["a=1", "a=2"])
    for text in ("four", "4,5,6", "0", "-1", "inf", "nan", ""):
        with pytest.raises(UsageError, match="is not one or two positive numbers"):
            parse_pixel_size(text)
    assert not (tmp_path / "model.pt").exists()


def test_flags_that_mean_something() -> None:
    assert parse_classes(None) is None
    assert parse_classes(["odd=name=3", "b=-1"]) == {"odd=name": 3, "b": -1}
    assert parse_pixel_size(None) is None
    assert parse_pixel_size("4") == (4.0, 4.0)
    assert parse_pixel_size("4, 4.5") == (4.0, 4.5)


class NoSkimage(MetaPathFinder):
    """Python without scikit-image."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "skimage":
            raise ModuleNotFoundError("No module named 'skimage'", name="skimage")


def test_a_missing_reader_names_the_extra(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "skimage"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [NoSkimage(), *sys.meta_path])
    with pytest.raises(MissingDependencyError, match="reading images needs the package 'scikit-image'") as caught:
        read_training_data(*folders)
    assert "pip install 'unet-deploy[train]'" in str(caught.value)


def test_the_package_loads_no_torch_and_names_the_extra_where_it_is_missing() -> None:
    script = (
        "import sys\n"
        "import unet_deploy.training as training\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'UNet' in dir(training)\n"
        "sys.modules['torch'] = None\n"
        "try:\n"
        "    training.UNet\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.startswith("training needs the package 'torch', which is not installed")
    assert "pip install 'unet-deploy[train]'" in said


def test_the_package_has_no_other_names() -> None:
    import unet_deploy.training as training

    assert all(getattr(training, name).__module__.startswith("unet_deploy.training.") for name in training.__all__)
    with pytest.raises(AttributeError, match=r"module 'unet_deploy\.training' has no attribute 'Unet'"):
        training.Unet  # noqa: B018
