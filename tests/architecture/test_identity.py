"""A module is one object under one name, whatever the way in: script, ``python -m``, pytest, a spawned worker."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

import unet_deploy
import unet_deploy.exporters
import unet_deploy.runtime
import unet_deploy.training
from unet_deploy.errors import ConfigurationError
from unet_deploy.geometry import Interval, UnetGeometry, cover_axis

MAPPED = {"training", "exporters", "runtime"}


def test_no_mapped_folder_is_imported_by_its_bare_name() -> None:
    assert {f"unet_deploy.{name}" for name in MAPPED} <= set(sys.modules)
    assert MAPPED & set(sys.modules) == set()


def test_no_file_is_imported_twice() -> None:
    ours = [
        Path(module.__file__).resolve()
        for name, module in list(sys.modules.items())
        if name.split(".")[0] in {"unet_deploy", *MAPPED} and getattr(module, "__file__", None)
    ]
    assert len(ours) == len(set(ours)) >= 6


def test_values_and_errors_cross_into_a_spawned_worker() -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        tiles = pool.submit(cover_axis, UnetGeometry(4), Interval(0, 512), 572).result()
        assert tiles == cover_axis(UnetGeometry(4), Interval(0, 512), 572)
        assert type(tiles[0].read) is Interval
        with pytest.raises(ConfigurationError, match=r"network depth 9 is not in 1\.\.8") as caught:
            pool.submit(UnetGeometry, 9).result()
    assert caught.value.fix == "use a depth from 1 to 8"


@pytest.mark.parametrize("in_checkout", [True, False])
def test_python_dash_m(in_checkout: bool, root: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unet_deploy", "--version"],
        capture_output=True,
        text=True,
        cwd=root if in_checkout else tmp_path,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert unet_deploy.__version__ in done.stdout
