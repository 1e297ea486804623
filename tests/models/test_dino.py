"""DINOv2 against transformers, in both layouts, and DINOv3 through it."""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)
from transformers.utils import logging

from tag2mask.models.dino import HUB_POSITIONS, load_dino
from tag2mask.models.tower import Each, Positions, resample_positions
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.types import UserError
from tiny_clips import shake

SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 70, "patch_size": 14}
KINDS = {
    "plain": (Dinov2Config, Dinov2Model, SIZES),
    "registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel, {**SIZES, "num_register_tokens": 3}),
    "v3": (DINOv3ViTConfig, DINOv3ViTModel, {**SIZES, "intermediate_size": 256, "num_register_tokens": 2}),
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.disable_progress_bar()


@pytest.fixture(scope="module")
def models():
    made = {}
    for name, (config, model, sizes) in KINDS.items():
        torch.manual_seed(1)
        made[name] = shake(model(config(**sizes))).eval()
    return made


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    folders = {}
    for name, model in models.items():
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
    return folders


def pictures(height, width, seed=0):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255


def expected(model, images, special):
    with torch.no_grad():
        return model(pixel_values=standardise(images, MEAN, STD)).last_hidden_state[:, special:]


SPECIAL = {"plain": 1, "registers": 4, "v3": 3}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(70, 70), (56, 98), (140, 84)])
def test_features_are_transformers(models, folders, kind, size):
    dino = load_dino(folders[kind])
    images = pictures(*size)
    wanted = expected(models[kind], images, SPECIAL[kind])
    pixels = standardise(images, MEAN, STD)
    torch.testing.assert_close(dino.model.patches(pixels), wanted, rtol=1e-4, atol=2e-4)
    grid = (size[0] // 14, size[1] // 14)
    unit = F.normalize(wanted, dim=-1).transpose(1, 2).unflatten(2, grid)
    torch.testing.assert_close(dino.features(images), unit, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_sides_are_brought_down_to_whole_patches(models, folders, kind):
    images = pictures(60, 100)
    small = F.interpolate(standardise(images, MEAN, STD), (56, 98), mode="bilinear", align_corners=False)
    dino = load_dino(folders[kind])
    wanted = F.normalize(dino.model.patches(small), dim=-1).transpose(1, 2).unflatten(2, (4, 7))
    torch.testing.assert_close(dino.features(images), wanted)
    assert dino.features(pictures(9, 30)).shape == (2, 128, 1, 2)


def hub_state(model):
    """The weights of a transformers model by the names of the authors' code."""
    state, own = model.state_dict(), {}
    own["cls_token"], own["mask_token"] = state["embeddings.cls_token"], state["embeddings.mask_token"]
    own["pos_embed"] = state["embeddings.position_embeddings"]
    if "embeddings.register_tokens" in state:
        own["register_tokens"] = state["embeddings.register_tokens"]
    for end in ("weight", "bias"):
        own[f"patch_embed.proj.{end}"] = state[f"embeddings.patch_embeddings.projection.{end}"]
        own[f"norm.{end}"] = state[f"layernorm.{end}"]
        for i in range(SIZES["num_hidden_layers"]):
            at, to = f"encoder.layer.{i}.", f"blocks.{i}."
            own[f"{to}attn.qkv.{end}"] = torch.cat([state[f"{at}attention.{p}_proj.{end}"] for p in "qkv"])
            own[f"{to}attn.proj.{end}"] = state[f"{at}attention.o_proj.{end}"]
            own |= {
                f"{to}{part}.{end}": state[f"{at}{part}.{end}"] for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
            }
            own |= {f"{to}ls{n}.gamma": state[f"{at}layer_scale{n}.lambda1"] for n in (1, 2)}
    return {name: value.clone() for name, value in own.items()}


@pytest.fixture(scope="module")
def hub_files(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    for kind in ("plain", "registers"):
        torch.save(hub_state(models[kind]), folder / f"{kind}.pth")
    return folder


@pytest.mark.parametrize("kind", ["plain", "registers"])
def test_the_hubs_layout_is_the_same_network(folders, hub_files, kind):
    ours, theirs = load_dino(folders[kind]), load_dino(hub_files / f"{kind}.pth")
    state = theirs.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.model.state_dict().items())
    images = pictures(70, 70)
    torch.testing.assert_close(ours.features(images), theirs.features(images))
    apart = (ours.features(pictures(56, 98)) - theirs.features(pictures(56, 98))).abs().max()
    assert (apart > 1e-4) == (kind == "plain")  # with registers both resample positions alike
    assert ours.fingerprint != theirs.fingerprint


def cubic(x):
    """The kernel of bicubic interpolation, a = -0.75."""
    x = abs(x)
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def test_the_hubs_positions_by_hand():
    """Cell i of n looks at (i + 0.5) 5 / (n + 0.1) - 0.5 of a table of 5."""
    table = torch.randn(26, 3, generator=torch.Generator().manual_seed(0))

    def weights(count):
        out = np.zeros((count, 5))
        for i in range(count):
            place = (i + 0.5) * 5 / (count + 0.1) - 0.5
            low = int(np.floor(place))
            for j in range(low - 1, low + 3):
                out[i, min(max(j, 0), 4)] += cubic(place - j)
        return out

    square = table[1:].double().numpy().reshape(5, 5, 3)
    wanted = np.einsum("yi,xj,ijd->yxd", weights(4), weights(7), square).reshape(28, 3)
    got = resample_positions(table, (5, 5), (4, 7), HUB_POSITIONS)
    np.testing.assert_allclose(got[1:], wanted, atol=1e-5)
    assert torch.equal(got[0], table[0])
    by_size = resample_positions(table, (5, 5), (4, 7), Positions("bicubic"))
    assert (by_size[1:] - got[1:]).abs().max() > 1e-3


def test_it_is_a_tower(folders):
    """Taps, attentions, and patches last among the tokens."""
    dino = load_dino(folders["registers"])
    seen = dino.model(
        standardise(pictures(56, 70), MEAN, STD), taps=(0,), attention=Each(2), positions=dino.model.how
    )
    assert seen.grid == (4, 5)
    assert seen.taps[0].shape == seen.tokens.shape == (2, 1 + 3 + 20, 128)
    assert seen.attention.shape == (2, 2, 24, 24)
    torch.testing.assert_close(seen.attention.sum(-1), torch.ones(2, 2, 24))


def test_name_and_weights_are_kept_and_it_is_frozen(folders):
    dino = load_dino(str(folders["plain"]))
    again = load_dino(str(folders["plain"]))
    assert dino.name == str(folders["plain"])
    assert (dino.sha256, dino.fingerprint) == (again.sha256, again.fingerprint)
    assert dino.sha256 != load_dino(folders["registers"]).sha256
    assert not any(p.requires_grad for p in dino.model.parameters())
    assert not dino.model.training


def test_found_in_the_hubs_cache(hub_files, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    target = tmp_path / "checkpoints" / "dinov2_vits14_reg4_pretrain.pth"
    target.write_bytes((hub_files / "registers.pth").read_bytes())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert load_dino("dinov2_vits14_reg").layout == "hub"


def test_what_is_no_dino_says_so(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="tag2mask fetch facebook/dinov2-base"):
        load_dino("dinov2_vitb14")
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        load_dino(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (tmp_path / "model.safetensors").write_bytes((folders["plain"] / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="'vit'; expected dinov2"):
        load_dino(tmp_path)
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="has no tensor 'cls_token'"):
        load_dino(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="multiples of the patch"):
        load_dino(folders["plain"]).model.patches(torch.zeros(1, 3, 15, 14))


def test_gated_mlps_are_refused(folders, hub_files, tmp_path):
    state = torch.load(hub_files / "plain.pth")
    torch.save({**state, "blocks.0.mlp.w12.weight": torch.zeros(2, 2)}, tmp_path / "giant.pth")
    with pytest.raises(UserError, match="ViT-g"):
        load_dino(tmp_path / "giant.pth")
