"""The energy that training makes small (Ronneberger et al. 2015, section 3, equation 1).

The paper writes ``E = Σ_x w(x) log p_l(x)(x)``, with ``p_k = exp(a_k) / Σ_j exp(a_j)`` the soft-max over the network's
output channels a_k and l(x) the true class of pixel x. As it stands, E is to be made great; two things are written down
here that the paper leaves open:

- the sign: the loss is ``-E``, which is never below 0;
- the normalisation: -E is divided by the number of pixels, ignored ones included. So the rate does not depend on the
  tile's size, each annotated pixel counts alike in whichever tile it comes, and a tile with little annotation weighs
  little.

log p is computed as ``a_l - log Σ_j exp(a_j)`` with the greatest a_j taken out first: no overflow, and no log of 0.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def weighted_cross_entropy(logits: Tensor, label: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean over all pixels of -log of the true class's probability.

    Parameters
    ----------
    logits
        float, (n, classes, y, x).
    label
        int64, (n, y, x): class indices; any valid class where the weight is 0.
    weights
        float32, (n, y, x): `training.weight_map`; 0 takes a pixel out.

    Returns
    -------
    Tensor
        float32, ().
    """
    log_probability = functional.log_softmax(logits.float(), dim=1)  # (n, classes, y, x)
    of_truth = log_probability.gather(1, label[:, None])[:, 0]  # (n, y, x)
    return -(weights * of_truth).mean()
