"""The device asked for is the one that is used, or the error says what is missing."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from unet_deploy.errors import DeviceError, UsageError  # noqa: E402
from unet_deploy.training.device import open_device, precision  # noqa: E402

N_GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0


def test_the_cpu_is_the_cpu() -> None:
    assert open_device("cpu") == torch.device("cpu")


def test_auto_is_the_first_gpu_or_the_cpu() -> None:
    assert open_device("auto") == (torch.device("cuda", 0) if N_GPUS else torch.device("cpu"))


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "", "cuda:1 "])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is none of auto, cpu, cuda and cuda:i") as caught:
        open_device(name)
    assert repr(name) in str(caught.value)
    assert "fix: --device auto" in str(caught.value)


@pytest.mark.parametrize("name", [f"cuda:{N_GPUS}", "cuda:999"])
def test_a_gpu_that_is_not_there_is_never_replaced_by_the_cpu(name: str) -> None:
    with pytest.raises(DeviceError, match=rf"{name} was asked for, torch sees {N_GPUS} CUDA GPU\(s\)") as caught:
        open_device(name)
    text = str(caught.value)
    assert f"this torch ({torch.__version__}) is built for" in text
    assert "fix: --device cpu, or install torch for CUDA" in text


@pytest.mark.skipif(N_GPUS > 0, reason="a GPU is at hand")
def test_without_a_gpu_plain_cuda_is_refused() -> None:
    with pytest.raises(DeviceError, match="cuda was asked for, torch sees 0"):
        open_device("cuda")


def test_on_the_cpu_nothing_is_rounded() -> None:
    assert isinstance(precision(torch.device("cpu"), is_mixed=True), nullcontext)
    with precision(torch.device("cpu"), is_mixed=True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
