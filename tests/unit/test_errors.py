"""What an error says, and how it travels."""

from __future__ import annotations

import copy
import pickle

import pytest

from unet_deploy.errors import (
    CardError,
    InputDataError,
    MissingDependencyError,
    ModelError,
    NoSpaceError,
    PartialResultError,
    RequirementError,
    SchedulerError,
    TileNotLegalError,
    UnetDeployError,
    UnknownNameError,
    UnsupportedDtypeError,
    UsageError,
    VolumeNotFoundError,
)


def test_a_message_is_headline_details_fix() -> None:
    error = TileNotLegalError("tile side 250 on axis x", "halved 4 times", "nearest: 236, 252", fix="--tile 252")
    assert str(error) == "tile side 250 on axis x\n  halved 4 times\n  nearest: 236, 252\n  fix: --tile 252"
    assert (error.headline, error.details) == ("tile side 250 on axis x", ("halved 4 times", "nearest: 236, 252"))
    assert error.args == ("tile side 250 on axis x",)


def test_details_may_be_missing_but_a_fix_may_not() -> None:
    assert str(CardError("no card", fix="export again")) == "no card\n  fix: export again"
    with pytest.raises(TypeError, match="fix"):
        CardError("no card")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("cls", "group", "builtin", "exit_code"),
    [
        (TileNotLegalError, UsageError, ValueError, 2),
        (VolumeNotFoundError, InputDataError, FileNotFoundError, 3),
        (UnsupportedDtypeError, InputDataError, TypeError, 3),
        (NoSpaceError, InputDataError, OSError, 3),
        (CardError, ModelError, ValueError, 4),
        (MissingDependencyError, RequirementError, ModuleNotFoundError, 5),
        (SchedulerError, RequirementError, ConnectionError, 5),
        (PartialResultError, UnetDeployError, Exception, 6),
    ],
)
def test_an_error_is_caught_as_its_group_and_as_its_builtin(
    cls: type[UnetDeployError], group: type[Exception], builtin: type[Exception], exit_code: int
) -> None:
    for caught_as in (group, builtin, UnetDeployError):
        with pytest.raises(caught_as, match=r"^came\n  from here\n  fix: do this$"):
            raise cls("came", "from here", fix="do this")
    assert cls.exit_code == exit_code


def test_the_message_of_an_os_error_is_ours() -> None:
    # OSError and FileNotFoundError would otherwise print "[Errno ...]" or take two arguments for number and text.
    error = VolumeNotFoundError("there is nothing at x.zarr", "looked in data", fix="check the path")
    assert str(error).startswith("there is nothing at x.zarr\n")
    assert error.errno is None


@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("cls", [CardError, NoSpaceError, MissingDependencyError])
def test_an_error_survives_a_copy_and_a_pickle(again, cls: type[UnetDeployError]) -> None:  # type: ignore[no-untyped-def]
    error = cls("came", "one", "two", fix="do this")
    twin = again(error)
    assert type(twin) is cls
    assert str(twin) == str(error) == "came\n  one\n  two\n  fix: do this"


def test_a_near_name_is_offered() -> None:
    error = UnknownNameError.of_unknown_name("engine", "onnxruntime-gpu", ["onnxruntime-cpu", "tensorrt"])
    assert type(error) is UnknownNameError
    assert str(error) == (
        "unknown engine: 'onnxruntime-gpu'\n  known: onnxruntime-cpu, tensorrt\n  fix: did you mean 'onnxruntime-cpu'?"
    )


def test_a_far_name_gets_the_list() -> None:
    error = UnknownNameError.of_unknown_name("engine", "zzz", ["tensorrt", "openvino"])
    assert "known: openvino, tensorrt" in str(error)
    assert error.fix == "use one of the known engine names"


def test_no_known_names_at_all() -> None:
    assert "known: (none)" in str(UnknownNameError.of_unknown_name("image", "em", []))


def test_a_missing_extra_says_what_to_install() -> None:
    error = MissingDependencyError.of_extra("torch", extra="train", purpose="training")
    assert str(error) == (
        "training needs the package 'torch', which is not installed\n"
        "  it comes with the extra 'train'\n"
        "  fix: pip install 'unet-deploy[train]'"
    )
    assert error.exit_code == 5
