from __future__ import annotations

import torch

from tag2mask.models.clims import CameraReadyHead, CAMHead, activation


def test_a_classifiers_score_is_the_mean_of_its_map():
    head = CAMHead(6, 4)
    features = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(0))
    pooled = features.mean((2, 3)) @ head.classifier.weight[:, :, 0, 0].T
    torch.testing.assert_close(head.scores(features), pooled)
    assert sum(p.numel() for p in head.parameters()) == 24


def test_the_camera_ready_head_of_a_resnet50():
    head = CameraReadyHead(2048, 20)
    convolutions = 2048 * 512 + 9 * 512 * 512 + 512 * 2048 + 21 * 2048
    assert sum(p.numel() for p in head.parameters()) == convolutions + 2 * (512 + 512 + 2048)
    for convolution in (head.conv1, head.conv2, head.conv3, head.classifier):
        assert 0.0095 < convolution.weight.std() < 0.0105


def test_the_camera_ready_head_has_a_shortcut_and_drops_background():
    head = CameraReadyHead(8, 3).eval()
    torch.nn.init.zeros_(head.bn3.weight)
    features = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    active = torch.where(features > 0, features, 0.01 * features)
    expected = torch.einsum("oc,bchw->bohw", head.classifier.weight[1:, :, 0, 0], active)
    torch.testing.assert_close(head(features), expected)
    head.scores(features).sum().backward()
    assert head.classifier.weight.grad[0].eq(0).all()


def test_maps_are_probabilities_in_training_and_cams_afterwards():
    logits = torch.tensor([-2.0, 0.0, 3.0]).view(3, 1, 1)
    assert activation(logits, training=True).flatten().tolist() == logits.sigmoid().flatten().tolist()
    assert activation(logits, training=False).flatten().tolist() == [0, 0, 3]
