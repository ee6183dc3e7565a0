"""A plan is native code: only one that this user built on this machine is loaded. Each refusal mounts its attack."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import CARD
from unet_deploy.errors import CardError, ModelNotFoundError, NotAnArtifactError, OutputExistsError, UnsafeModelError
from unet_deploy.runtime import _private_files
from unet_deploy.runtime._private_files import KEY_NAME, make_key, read_key, read_private, user_data_folder
from unet_deploy.runtime.engine_plan import (
    EnginePlan,
    PlanManifest,
    Profile,
    load_engine_plan,
    sidecar_path,
    write_engine_plan,
)
from unet_deploy.runtime.engines.base import ByteForm

DATA = b"native code" * 100
PROFILE = Profile(minimum=(1, 1, 44, 44), optimum=(1, 1, 76, 76), maximum=(4, 1, 140, 140))
MANIFEST = PlanManifest(
    flavour="tensorrt",
    version="11.4.0.106",
    plan_sha256=hashlib.sha256(DATA).hexdigest(),
    plan_bytes=len(DATA),
    onnx_sha256="0" * 64,
    precision="fp32",
    compute_capabilities=("8.9",),
    gpu="NVIDIA RTX 4090",
    driver="13.0",
    profiles=(PROFILE,),
    flags={"tf32": False, "workspace_mib": 0, "hardware_compatibility": "none"},
    form=ByteForm(dtype="uint8", kinds=("labels",)),
)
PLAN = EnginePlan(data=DATA, manifest=MANIFEST, card=CARD, source="made up")

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no owner and no mode of a file to look at")
as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can give a file to another user"
)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of the user's own."""
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def key_folder(tmp_path: Path) -> Path:
    return tmp_path / "key"


@pytest.fixture
def path(mine: Path, key_folder: Path) -> Path:
    """A plan that was built here."""
    file = mine / "model.engine"
    write_engine_plan(file, PLAN, key_folder=key_folder)
    return file


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    sidecar = sidecar_path(path)
    content = json.loads(sidecar.read_text())
    change(content)
    sidecar.write_text(json.dumps(content))


# What is written is read.


def test_a_plan_is_read_as_it_was_written(path: Path, key_folder: Path) -> None:
    plan = load_engine_plan(path, key_folder=key_folder)
    assert (plan.data, plan.manifest, plan.card) == (DATA, MANIFEST, CARD)
    assert plan.source == str(path)
    assert str(DATA[:11]) not in repr(plan)
    again = load_engine_plan(str(path), key_folder=key_folder)
    assert again.manifest == plan.manifest


@pytest.mark.parametrize("change", [{"form": None}, {"gpu": None, "driver": None}, {"profiles": (PROFILE, PROFILE)}])
def test_what_is_left_open_is_read(mine: Path, key_folder: Path, change: dict[str, Any]) -> None:
    manifest = replace(MANIFEST, **change)
    write_engine_plan(mine / "a.engine", replace(PLAN, manifest=manifest), key_folder=key_folder)
    assert load_engine_plan(mine / "a.engine", key_folder=key_folder).manifest == manifest


def test_a_profile_knows_what_it_holds() -> None:
    assert PROFILE.holds((1, 1, 44, 140))
    assert not PROFILE.holds((5, 1, 44, 44))
    assert not PROFILE.holds((1, 1, 43, 44))


def test_existing_files_are_not_replaced(path: Path, key_folder: Path) -> None:
    with pytest.raises(OutputExistsError, match=r"model\.engine exists\n  nothing was written"):
        write_engine_plan(path, PLAN, key_folder=key_folder)
    path.unlink()
    with pytest.raises(OutputExistsError, match=r"model\.engine\.json exists\n"):
        write_engine_plan(path, PLAN, key_folder=key_folder)
    write_engine_plan(path, PLAN, overwrite=True, key_folder=key_folder)
    assert load_engine_plan(path, key_folder=key_folder).data == DATA
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.engine", "model.engine.json"]


@posix_only
def test_only_the_user_can_read_what_is_written(path: Path, key_folder: Path) -> None:
    for file in (path, sidecar_path(path), key_folder / KEY_NAME):
        assert file.stat().st_mode & 0o777 == 0o600
    assert key_folder.stat().st_mode & 0o777 == 0o700


def test_no_file_names_a_place(path: Path) -> None:
    text = sidecar_path(path).read_text()
    assert "made up" not in text.replace('"made up"', "", 1)  # the card's normalisation says so, once
    assert str(path.parent) not in text


# Nothing there, or not ours.


def test_no_plan(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"^no engine plan at .*none\.engine\n.*\n  fix: check the path, or"):
        load_engine_plan(tmp_path / "none.engine", key_folder=tmp_path)


def test_a_plan_without_a_sidecar(path: Path, key_folder: Path) -> None:
    sidecar_path(path).unlink()
    for is_trusted in (False, True):
        with pytest.raises(
            NotAnArtifactError, match=r"model\.engine has no sidecar\n  model\.engine\.json was expected beside it"
        ) as caught:
            load_engine_plan(path, key_folder=key_folder, is_trusted=is_trusted)
        assert "unet-deploy export model.pt --target" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", r"model\.engine\.json is not valid JSON\n"),
        ('{"plan_version": 1, "plan_version": 1}', r"is not valid JSON\n  the key 'plan_version' comes twice"),
        ("é", r"is not valid JSON\n"),
        ("[" * 100_000, r"is not valid JSON\n"),
        ("[]", r"^plan version None came, this release reads version 1\n"),
        ('{"plan_version": 2}', r"^plan version 2 came, this release reads version 1\n"),
        ('{"plan_version": true}', r"^plan version True came, this release reads version 1\n"),
    ],
)
def test_a_sidecar_that_is_none(path: Path, key_folder: Path, text: str, told: str) -> None:
    sidecar_path(path).write_text(text, encoding="utf-8")
    with pytest.raises(NotAnArtifactError, match=told):
        load_engine_plan(path, key_folder=key_folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(plugin="a.so"), r"plugin: unknown key"),
        (lambda c: c["manifest"].update(plugin="a.so"), r"manifest\.plugin: unknown key"),
        (lambda c: c["manifest"].pop("version"), r"manifest\.version: missing"),
        (lambda c: c.pop("signature"), r"signature: missing"),
        (lambda c: c.update(signature="x"), r"signature: 64 hexadecimal digits was expected"),
        (lambda c: c["manifest"].update(flavour="tensorflow"), r"manifest\.flavour: one of tensorrt, tensorrt-rtx"),
        (lambda c: c["manifest"].update(profiles=[]), r"manifest\.profiles: a list of one or more was expected"),
        (
            lambda c: c["manifest"]["profiles"][0].update(minimum=[1, 1, 44]),
            r"manifest\.profiles\[0\]\.minimum: four sizes from 1 was expected",
        ),
        (
            lambda c: c["manifest"]["profiles"][0].update(minimum=[9, 1, 44, 44]),
            r"manifest\.profiles\[0\]\.: minimum <= optimum <= maximum was expected",
        ),
        (lambda c: c["manifest"].update(flags={"a": [1]}), r"manifest\.flags: names to numbers, texts or truths"),
        (lambda c: c["manifest"].update(form={"dtype": "uint8"}), r"manifest\.form\.kinds: missing"),
        (lambda c: c["manifest"].update(precision="int8"), r"manifest\.precision: fp32 was expected \(the card's\)"),
        (lambda c: c["manifest"].update(plan_bytes=0), r"manifest\.plan_bytes: an integer in 1\.\.\d+ was expected"),
    ],
)
def test_a_sidecar_with_problems(
    path: Path, key_folder: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    edit(path, change)
    for is_trusted in (False, True):
        with pytest.raises(
            NotAnArtifactError, match=r"^the sidecar has \d+ problem\(s\)\n  in .*json\n(.*\n)*.*" + told
        ):
            load_engine_plan(path, key_folder=key_folder, is_trusted=is_trusted)


def test_a_card_that_is_none(path: Path, key_folder: Path) -> None:
    edit(path, lambda c: c["card"].pop("name"))
    with pytest.raises(CardError, match=r"name: missing"):
        load_engine_plan(path, key_folder=key_folder)


# Altered, truncated, another's.


@pytest.mark.parametrize(
    "data", [DATA[:-1], DATA + b"!", b"N" + DATA[1:], b""], ids=["truncated", "longer", "altered", "emptied"]
)
@pytest.mark.parametrize("is_trusted", [False, True])
def test_a_plan_that_was_altered(path: Path, key_folder: Path, data: bytes, is_trusted: bool) -> None:
    path.write_bytes(data)
    with pytest.raises(
        UnsafeModelError, match=r"altered, truncated or replaced\n  1100 bytes with sha256 .* were expected, \d+ with"
    ) as caught:
        load_engine_plan(path, key_folder=key_folder, is_trusted=is_trusted)
    assert caught.value.fix == "build it here: unet-deploy export model.pt --target tensorrt"  # trust would not help


def alter_both(path: Path) -> None:
    """Put other code in place of the plan, and its hash into the sidecar."""
    path.write_bytes(b"other code")
    edit(
        path,
        lambda c: c["manifest"].update(plan_bytes=10, plan_sha256=hashlib.sha256(b"other code").hexdigest()),
    )


def alter_manifest(path: Path) -> None:
    edit(path, lambda c: c["manifest"].update(version="10.0"))


def alter_card(path: Path) -> None:
    edit(path, lambda c: c["card"]["normalisation"].update(mean=[0.0]))


def alter_signature(path: Path) -> None:
    edit(path, lambda c: c.update(signature="0" * 64))


@pytest.mark.parametrize("attack", [alter_both, alter_manifest, alter_card, alter_signature])
def test_a_plan_altered_after_signing(path: Path, key_folder: Path, attack: Callable[[Path], None]) -> None:
    attack(path)
    with pytest.raises(
        UnsafeModelError,
        match=r"was not built by you on this machine, or its sidecar was altered\n  .* is not signed with your key\n"
        r"  a plan is native code: whoever made it decides what runs\n",
    ) as caught:
        load_engine_plan(path, key_folder=key_folder)
    assert caught.value.fix == (
        "build it here: unet-deploy export model.pt --target tensorrt; or, if you know who built it, --trust-engine"
    )
    load_engine_plan(path, key_folder=key_folder, is_trusted=True)


def test_a_plan_of_somebody_else(mine: Path, tmp_path: Path, key_folder: Path) -> None:
    write_engine_plan(mine / "a.engine", PLAN, key_folder=tmp_path / "their key")
    with pytest.raises(UnsafeModelError, match=r"is not signed with your key, and you have none yet\n"):
        load_engine_plan(mine / "a.engine", key_folder=key_folder)
    make_key(key_folder)
    with pytest.raises(UnsafeModelError, match=r"is not signed with your key\n"):
        load_engine_plan(mine / "a.engine", key_folder=key_folder)
    assert load_engine_plan(mine / "a.engine", key_folder=key_folder, is_trusted=True).data == DATA


def test_a_sidecar_beyond_all_bounds(path: Path, key_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsafeModelError, match=r"it has 1100 bytes, at most 10 were expected"):
        read_private(path, largest=10, is_trusted=True, fix="no")


@pytest.mark.parametrize("which", ["plan", "sidecar"])
@pytest.mark.parametrize("is_trusted", [False, True])
def test_links_are_not_followed(path: Path, key_folder: Path, tmp_path: Path, which: str, is_trusted: bool) -> None:
    file = path if which == "plan" else sidecar_path(path)
    away = tmp_path / "away"
    file.rename(away)
    try:
        file.symlink_to(away)
    except OSError:
        pytest.skip("this user may not make symbolic links")
    with pytest.raises(UnsafeModelError, match=r" is not known to be yours\n  it is a link, and a link can be turned"):
        load_engine_plan(path, key_folder=key_folder, is_trusted=is_trusted)


@pytest.mark.parametrize("which", ["plan", "sidecar"])
def test_hard_links_are_refused(path: Path, key_folder: Path, tmp_path: Path, which: str) -> None:
    file = path if which == "plan" else sidecar_path(path)
    os.link(file, tmp_path / "another name")
    with pytest.raises(UnsafeModelError, match=r"it has 2 names \(hard links\), and can be changed through any"):
        load_engine_plan(path, key_folder=key_folder, is_trusted=True)


@posix_only
def test_a_pipe_is_no_plan(path: Path, key_folder: Path) -> None:
    sidecar_path(path).unlink()
    os.mkfifo(sidecar_path(path))
    with pytest.raises((UnsafeModelError, NotAnArtifactError), match=r"no plain file|has no sidecar"):
        load_engine_plan(path, key_folder=key_folder)
    with pytest.raises(UnsafeModelError, match=r"it is a link, or no plain file"):
        read_private(sidecar_path(path), largest=1, is_trusted=True, fix="no")


@posix_only
@pytest.mark.parametrize("mode", [0o620, 0o602])
@pytest.mark.parametrize("which", ["plan", "sidecar"])
def test_files_that_others_can_write(path: Path, key_folder: Path, which: str, mode: int) -> None:
    (path if which == "plan" else sidecar_path(path)).chmod(mode)
    with pytest.raises(UnsafeModelError, match=rf"others have access to it: mode {mode:o}\n"):
        load_engine_plan(path, key_folder=key_folder)
    assert load_engine_plan(path, key_folder=key_folder, is_trusted=True).data == DATA


@posix_only
def test_a_folder_that_everybody_can_write_to(path: Path, key_folder: Path) -> None:
    path.parent.chmod(0o777)
    with pytest.raises(
        UnsafeModelError, match=r"mine is not known to be yours\n  others have access to it: mode 777\n"
    ):
        load_engine_plan(path, key_folder=key_folder)
    assert load_engine_plan(path, key_folder=key_folder, is_trusted=True).data == DATA


@as_root
@pytest.mark.parametrize("which", ["plan", "sidecar", "folder"])
def test_files_of_another_user(path: Path, key_folder: Path, which: str) -> None:
    os.chown({"plan": path, "sidecar": sidecar_path(path), "folder": path.parent}[which], 12345, -1)
    with pytest.raises(UnsafeModelError, match=r"it belongs to user 12345, you are user 0\n"):
        load_engine_plan(path, key_folder=key_folder)
    assert load_engine_plan(path, key_folder=key_folder, is_trusted=True).data == DATA


# The key.


def test_the_key_is_made_once(key_folder: Path) -> None:
    assert read_key(key_folder) is None
    key = make_key(key_folder)
    assert len(key) == 32
    assert make_key(key_folder) == read_key(key_folder) == key


def test_makers_of_a_key_agree(key_folder: Path) -> None:
    keys: list[bytes] = []
    makers = [threading.Thread(target=lambda: keys.append(make_key(key_folder))) for _ in range(8)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


@posix_only
def test_a_key_that_others_know_is_refused(path: Path, key_folder: Path) -> None:
    (key_folder / KEY_NAME).chmod(0o644)
    with pytest.raises(UnsafeModelError, match=r"signing\.key is not known to be yours\n.*mode 644\n") as caught:
        load_engine_plan(path, key_folder=key_folder)
    assert caught.value.fix == f"delete {key_folder / KEY_NAME}, and build your engines again"


def test_a_key_that_is_none_is_refused(path: Path, key_folder: Path) -> None:
    (key_folder / KEY_NAME).write_bytes(b"short")
    with pytest.raises(UnsafeModelError, match=r"it has 5 bytes, 32 were expected"):
        load_engine_plan(path, key_folder=key_folder)


def test_the_users_folder_is_in_the_home() -> None:
    assert Path.home() in user_data_folder().parents
    assert user_data_folder().name == "unet-deploy"
    assert _private_files.KEY_BYTES == 32
