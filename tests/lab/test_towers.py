"""The towers: what a training reads of them, which patches it sees, and what is taken from another CLIP."""

from __future__ import annotations

import dataclasses
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from small_pretraining import TINY
from tag2mask.lab.pretrain_recipe import Pretrain
from tag2mask.lab.towers import build_clip, encode_image, kept_patches, readings, warm_start
from tag2mask.lab.vocabulary import CONTEXT, vocabulary
from tag2mask.models.tower import Mean
from tag2mask.models.weights import load_clip
from tag2mask.storybook import CLASSES, embedded_clip
from tag2mask.types import UserError


def test_readings_are_those_of_the_towers():
    model = build_clip(TINY)
    pixels = torch.randn(2, 3, 24, 32)
    encoded = encode_image(model.vision, pixels, None)
    tokens, values, _ = encoded
    torch.testing.assert_close(tokens, model.vision(pixels).tokens)
    before = model.vision(pixels, taps=[0]).taps[0]  # into the last of two blocks
    last = model.vision.blocks[-1]
    torch.testing.assert_close(values, last.attn.value(last.ln_1(before)))
    read = readings(model.vision, encoded)
    torch.testing.assert_close(read.whole, model.vision.project(tokens[:, 0]))
    torch.testing.assert_close(read.mean, model.vision.project(tokens[:, 1:]).mean(1))
    torch.testing.assert_close(read.each, model.vision.project(tokens[:, 1:]))
    torch.testing.assert_close(read.values, model.vision.project(values[:, 1:]))


def test_attention_is_the_mean_of_all_blocks():
    model = build_clip(TINY)
    pixels = torch.randn(2, 3, 24, 32)
    encoded = encode_image(model.vision, pixels, None, attention=True)
    plain = encode_image(model.vision, pixels, None)
    assert plain.attention is None
    torch.testing.assert_close(encoded.tokens, plain.tokens)
    torch.testing.assert_close(encoded.attention, model.vision(pixels, attention=Mean(2)).attention)


def test_left_out_patches_are_not_seen():
    model = build_clip(TINY)
    keep = kept_patches(3, 0, 2, 16, 0.5)
    assert keep.shape == (2, 8)
    assert torch.equal(keep, kept_patches(3, 0, 2, 16, 0.5))
    assert not torch.equal(keep, kept_patches(4, 0, 2, 16, 0.5))
    assert kept_patches(3, 0, 2, 16, 0.0) is None
    pixels = torch.randn(2, 3, 32, 32)
    other = pixels.clone()
    blind = next(i for i in range(16) if i not in keep[0].tolist())
    other[0, :, blind // 4 * 8 :, blind % 4 * 8 :][:, :8, :8] += 5
    first = encode_image(model.vision, pixels, keep, attention=True)
    assert all(map(torch.equal, first, encode_image(model.vision, other, keep, attention=True)))
    seen = int(keep[0, 0])
    other[0, :, seen // 4 * 8 :, seen % 4 * 8 :][:, :8, :8] += 5
    assert not any(map(torch.equal, first, encode_image(model.vision, other, keep, attention=True)))


def test_warm_start_takes_all_that_fits():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = load_clip("storybook-clip", cache=None)
    old = other.model.state_dict()
    words = {word: row for row, word in enumerate(reversed(vocabulary())) if word != "sofa"}
    # the rows in another order, and one word that is not known
    backend = SimpleNamespace(get_vocab=lambda: words)
    other = dataclasses.replace(other, tokenizer=dataclasses.replace(other.tokenizer, backend=backend))
    for layers in (6, 10):
        recipe = Pretrain(layers=layers, side=128)
        model = build_clip(recipe)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        fresh = warm_start(model, other)
        own = model.state_dict()
        last = min(layers, 8) - 1
        for name in ("conv1.weight", "proj", f"transformer.resblocks.{last}.mlp.c_fc.weight"):
            assert torch.equal(own[f"vision.{name}"], old[f"vision.{name}"])
        rows = slice(None, CONTEXT)
        text_positions = "text.positional_embedding"
        assert torch.equal(own[text_positions][rows], old[text_positions][rows])
        # 24 x 24 cells brought to 16 x 16: the corner's new cell lies between the old ones, the class token stays
        positions, table = old["vision.positional_embedding"], own["vision.positional_embedding"]
        grid = positions[1:].T.reshape(1, -1, 24, 24)
        expected = F.interpolate(grid, size=(16, 16), mode="bilinear", align_corners=False)[0].flatten(1).T
        assert torch.equal(table[0], positions[0])
        torch.testing.assert_close(table[1:], expected, atol=1e-5, rtol=0)
        row, their_row = vocabulary()["dog"], words["dog"]
        table = "text.token_embedding.weight"
        assert torch.equal(own[table][row], old[table][their_row])
        row = vocabulary()["sofa"]
        assert [name for name in fresh if name.startswith("word ")] == ["word sofa"]
        assert torch.equal(own[table][row], before[table][row])
        left = [name for name in fresh if name.startswith("vision.")]
        assert all(
            name.startswith(("vision.transformer.resblocks.8", "vision.transformer.resblocks.9")) for name in left
        )
        assert len(left) == (0 if layers == 6 else 2 * 12)
    with pytest.raises(UserError, match="another size or width"):
        warm_start(build_clip(TINY), other)
    assert embedded_clip().is_dir()
    assert len(CLASSES) == 20
