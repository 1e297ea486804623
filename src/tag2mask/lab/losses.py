"""How pictures and captions are held against each other: three readings of a picture, two losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def alike(meanings: Tensor) -> Tensor:
    """Which captions of a batch claim the same: (B,) -> (B, B) bool. Such a caption fits the other's picture too."""
    return meanings[:, None] == meanings[None]


def contrastive(similarity: Tensor, positive: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss, both ways, where a row may have several positives, which share its probability, or none.

    Args:
        similarity: (B, T) of pictures (rows) and texts (columns), in [-1, 1].
        positive: (B, T) bool. Rows and columns without any are passed over.
        scale: the inverse temperature.
    """
    logits = scale * similarity.float()  # (B, T)
    return (_find(logits, positive) + _find(logits.T, positive.T)) / 2


def _find(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross entropy of each row (Q, K) against its positives, on average over the rows that have some."""
    count = positive.sum(1)  # (Q,)
    each = -(positive * logits.log_softmax(1)).sum(1) / count.clamp(min=1)
    return each.sum() / (count > 0).sum().clamp(min=1)


def pairwise(similarity: Tensor, positive: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The sigmoid loss (Zhai et al. 2023): every pair by itself is a match or none. Arguments as ``contrastive``."""
    logits = scale * similarity.float() + bias  # (B, B)
    signs = 2 * positive.float() - 1
    return -F.logsigmoid(signs * logits).sum(1).mean()


def cosine(pictures: Tensor, texts: Tensor) -> Tensor:
    """(B, E) and (T, E), of any length -> (B, T)."""
    with _float32(pictures):
        return F.normalize(pictures.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T


def aligned_similarity(patches: Tensor, texts: Tensor, sharpness: float) -> Tensor:
    """Each text looks at the patches that fit it (PACL, Mukhoti et al. 2023): (B, N, E), (T, E) -> (B, T).

    The picture's embedding for a text is the mean of its unit patches, weighted by the softmax of ``sharpness``
    times their similarity to the text; it is not brought to length 1 again. Its product with the text then is the
    weighted mean of the similarities, and no (B, T, E) ever exists.
    """
    with _float32(patches):
        units = F.normalize(patches.float(), dim=-1)
        similarity = torch.einsum("bne,te->btn", units, F.normalize(texts.float(), dim=-1))  # (B, T, N)
        return ((sharpness * similarity).softmax(-1) * similarity).sum(-1)


def _float32(tensor: Tensor) -> torch.autocast:
    """Autocast off: it would multiply in bfloat16, and a temperature of 100 makes whole units of its rounding."""
    return torch.autocast(tensor.device.type, enabled=False)
