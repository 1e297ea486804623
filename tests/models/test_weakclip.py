"""WeakCLIP's network against recorded arrays of the released code, stage by stage, and what a stage promises."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from frozen_cases import GOLDEN
from golden_weakclip import SMALL, clip_of, learnt, recorded_network, tokens_of
from tag2mask.models.clip import TextTransformer, VisionTransformer
from tag2mask.models.text import Tokens
from tag2mask.models.weakclip import TEMPERATURE, WeakCLIPNet, WeakCLIPSettings, default_taps
from tag2mask.models.weakclip_files import NO_CLASS, fill_from_released, read_released, released_name, silent_texts
from tag2mask.models.weakclip_parts import CoAttention, Decoder, PyramidAdapter
from tag2mask.types import UserError

PARTS = {"rtol": 0, "atol": 2e-4}
TAPS = {"rtol": 0, "atol": 5e-4}
SCORES = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def released(golden):
    return recorded_network(golden)


def arrays(case):
    return {key: torch.from_numpy(value) for key, value in case.items()}


# --- the released code --------------------------------------------------------------------------------------


@torch.no_grad()
def test_recorded_towers(released, golden):
    case = arrays(golden("weakclip/forward_128", "pixels"))
    taps, embedded = released.see(case["pixels"])
    for i, tap in enumerate(taps):
        torch.testing.assert_close(tap, case[f"tap{i}"], **TAPS)
    torch.testing.assert_close(embedded[:, 0], case["global_embedding"], **PARTS)
    torch.testing.assert_close(embedded[:, 1:].transpose(1, 2).unflatten(2, (8, 8)), case["dense_embedding"], **PARTS)
    torch.testing.assert_close(released.encode_texts()[None], case["text"], **PARTS)


@pytest.fixture
def learning_parts(golden):
    """The parts that learn with the recorded weights; these need no CLIP."""
    state = learnt(golden)
    adapter, match = PyramidAdapter(48, 16), CoAttention(32, 24, 4, 3, False, 0.1)
    decoder = Decoder(48, 5, 5, 16, guided=True, dropout=0.1)
    for module, prefix, theirs in (
        (adapter, "adapter.", "backbone."),
        (match, "", "context_decoder."),
        (decoder, "decoder.", ""),
    ):
        wanted = [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]
        there = released_name if prefix else theirs.__add__
        module.load_state_dict({name: state[there(prefix + name)] for name in wanted}, strict=False)
        module.eval()
    return adapter, match, decoder, state


@torch.no_grad()
def test_recorded_stages_from_recorded_inputs(learning_parts, golden):
    adapter, match, decoder, state = learning_parts
    case = arrays(golden("weakclip/forward_128", "tap0", "dense_embedding", "text_diff"))
    levels = adapter([case[f"tap{i}"] for i in range(4)])
    for i, level in enumerate(levels):
        if f"pyramid{i}" in case:
            torch.testing.assert_close(level, case[f"pyramid{i}"], **PARTS)
    embedded = torch.cat([case["global_embedding"][:, None], case["dense_embedding"].flatten(2).transpose(1, 2)], 1)
    more_text, more_pixels = match(case["text"], embedded)
    torch.testing.assert_close(more_text, case["text_diff"], **PARTS)
    torch.testing.assert_close(more_pixels, case["visual_diff"], **PARTS)
    torch.testing.assert_close(case["text"] + state["gamma"] * more_text, case["text_matched"], **PARTS)
    necks = decoder.neck(decoder.beside(levels, case["score_map"]))
    for i, neck in enumerate(necks):
        if f"neck{i}" in case:
            torch.testing.assert_close(neck, case[f"neck{i}"], **PARTS)
    torch.testing.assert_close(decoder(levels, case["score_map"]), case["logits"], **PARTS)


@torch.no_grad()
def test_recorded_network_from_end_to_end(released, golden):
    case = arrays(golden("weakclip/forward_128", "pixels"))
    scores, logits = released.look(case["pixels"])
    torch.testing.assert_close(scores, case["score_map"], **SCORES)
    torch.testing.assert_close(logits, case["logits"], **PARTS)
    assert torch.equal(released(case["pixels"]), logits)


@torch.no_grad()
def test_recorded_sides_that_are_no_multiples(released, golden):
    case = arrays(golden("weakclip/forward_100x93", "pixels"))
    seen = released._fitted(case["pixels"])
    assert seen.shape[2:] == (96, 80)
    taps, embedded = released.see(seen)
    torch.testing.assert_close(embedded[:, 0], case["global_embedding"], **PARTS)
    torch.testing.assert_close(embedded[:, 1:].transpose(1, 2).unflatten(2, (6, 5)), case["dense_embedding"], **PARTS)
    torch.testing.assert_close(released.adapter(taps)[3], case["pyramid3"], **PARTS)
    torch.testing.assert_close(released.look(seen).scores, case["score_map"], **SCORES)
    logits = released(case["pixels"])
    torch.testing.assert_close(logits, case["logits"], **PARTS)
    whole = F.interpolate(logits, (100, 93), mode="bilinear", align_corners=False)
    torch.testing.assert_close(whole, case["upsampled"], **PARTS)


def test_each_difference_of_the_paper_is_seen(released, golden):
    """Class embedding once, chained layers, other taps, positions in one step: none gives what was recorded."""
    case = arrays(golden("weakclip/forward_100x93", "pixels"))
    tokens = golden("weakclip/forward_128", "tokens")["tokens"]
    for change in (
        {"class_twice": False},
        {"chained": True},
        {"taps": (3, 6, 9, 12)},
        {"resolution": None},
        {"match": "direct"},
        {"decoder": "plain"},
        {"edges": "pad"},
    ):
        clip = clip_of(golden)
        net = WeakCLIPNet(clip.vision, clip.text, tokens_of(tokens), 5, replace(SMALL, **change)).eval()
        own = {k: v for k, v in released.state_dict().items() if k in net.state_dict()}
        own = {k: v for k, v in own.items() if v.shape == net.state_dict()[k].shape}
        net.load_state_dict(own, strict=False)
        with torch.no_grad():
            whole = F.interpolate(net(case["pixels"]), (100, 93), mode="bilinear", align_corners=False)
        assert (whole - case["upsampled"]).abs().max() > 1e-3, change


# --- names --------------------------------------------------------------------------------------------------


def test_names_and_shapes_of_a_released_checkpoint(released):
    path = GOLDEN / "weakclip" / "state_dict_shapes_small.json"
    if not path.exists():
        pytest.skip("golden data weakclip/state_dict_shapes_small.json is not at hand")
    listed = {name: tuple(shape) for name, shape in json.loads(path.read_text()).items()}
    ours = {released_name(name): tuple(value.shape) for name, value in released.state_dict().items()}
    ours["text_encoder.positional_embedding"] = (13, 32)  # a checkpoint has only the positions in use
    assert ours == listed


def test_a_checkpoint_is_read_and_what_does_not_fit_is_named(released, golden, tmp_path):
    state = {released_name(name): value for name, value in released.state_dict().items()}
    torch.save({"meta": {"CLASSES": ["a"]}, "state_dict": state, "optimizer": {}}, tmp_path / "iter_8000.pth")
    read = read_released(tmp_path / "iter_8000.pth")
    assert silent_texts(read, 5, tmp_path) == ()
    ids = golden("weakclip/forward_128", "tokens")["tokens"]
    clip = clip_of(golden)
    for layers, chained in ((3, False), (1, True)):  # the second takes the layer that the released code uses
        net = WeakCLIPNet(
            clip.vision, clip.text, tokens_of(ids), 5, replace(SMALL, layers=layers, chained=chained)
        ).eval()
        fill_from_released(net, read, tmp_path)
        pixels = torch.from_numpy(golden("weakclip/forward_128", "pixels")["pixels"])
        with torch.no_grad():
            torch.testing.assert_close(net(pixels), released(pixels))
    with pytest.raises(UserError, match=r"5 classes, expected 4 with background, or 91"):
        silent_texts(read, 4, tmp_path)
    with pytest.raises(UserError, match=r"gamma is missing.*weights of another network"):
        fill_from_released(net, {name: value for name, value in read.items() if name != "gamma"}, tmp_path)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="expected a checkpoint of WeakCLIP"):
        read_released(tmp_path / "other.pth")


# --- the network of random towers ---------------------------------------------------------------------------


def towers(patch=16, width=24, depth=4, words=40, embed=12, context=20, grid=2):
    """Random towers of which no width is another's."""
    torch.manual_seed(0)
    vision = VisionTransformer(width=width, layers=depth, heads=2, patch=patch, native_grid=(grid, grid), embed=embed)
    text = TextTransformer(vocabulary=30, context=context, width=words, layers=2, heads=2, embed=embed)
    for module in (vision, text):
        module.requires_grad_(False)
    return vision, text


NAMES = (Tokens((1, 5, 9), 2), Tokens((1, 6, 7, 9), 3), Tokens((1, 8, 9), 2))
TINY = WeakCLIPSettings(taps=(1, 2, 3, 4), width=8, heads=2, channels=6, prompts=3, resolution=None)


def tiny(settings=TINY, names=NAMES, classes=None, **how):
    torch.manual_seed(1)
    return WeakCLIPNet(*towers(**how), names, classes or len(names), settings)


@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_every_patch_has_the_same_levels(patch):
    net = tiny(patch=patch).eval()
    side = 2 * net.multiple
    levels = net.adapter(net.see(torch.randn(1, 3, side, side))[0])
    cell = 3.5 if patch == 14 else 4
    assert [level.shape[-1] for level in levels] == [side / (cell * 2**i) for i in range(4)]
    assert net(torch.randn(2, 3, side, side)).shape == (2, 3, side / cell, side / cell)


def test_the_finer_pyramid_is_the_released_codes_other_branch():
    """Patch 8: one deconvolution, a norm, and two poolings; patch 16 as its table says; their sizes are published."""
    counts = [
        sum(each.numel() for each in level.parameters())
        for patch in (16, 8)
        for level in PyramidAdapter(768, patch).children()
    ]
    assert counts == [4_723_200, 2_361_600, 1_536, 1_536, 2_361_600, 1_536, 1_536, 1_536]


def test_published_parameter_counts():
    count = lambda module: sum(each.numel() for each in module.parameters())  # noqa: E731
    assert count(CoAttention(512, 256, 4, 3, False, 0.1)) == 6_840_832
    decoder = Decoder(768, 21, 21, 256, guided=True, dropout=0.1)
    assert (count(decoder.neck), count(decoder.decode_head)) == (3_169_280, 4_137_749)


def test_other_patches_and_convolutional_towers_are_refused():
    with pytest.raises(UserError, match="patches of 12 pixels, expected 8, 14, 16, 32"):
        tiny(patch=12)
    with pytest.raises(UserError, match="a vision transformer"):
        WeakCLIPNet(torch.nn.Identity(), towers()[1], NAMES, 3, TINY)


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (33, 47), (31, 64)])
@pytest.mark.parametrize("edges", ["pad", "cut"])
def test_pictures_of_any_size(size, edges):
    net = tiny(replace(TINY, edges=edges)).eval()
    with torch.no_grad():
        logits = net(torch.randn(1, 3, *size))
    assert logits.isfinite().all()
    if edges == "pad":
        assert logits.shape[2:] == size


def test_a_padded_picture_is_the_corner_of_the_larger_one():
    net = tiny().eval()
    large = torch.randn(1, 3, 64, 64)
    large[..., 50:, :] = large[..., 49:50, :]
    with torch.no_grad():
        whole = F.interpolate(net(large), (64, 64), mode="bilinear", align_corners=False)
        torch.testing.assert_close(net(large[..., :50, :]), whole[..., :50, :])


def test_prompts_stand_between_the_start_and_the_name():
    """Token by token, with the position that each then has; the end is read where it has moved to."""
    net = tiny()
    text = net.text_encoder
    for row, name in enumerate(NAMES):
        words = text.token_embedding(torch.tensor(name.ids))
        words = torch.cat([words[:1], net.contexts[0], words[1:]])
        alone = text.from_embeddings(words[None], torch.tensor([len(name.ids) - 1 + 3]))
        torch.testing.assert_close(net.encode_texts()[row], alone[0])
    assert net.contexts.abs().max() <= 2
    assert 0.6 < tiny(replace(TINY, prompts=16), context=30).contexts.std() < 1.1


def test_names_and_prompts_that_are_too_long():
    with pytest.raises(UserError, match=r"has 4 tokens, .* with 17 prompts it is 21; .* at most 20"):
        tiny(replace(TINY, prompts=17))
    assert tiny(replace(TINY, prompts=16)).encode_texts().shape == (3, 12)


def train_once(net, **how):
    net.train()
    groups = [each for each in net.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(groups, **{"lr": 1e-2, "weight_decay": 3e-5, **how})
    logits, scores = net(torch.randn(2, 3, 64, 64))
    (logits.square().mean() + scores.square().mean()).backward()
    optimizer.step()
    return {name: each.grad for name, each in net.named_parameters()}


def test_frozen_towers_stay_bit_for_bit_and_all_else_learns():
    net = tiny()
    before = copy.deepcopy(net.state_dict())
    assert not any(module.training for part in (net.train().tower, net.text_encoder) for module in part.modules())
    gradients = train_once(net)
    for name, value in net.named_parameters():
        tower = name.startswith(("tower.", "text_encoder."))
        assert torch.equal(value, before[name]) == tower, name
        assert (gradients[name] is None) == tower, name


def test_creeping_and_trained_towers_move_and_the_callers_do_not():
    for encoders in ("creep", "trained"):
        vision, text = towers()
        before = copy.deepcopy(vision.state_dict()) | copy.deepcopy(text.state_dict())
        net = WeakCLIPNet(vision, text, NAMES, 3, replace(TINY, encoders=encoders, drop_path=0.1))
        own = copy.deepcopy(net.tower.state_dict())
        gradients = train_once(net, lr=3.45e-7)
        assert all(each is not None for each in gradients.values())
        assert not torch.equal(net.tower.conv1.weight, own["conv1.weight"])
        after = vision.state_dict() | text.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_unused_layers_ask_for_no_gradient_and_no_part_else():
    net = tiny(replace(TINY, layers=3, chained=False))
    gradients = train_once(net)
    idle = {name for name, each in gradients.items() if each is None and not name.startswith(("tower.", "text_"))}
    assert len(idle) == 80
    assert idle == {name for name in gradients if (".0." in name[:34] and "coder.0." in name) or "coder.1." in name}
    assert not any(dict(net.named_parameters())[name].requires_grad for name in idle)


def test_stochastic_depth_leaves_out_branches_of_whole_pictures():
    net = tiny(replace(TINY, encoders="trained", drop_path=0.9)).train()
    pixels = torch.randn(1, 3, 64, 64).expand(16, -1, -1, -1)
    taps, _ = net.see(pixels)
    first = taps[0].flatten(1)
    assert torch.equal(first, first[:1].expand_as(first))  # the first block has a rate of 0
    assert len(taps[3].flatten(1).unique(dim=0)) > 1
    taps, _ = net.eval().see(pixels)
    assert len(taps[3].flatten(1).unique(dim=0)) == 1


def test_texts_are_computed_once_until_weights_change(monkeypatch):
    net = tiny().eval()
    calls, encode = [], net.encode_texts
    monkeypatch.setattr(net, "encode_texts", lambda: calls.append(1) or encode())
    with torch.inference_mode():
        first = net(torch.ones(1, 3, 32, 32))
        net(torch.ones(1, 3, 64, 32))
    assert len(calls) == 0  # they were there since the network went into evaluation
    with torch.no_grad():
        net.contexts.add_(1)
        second = net(torch.ones(1, 3, 32, 32))
    assert len(calls) == 1
    assert not torch.equal(first, second)


def test_texts_without_a_class_take_part_and_have_no_output():
    more = (*NAMES, Tokens((1, 12, 9), 2))
    net = tiny(names=more, classes=3).eval()
    with torch.no_grad():
        scores, logits = net.look(torch.randn(1, 3, 32, 32))
    assert (scores.shape[1], logits.shape[1]) == (4, 3)


def test_cocos_91_outputs_are_cut_to_81_and_stay_what_they_were():
    """The ten names without images stay in the matching; classes keep their own outputs."""
    tokens = [Tokens((1, 2 + i % 7, 3 + i % 5, 10 + i % 17, 9), 4) for i in range(91)]
    whole = tiny(names=tokens).eval()
    kept = [i for i in range(91) if i not in NO_CLASS]
    assert len(kept) == 81
    ours = tiny(names=[tokens[i] for i in [*kept, *NO_CLASS]], classes=81).eval()
    state = {released_name(name): value for name, value in whole.state_dict().items()}
    state = {name.replace("coder.0.", "coder.2."): value for name, value in state.items()}
    assert silent_texts(state, 81, "x") == tuple(NO_CLASS.values())
    fill_from_released(ours, state, "x")
    with torch.no_grad():
        pixels = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(ours(pixels), whole(pixels)[:, kept])


@pytest.mark.parametrize("decoder", ["text-guided", "plain", "none"])
@pytest.mark.parametrize("match", ["co-attention", "direct"])
def test_the_rungs_of_the_papers_table_4(decoder, match):
    net = tiny(replace(TINY, decoder=decoder, match=match, prompts=0))
    gradients = train_once(net) if (decoder, match) != ("none", "direct") else {}
    assert not any(name.startswith("contexts") and each is not None for name, each in gradients.items())
    net.eval()
    with torch.no_grad():
        scores, logits = net.look(torch.randn(1, 3, 64, 64))
    if decoder == "none":
        torch.testing.assert_close(logits, scores / TEMPERATURE)
    if match == "direct":
        _, embedded = net.see(torch.ones(1, 3, 64, 64))
        expected = F.cosine_similarity(embedded[:, None, 1:], net.texts()[None, :, None], dim=-1).unflatten(2, (4, 4))
        torch.testing.assert_close(net.match(net.texts(), embedded, (4, 4)), expected)


def test_taps_are_shares_of_the_depth():
    assert [default_taps(depth, "paper") for depth in (12, 8, 24)] == [(3, 6, 9, 12), (2, 4, 6, 8), (6, 12, 18, 24)]
    assert [default_taps(depth, "released") for depth in (12, 8)] == [(4, 6, 8, 12), (3, 4, 5, 8)]
