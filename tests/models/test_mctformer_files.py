"""What MCTformer starts from: tiny files of every layout, whole and broken."""

from __future__ import annotations

import json
import pickle

import pytest
import safetensors.torch
import torch
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, ViTConfig, ViTForImageClassification

from mctformers import NAMES, TINY, random_network, save_timm, timm_state
from tag2mask.methods.fitting.mctformer import losses
from tag2mask.models.mctformer_files import build_mctformer, read_start, save_mctformer
from tag2mask.models.tower import BILINEAR
from tag2mask.models.weights import load_clip
from tag2mask.ops.image import MEAN, STD
from tag2mask.types import UserError

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"image_size": 12, "patch_size": 4}


def pixels(size=(12, 12)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(5))


def shake(module):
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return module.eval()


@torch.no_grad()
def tokens_of(start):
    """(B, 1 + N, D) before the final norm, as the network with a single class computes them."""
    network = build_mctformer(start, NAMES[:1], "v1")
    return network(pixels(), positions=network.how).tokens


@torch.no_grad()
def test_a_vit_of_transformers_computes_the_same(tmp_path):
    oracle = shake(ViTForImageClassification(ViTConfig(**SIZES, layer_norm_eps=1e-6)))
    oracle.save_pretrained(tmp_path)
    start = read_start(tmp_path)
    states = oracle(pixels(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(tokens_of(start), states[-1], rtol=1e-4, atol=1e-4)
    assert (start.shape, start.mean, start.std, start.version) == (TINY, MEAN, STD, None)
    alone = read_start(tmp_path / "model.safetensors", heads=2)
    assert all(torch.equal(alone.state[name], value) for name, value in start.state.items())
    torch.save(safetensors.torch.load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(tokens_of(read_start(tmp_path)), tokens_of(start))


def test_a_distilled_deit_is_taken_without_its_other_token(tmp_path):
    oracle = shake(DeiTForImageClassificationWithTeacher(DeiTConfig(**SIZES)))
    oracle.save_pretrained(tmp_path)
    start, own = read_start(tmp_path), oracle.deit.embeddings
    assert torch.equal(start.state["class_embedding"], own.cls_token[0])
    table = own.position_embeddings[0]
    assert torch.equal(start.state["positional_embedding"], torch.cat([table[:1], table[2:]]))
    state = timm_state(distilled=True)
    found = read_start(save_timm(tmp_path / "distilled.pth", state), heads=2)
    table = state["pos_embed"][0]
    assert torch.equal(found.state["positional_embedding"], torch.cat([table[:1], table[2:]]))


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_timm_s_names_are_those_of_transformers(tmp_path, prefix):
    """One network in both layouts: what transformers computes is checked above."""
    oracle = shake(ViTForImageClassification(ViTConfig(**SIZES)))
    oracle.save_pretrained(tmp_path)
    wanted = read_start(tmp_path).state
    state = timm_state()
    back = {"conv1": "patch_embed.proj", "ln_1": "norm1", "ln_2": "norm2", "in_proj_": "qkv.", "out_proj": "proj"}
    back |= {"c_fc": "fc1", "c_proj": "fc2", "transformer.resblocks": "blocks"}
    for name, value in wanted.items():
        for ours, theirs in back.items():
            name = name.replace(ours, theirs)
        name = {"class_embedding": "cls_token", "positional_embedding": "pos_embed"}.get(name, name)
        assert name in state, name
        state[name] = value[None] if name in ("cls_token", "pos_embed") else value
    for path in (tmp_path / "deit.pth", tmp_path / "deit.safetensors"):
        named = {prefix + name: value.contiguous() for name, value in state.items()}
        save_timm(path, named) if path.suffix == ".pth" else safetensors.torch.save_file(named, path)
        start = read_start(path, heads=2)
        assert start.shape == TINY
        assert start.state.keys() == wanted.keys()
        assert all(torch.equal(start.state[name], value) for name, value in wanted.items())


def test_each_class_starts_as_the_one_token(tmp_path):
    start = read_start(save_timm(tmp_path / "deit.pth", timm_state()), heads=2)
    network = build_mctformer(start, NAMES, "v2")
    assert torch.equal(network.class_embedding, start.state["class_embedding"].expand(4, -1))
    table = start.state["positional_embedding"]
    assert torch.equal(network.positional_embedding, torch.cat([table[:1].expand(4, -1), table[1:]]))
    assert network.head.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not network.head.bias.any()
    seen = network.see(pixels(), 1)
    torch.testing.assert_close(seen.class_tokens, seen.class_tokens[:, :1].expand(-1, 4, -1))
    assert not torch.equal(network.head.weight, build_mctformer(start, NAMES, "v2", seed=1).head.weight)


def test_one_step_makes_the_class_tokens_differ(tmp_path):
    start = read_start(save_timm(tmp_path / "deit.pth", timm_state()), heads=2)
    network = build_mctformer(start, NAMES, "v1").train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses(network, pixels(), torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0]]), None).total.backward()
    optimizer.step()
    tokens = network.see(pixels(), 1).class_tokens
    assert (tokens[:, 0] - tokens[:, 1]).abs().max() > 1e-3
    torch.testing.assert_close(tokens[:, 2], tokens[:, 3])  # both in no picture


def test_mctformer_plus_repeats_its_grid(tmp_path):
    start = read_start(save_timm(tmp_path / "deit.pth", timm_state()), heads=2)
    network = build_mctformer(start, NAMES, "plus", expand=2)
    assert network.native_grid == (6, 6)
    table = start.state["positional_embedding"][1:].view(3, 3, 16)
    grown = network.positional_embedding[4:].view(6, 6, 16)
    for i in range(6):
        for j in range(6):
            assert torch.equal(grown[i, j], table[i // 2, j // 2])


@pytest.mark.parametrize("version", ["v1", "v2", "plus"])
def test_released_checkpoints_by_their_names(tmp_path, version):
    state = timm_state(tokens=4)
    if version != "v1":
        state["head.weight"], state["head.bias"] = torch.randn(4, 16, 3, 3), torch.randn(4)
    if version == "plus":
        whole = state.pop("pos_embed")
        state["pos_embed_cls"], state["pos_embed_pat"] = whole[:, :4], whole[:, 4:]
    start = read_start(save_timm(tmp_path / "checkpoint.pth", state), heads=2)
    assert start.version == version
    network = build_mctformer(start, NAMES, version)
    assert torch.equal(network.class_embedding, state["cls_token"][0])
    assert torch.equal(network.blocks[1].attn.in_proj_weight, state["blocks.1.attn.qkv.weight"])
    assert network.how.offset == (0.0 if version == "plus" else 0.1)
    other = "v2" if version == "v1" else "v1"
    asked = "variant=plus" if version == "plus" else f"version={version}"
    with pytest.raises(UserError, match=f"is an MCTformer .*; for it give --set {asked}, with"):
        build_mctformer(start, NAMES, other)
    with pytest.raises(UserError, match=r"of 4 classes; expected one of these 3: cat, dog, cow, in this order"):
        build_mctformer(start, NAMES[:3], version)


def test_ours_comes_back_as_it_was(tmp_path):
    network, file = random_network("plus"), tmp_path / "mctformer.safetensors"
    about = {"names": NAMES, "version": "plus", "mean": [0.1, 0.2, 0.3], "std": STD, "supervision": "tags"}
    save_mctformer(network, file, about)
    start = read_start(file)
    assert (start.shape, start.names, start.version, start.mean) == (TINY, NAMES, "plus", (0.1, 0.2, 0.3))
    again = build_mctformer(start, NAMES, "plus")
    assert torch.equal(again.see(pixels(), 1).attention, network.see(pixels(), 1).attention)
    with pytest.raises(UserError, match=r"of 4 classes: cat, dog, cow, hen; expected one of these 4: dog, cat"):
        build_mctformer(start, ("dog", "cat", "cow", "hen"), "plus")


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:storybook-clip")
def test_clip_s_image_tower_as_a_start():
    with pytest.warns(UserWarning, match="knows no photographs; for photographs take DeiT-S"):
        start = read_start("storybook-clip")
    clip = load_clip("storybook-clip", cache=None)
    network = build_mctformer(start, NAMES[:1], "v1")
    picture = pixels((48, 64))
    ours = network(picture, positions=BILINEAR).tokens
    torch.testing.assert_close(ours, clip.model.vision(picture).tokens, rtol=1e-4, atol=1e-4)
    assert (start.mean, start.shape.heads, start.version) == (clip.mean, 3, None)


class Bomb:
    def __reduce__(self):
        return (open, ("never-made", "w"))


def broken(state, name, value=None):
    state = dict(state)
    if value is None:
        del state[name]
    else:
        state[name] = value
    return state


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda s: broken(s, "cls_token"), "has no class_embedding; expected DeiT"),
        (lambda s: broken(s, "pos_embed", torch.randn(1, 9, 16)), "8 positions are of patches"),
        (lambda s: broken(s, "pos_embed", torch.randn(10, 16)), r"positions \(10, 16\); expected"),
        (lambda s: broken(s, "patch_embed.proj.weight", torch.randn(16, 3, 4, 8)), "expected square patches"),
        (lambda s: broken(s, "blocks.1.attn.proj.weight"), r"attn.out_proj.weight is missing"),
        (lambda s: broken(s, "blocks.2.mlp.fc1.weight", torch.randn(64, 8)), r"is \(64, 8\), expected \(64, 16\)"),
        (lambda s: {"layer1.0.weight": torch.randn(3)}, "expected an image transformer in timm's names"),
    ],
)
def test_files_of_other_networks_are_named(tmp_path, make, match):
    path = save_timm(tmp_path / "x.pth", make(timm_state()))
    with pytest.raises(UserError, match=match):
        build_mctformer(read_start(path, heads=2), NAMES, "v2")


def test_other_faults_are_named(tmp_path):
    path = save_timm(tmp_path / "deit.pth", timm_state())
    with pytest.raises(UserError, match="16 wide, which is no multiple of 64"):
        read_start(path)
    with pytest.raises(UserError, match="which 3 heads do not divide"):
        read_start(path, heads=3)
    with pytest.raises(UserError, match=r"nowhere.pth: is no file.*expected DeiT-S"):
        read_start(tmp_path / "nowhere.pth")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"config.json: cannot be read"):
        read_start(tmp_path / "folder")
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match="holds no weights; expected model"):
        read_start(tmp_path / "folder")
    safetensors.torch.save_file(timm_state(), tmp_path / "folder" / "model.safetensors")
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"model_type": "swin"}))
    with pytest.raises(UserError, match="model_type 'swin'"):
        read_start(tmp_path / "folder")
    with pytest.warns(UserWarning, match="neck.weight are no part of MCTformer"):
        read_start(save_timm(path, {**timm_state(), "neck.weight": torch.ones(2)}), heads=2)
    state = {**timm_state(), "decode_head.conv_seg.weight": torch.ones(2, 16, 1, 1)}
    with pytest.warns(UserWarning, match="decode_head"):
        assert read_start(save_timm(path, state), heads=2).supervision == "tags+pixels(weights: deit.pth)"
    with pytest.raises(UserError, match="did you mean 'storybook-clip'"):
        read_start("storybook-clop")


def test_nothing_in_a_file_is_run(tmp_path):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"model": timm_state(), "log": Bomb()}))
    with pytest.raises(UserError, match="Nothing in it was run"):
        read_start(path, heads=2)
