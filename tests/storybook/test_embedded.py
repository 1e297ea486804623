from __future__ import annotations

import hashlib
import json
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from tag2mask.classes import load_classes
from tag2mask.storybook import draw_scene, embedded_clip
from tag2mask.storybook.embedded import CLIP_SHA256


@pytest.fixture(scope="module")
def loaded():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = CLIPModel.from_pretrained(
            embedded_clip(), dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(embedded_clip(), local_files_only=True)
    assert not any(info.values())
    return model.eval(), tokenizer


def test_weights_are_those_of_the_card():
    data = (embedded_clip() / "model.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == CLIP_SHA256
    assert CLIP_SHA256 in (embedded_clip() / "MODEL_CARD.md").read_text()
    assert len(data) < 9_000_000


def test_pixel_statistics_are_clips():
    settings = json.loads((embedded_clip() / "preprocessor_config.json").read_text())
    assert settings["image_mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert settings["image_std"] == [0.26862954, 0.26130258, 0.27577711]


def test_tokenizer_knows_clip_es_words_and_shows_unknown_ones(loaded):
    _, tokenizer = loaded
    texts = load_classes("voc12").texts["clip-es"]
    for phrase in (*texts.names, *texts.background):
        ids = tokenizer(texts.templates[0].format(phrase)).input_ids
        assert ids[0] == 1
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in ids, phrase
    assert tokenizer.unk_token_id not in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    known, unknown = (tokenizer(text).input_ids for text in ("a dog", "a zebra"))
    assert unknown == [*known[:2], tokenizer.unk_token_id, tokenizer.eos_token_id]
    assert tokenizer("A Bird.").input_ids == tokenizer("a bird .").input_ids


def test_clip_recognises_the_figures(loaded):
    """Zero-shot mean average precision. The demo's worth rests on it; by chance it would be about 0.15."""
    model, tokenizer = loaded
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    scenes = [draw_scene(seed, (192, 192)) for seed in range(24)]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255
    texts = load_classes("voc12").texts["clip-es"].names
    tokens = tokenizer([f"a clean origami {name}." for name in texts], padding=True, return_tensors="pt")
    with torch.inference_mode():
        features = model.visual_projection(model.vision_model((images - mean) / std).pooler_output)
        words = model.text_projection(model.text_model(**tokens).pooler_output)
        likeness = torch.nn.functional.normalize(features) @ torch.nn.functional.normalize(words).T
    there = np.array([[tag in scene.tags for tag in range(1, 21)] for scene in scenes])
    precisions = []
    for column in np.flatnonzero(there.any(0)):
        ranked = there[np.argsort(-likeness[:, column].numpy()), column]
        precisions.append((np.cumsum(ranked) / np.arange(1, 25))[ranked].mean())
    assert np.mean(precisions) > 0.8
