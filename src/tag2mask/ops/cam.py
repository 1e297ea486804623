"""Class activation maps: gradients of scores, GradCAM's weighted sum, normalisation (CLIP-ES, section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def score_cotangents(
    embedding: Tensor, texts: Tensor, count: int, scale: float, score: Literal["softmax", "logits"]
) -> Tensor:
    """Gradients of the first ``count`` scores with respect to the image embedding (Eq. 4): (K, E).

    embedding: (E,), not normalised. texts: (T, E) unit rows, the K classes first, then what they compete with.
    With softmax and a single text the score is 1 whatever the image, and the gradient is zero.
    """
    length = embedding.norm()
    unit = embedding / length  # (E,)
    by_logit = torch.eye(count, len(texts), device=texts.device)  # (K, T)
    if score == "softmax":
        p = (scale * texts @ unit).softmax(0)  # (T,)
        by_logit = p[:count, None] * (by_logit - p)  # (K, T)
    by_unit = scale * by_logit @ texts  # (K, E)
    return (by_unit - (by_unit @ unit)[:, None] * unit) / length  # through the normalisation


def gradcam(activation: Tensor, weights: Tensor) -> Tensor:
    """Eq. 2: ReLU(sum_k w_k^c A^k); activation (N, D), weights (K, D) -> (K, N)."""
    return F.relu(weights @ activation.T)


def min_max(maps: Tensor, eps: float = 1e-7) -> Tensor:
    """Bring each map to [0, 1]: (m - min m) / (eps + max(m - min m)), over the last dimension of (..., N).

    A constant map becomes zero, so that its class can never win.
    """
    shifted = maps - maps.amin(-1, keepdim=True)
    return shifted / (eps + shifted.amax(-1, keepdim=True))


def normalise_cam(cam: Tensor) -> Tensor:
    """GradCAM's normalisation of (K, N): min-max, twice.

    The first pass leaves a faint map (maximum near eps) below 1; the second lifts it, as in the released code,
    so that the box threshold is relative to the same maximum whatever the gradient's size.
    """
    return min_max(min_max(cam))
