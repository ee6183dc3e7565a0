"""The loss is the paper's equation 1, its sign turned and divided by the number of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from unet_deploy.training.loss import weighted_cross_entropy  # noqa: E402


def paper_loss(logits: npt.NDArray[Any], label: npt.NDArray[Any], weights: npt.NDArray[Any]) -> float:
    """Return -E over the number of pixels, pixel by pixel, as the paper writes it."""
    energy, (n, _, height, width) = 0.0, logits.shape
    for i, y, x in np.ndindex(n, height, width):
        a = logits[i, :, y, x].astype(np.float64)
        p = np.exp(a) / np.sum(np.exp(a))
        energy += float(weights[i, y, x]) * np.log(p[label[i, y, x]])
    return -energy / (n * height * width)


def draw(classes: int, seed: int = 0) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (2, classes, 5, 6)).astype(np.float32)
    label = random.integers(classes, size=(2, 5, 6))
    weights = random.uniform(0, 11, (2, 5, 6)).astype(np.float32) * (random.random((2, 5, 6)) > 0.3)
    return logits, label, weights.astype(np.float32)


def loss_of(logits: Any, label: Any, weights: Any) -> torch.Tensor:
    return weighted_cross_entropy(*(torch.as_tensor(value) for value in (logits, label, weights)))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_it_is_the_papers_energy(classes: int) -> None:
    logits, label, weights = draw(classes)
    assert (weights == 0).any()
    came = loss_of(logits, label, weights)
    assert (came.shape, came.dtype) == ((), torch.float32)
    assert came.item() == pytest.approx(paper_loss(logits, label, weights), rel=1e-5)


def test_with_equal_weights_it_is_the_plain_mean_of_cross_entropy() -> None:
    logits, label, weights = (torch.as_tensor(v) for v in draw(3))
    expected = torch.nn.functional.cross_entropy(logits, label)
    assert weighted_cross_entropy(logits, label, torch.ones_like(weights)).item() == pytest.approx(expected.item())


def test_the_gradient_is_that_of_the_papers_energy() -> None:
    logits, label, weights = draw(3)
    leaf = torch.tensor(logits, requires_grad=True)
    loss_of(leaf, label, weights).backward()
    assert leaf.grad is not None
    random, step = np.random.default_rng(1), 1e-5
    for _ in range(20):  # central differences along one logit each, in float64
        place = tuple(int(random.integers(n)) for n in logits.shape)
        shifts = [logits.astype(np.float64), logits.astype(np.float64)]
        shifts[0][place] += step
        shifts[1][place] -= step
        slope = (paper_loss(shifts[0], label, weights) - paper_loss(shifts[1], label, weights)) / (2 * step)
        assert leaf.grad[place].item() == pytest.approx(slope, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_great_logits_neither_overflow_nor_lose_the_gradient(size: float) -> None:
    logits = torch.tensor([size, -size]).view(1, 2, 1, 1).repeat(1, 1, 1, 2).requires_grad_()
    loss = weighted_cross_entropy(logits, torch.tensor([[[0, 1]]]), torch.ones(1, 1, 2))
    assert loss.item() == pytest.approx(size)  # 0 where right, 2·size where wrong
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, :, 0].tolist() == [[0, 0.5], [0, -0.5]]


def test_ignored_pixels_give_no_gradient_whatever_stands_there() -> None:
    logits, label, weights = draw(3)
    weights[0, 2:4] = 0
    logits[0, :, 3] = [[1e4], [-1e4], [0]]
    leaf = torch.tensor(logits, requires_grad=True)
    loss_of(leaf, label, weights).backward()
    assert leaf.grad is not None
    assert not leaf.grad[0, :, 2:4].any()
    assert leaf.grad[0, :, :2].any()
    changed = label.copy()
    changed[0, 2:4] = (changed[0, 2:4] + 1) % 3
    assert loss_of(logits, changed, weights).item() == loss_of(logits, label, weights).item()


def test_with_all_weights_zero_it_is_zero() -> None:
    logits, label, weights = draw(2)
    leaf = torch.tensor(logits, requires_grad=True)
    loss = loss_of(leaf, label, np.zeros_like(weights))
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad is not None
    assert not leaf.grad.any()


def test_the_normalisation_counts_ignored_pixels_too() -> None:
    logits, label, weights = draw(2)
    wide = [np.concatenate([value, value], axis=-1) for value in (logits, label, weights)]
    assert loss_of(*wide).item() == pytest.approx(
        loss_of(logits, label, weights).item()
    )  # the tile's size is no matter
    wide[2][..., weights.shape[-1] :] = 0
    assert loss_of(*wide).item() == pytest.approx(loss_of(logits, label, weights).item() / 2)  # the annotation's is


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, label, weights = draw(2)
    came = loss_of(torch.tensor(logits).bfloat16(), label, weights)
    assert came.dtype == torch.float32
    assert came.item() == pytest.approx(paper_loss(logits, label, weights), rel=0.02)
