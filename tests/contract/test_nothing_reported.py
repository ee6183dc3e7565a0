"""A run leaves nothing in the user's home that is not ours: the packages that compute keep no identity there.

Imported as they are, both onnxruntime and openvino write one, and send events with it to their makers.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import make_pixels, write_image

CODE = """
from pathlib import Path
from unet_deploy.cli.app import run
from unet_deploy.runtime._private_files import user_data_folder

code = run(["segment", "volume.zarr", "--model", {model!r}, "--engine", {engine!r}])
assert code == 0, code
ours = user_data_folder()
files = [path for path in Path.home().rglob("*") if not path.is_dir()]
assert all(ours in path.parents for path in files), files
"""
# Without what else says "this is a test" to those packages, such as CI, and without what the tests' own process set.
NEEDED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TEMP", "TMP")


@pytest.mark.parametrize(("engine", "package"), [("onnxruntime-cpu", "onnxruntime"), ("openvino", "openvino")])
def test_a_run_leaves_no_identity_behind(engine: str, package: str, tiny_model: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    home, here = tmp_path / "home", tmp_path / "here"
    local = home / "AppData" / "Local"
    local.mkdir(parents=True)
    here.mkdir()
    write_image(here / "volume.zarr", make_pixels((1, 40, 60), seed=1))
    environment = {key: os.environ[key] for key in NEEDED if key in os.environ}
    environment |= {"HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(local)}
    code = CODE.format(model=str(tiny_model), engine=engine)
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=here, check=True, timeout=120)
    assert {path.name for path in here.iterdir()} == {"volume.zarr", "volume_segmentation.ome.zarr"}


def test_the_switch_wins_over_the_users_and_holds_for_processes_begun_later(tmp_path: Path) -> None:
    """It is read once, when onnxruntime is imported, in each process anew."""
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    code = (
        "import os; from unet_deploy.runtime.engines.onnxruntime_session import import_onnxruntime as f\n"
        "f(package='onnxruntime', extra='cpu', purpose='a test')\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    )
    environment = {key: os.environ[key] for key in NEEDED if key in os.environ}
    environment |= {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    environment["ORT_DISABLE_TELEMETRY"] = "0"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []
