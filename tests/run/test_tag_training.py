"""The loss of all trainings on tags, by its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tag2mask.run.tag_training import tag_loss


@pytest.mark.parametrize("known", [None, [True, False, True], [False, True, False]])
def test_the_loss_is_the_mean_over_pictures_and_classes(known):
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    tags = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]])
    rows = slice(None) if known is None else torch.tensor(known)
    p = logits.double().sigmoid()[rows]
    right = tags.double()[rows]
    expected = -(right * p.log() + (1 - right) * (1 - p).log()).mean()
    got = tag_loss(nn.Identity(), logits, tags, None if known is None else torch.tensor(known))
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_that_teaches_nothing_changes_nothing():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = tag_loss(nn.Identity(), logits, torch.zeros(2, 3), torch.tensor([False, False]))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
