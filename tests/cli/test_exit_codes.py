"""How the program ends when nobody expected it to."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from tests.conftest import Outcome
from tests.tiny import read_provenance, write_huge
from unet_deploy.cli.app import app
from unet_deploy.errors import DeviceError
from unet_deploy.runtime import expected_costs
from unet_deploy.runtime.engines import choice, tensorrt_cache

Cli = Callable[..., Outcome]


@pytest.fixture
def verb() -> Iterator[Callable[[Callable[[], object]], None]]:
    """A way to give the program one more verb, `surprise`, for the time of a test."""
    known = len(app.registered_commands)

    def register(function: Callable[[], object]) -> None:
        app.command("surprise")(function)

    yield register
    del app.registered_commands[known:]


def fail() -> None:
    raise RuntimeError("the moon is in the wrong phase")


def test_what_takes_minutes_is_said(cli: Cli, verb: Callable[..., None]) -> None:
    def build() -> None:
        tensorrt_cache.logger.info("building a plan")
        expected_costs.logger.info("measuring it")
        choice.logger.info("engine taken")

    verb(build)
    assert cli("surprise").err == "building a plan\nmeasuring it\n"
    assert cli("surprise", "--debug").err.splitlines() == [
        "INFO unet_deploy.runtime.engines.tensorrt_cache: building a plan",
        "INFO unet_deploy.runtime.expected_costs: measuring it",
        "INFO unet_deploy.runtime.engines.choice: engine taken",
    ]


def test_an_unexpected_exception_is_our_bug(cli: Cli, verb: Callable[..., None]) -> None:
    verb(fail)
    outcome = cli("surprise")
    assert (outcome.code, outcome.out) == (70, "")
    assert outcome.err.startswith("error[bug]: RuntimeError: the moon is in the wrong phase\n")
    assert "unet-deploy 0." in outcome.err
    assert outcome.err.splitlines()[-1].startswith("  fix: run again with --debug and report ")
    assert "Traceback" not in outcome.err


def test_an_assertion_is_our_bug(cli: Cli, verb: Callable[..., None]) -> None:
    def surprise() -> None:
        assert len("ab") == 3, "two is not three"

    verb(surprise)
    outcome = cli("surprise")
    assert outcome.code == 70
    assert "error[bug]: AssertionError: two is not three" in outcome.err


@pytest.mark.parametrize("arguments", [("surprise", "--debug"), ("--debug", "surprise")])
def test_debug_restores_the_traceback(arguments: tuple[str, ...], cli: Cli, verb: Callable[..., None]) -> None:
    verb(fail)
    with pytest.raises(RuntimeError, match="the moon is in the wrong phase"):
        cli(*arguments)


def test_debug_restores_the_traceback_of_a_refusal_too(cli: Cli, verb: Callable[..., None]) -> None:
    def surprise() -> None:
        raise DeviceError("no such device", fix="--device cpu")

    verb(surprise)
    assert cli("surprise").code == 5
    with pytest.raises(DeviceError, match="no such device"):
        cli("surprise", "--debug")


@pytest.mark.parametrize("error", [KeyboardInterrupt, typer.Abort])
def test_an_interrupted_run(error: type[BaseException], cli: Cli, verb: Callable[..., None]) -> None:
    def surprise() -> None:
        raise error

    verb(surprise)
    outcome = cli("surprise")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.strip() == "interrupted"


def test_the_extra_verb_is_gone(cli: Cli) -> None:
    assert cli("surprise").code == 2


def test_a_traceback_reaches_the_terminal(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unet_deploy", "inspect", "nothing.zarr", "--debug"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1  # Python's own, for an exception that nobody caught
    assert "Traceback (most recent call last)" in done.stderr
    assert "VolumeNotFoundError: there is nothing at nothing.zarr" in done.stderr


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path, tiny_model: Path) -> None:
    """As in ``unet-deploy inspect model.onnx | head -0``."""
    program = subprocess.Popen(
        [sys.executable, "-m", "unet_deploy", "inspect", str(tiny_model), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert program.stdout is not None
    program.stdout.close()
    program.stdout = None
    _, said = program.communicate(timeout=60)
    assert "error[bug]" not in said
    assert "Traceback" not in said
    assert program.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to a whole console, pytest included")
def test_control_c_ends_a_run(tmp_path: Path, tiny_model: Path) -> None:
    write_huge(tmp_path / "v.zarr", (20_000, 256, 256))
    output = tmp_path / "out.zarr"
    program = subprocess.Popen(
        [sys.executable, "-m", "unet_deploy", "segment", "v.zarr", "--model", tiny_model, "-o", output, "--tile", "44"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        wait_until((output / "0" / "c").exists, program)
        program.send_signal(signal.SIGINT)
        out, said = program.communicate(timeout=60)
    finally:
        program.kill()
        program.communicate()
    assert program.returncode == 130
    assert out == ""
    assert "stopping: the blocks in flight are finished; Ctrl-C again stops at once" in said
    assert "error[interrupted]: stopped with " in said
    assert "fix: the same command goes on where it stopped; --overwrite starts anew" in said
    assert "Traceback" not in said
    assert read_provenance(output)["status"] == "running"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to a whole console, pytest included")
def test_control_c_ends_a_measurement(tmp_path: Path, tiny_model: Path) -> None:
    """Nothing goes on after it, so nothing is said of that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored
    try:
        program = subprocess.Popen(
            [sys.executable, "-m", "unet_deploy", "bench", tiny_model, "--engine", "onnxruntime-cpu"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        assert program.stderr is not None
        assert program.stderr.readline() == "measuring: fp32 on onnxruntime-cpu (1 of 1)\n"
        program.send_signal(signal.SIGINT)
        out, said = program.communicate(timeout=60)
    finally:
        program.kill()
        program.communicate()
    assert (program.returncode, out, said.strip()) == (130, "", "interrupted")


def wait_until(is_so: Callable[[], bool], program: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if is_so():
            return
        assert program.poll() is None, program.communicate()
        time.sleep(0.1)
    raise TimeoutError
