"""Loading a CLIP from a folder, and what the loaded CLIP says of texts."""

from __future__ import annotations

import hashlib
import json
import shutil
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from tag2mask.models.convert import from_hf_state, from_openai_state
from tag2mask.models.tower import Positions
from tag2mask.models.untrained import untrained
from tag2mask.models.weights import CLIP, load_clip
from tag2mask.types import UserError
from tiny_clips import Evil, openai_state, oracle

PIXELS = torch.randn(1, 3, 24, 40, generator=torch.Generator().manual_seed(1))


def same_weights(a: CLIP, b: CLIP) -> bool:
    pairs = zip(a.model.state_dict().items(), b.model.state_dict().items(), strict=True)
    return all(m == n and torch.equal(x, y) for (m, x), (n, y) in pairs)


@torch.no_grad()
def test_a_folder_as_transformers_saves_it(hf_folder) -> None:
    folder = hf_folder()
    clip = load_clip(folder)
    theirs = oracle()
    ids = torch.tensor([[1, 2, 3, 4, 5, 9]])
    expected = F.normalize(theirs.text_projection(theirs.text_model(ids).pooler_output), dim=-1)
    torch.testing.assert_close(clip.text_features(["A photo of CAT."]), expected, atol=1e-5, rtol=0)
    image = theirs.vision_model(PIXELS, interpolate_pos_encoding=True).last_hidden_state
    got = clip.model.vision(PIXELS, positions=Positions("bicubic")).tokens
    torch.testing.assert_close(got, image, atol=1e-5 * float(image.abs().max()), rtol=0)
    assert (clip.mean, clip.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert clip.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (clip.name, clip.patch, clip.dtype) == (str(folder), 8, torch.float32)
    assert not clip.model.training
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


def test_without_statistics_openai_s_are_taken(hf_folder) -> None:
    folder = hf_folder()
    (folder / "preprocessor_config.json").unlink()
    assert load_clip(folder).mean == (0.48145466, 0.4578275, 0.40821073)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [1, 2]}')
    with pytest.raises(UserError, match="three numbers"):
        load_clip(folder)


@pytest.mark.parametrize("layout", ["sharded", "bin", "float16"])
def test_other_files_of_the_same_weights(hf_folder, layout) -> None:
    folder = hf_folder()
    whole = load_clip(folder)
    model = oracle()
    (folder / "model.safetensors").unlink()
    if layout == "sharded":
        model.save_pretrained(folder, max_shard_size="100KB")
        shards = sorted(folder.glob("model-*.safetensors"))
        assert len(shards) > 1
        digests = "".join(hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards)
        assert load_clip(folder).sha256 == hashlib.sha256(digests.encode()).hexdigest()
    elif layout == "bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.half().save_pretrained(folder)
        half = load_clip(folder)
        assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
        assert torch.equal(half.model.vision.proj, whole.model.vision.proj.half().float())
        return
    assert same_weights(load_clip(folder), whole)


def test_a_shard_outside_the_folder_is_refused(hf_folder) -> None:
    folder = hf_folder()
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="expected files beside it"):
        load_clip(folder)


def test_safetensors_come_before_pickles(hf_folder) -> None:
    folder = hf_folder()
    (folder / "pytorch_model.bin").write_bytes(b"never looked at")
    load_clip(folder)


def test_a_malicious_bin_is_never_run(hf_folder, tmp_path) -> None:
    folder = hf_folder()
    (folder / "model.safetensors").unlink()
    evil = Evil(tmp_path / "it-ran", "system")
    torch.save({"logit_scale": evil}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: was not read.*Nothing in it was run"):
        load_clip(folder)
    assert not evil.marker.exists()


def test_tensors_that_do_not_fit_are_named_with_both_shapes(hf_folder) -> None:
    folder = hf_folder()
    state = safetensors.torch.load_file(folder / "model.safetensors")
    del state["vision_model.encoder.layers.1.self_attn.k_proj.bias"]
    state["visual_projection.weight"] = torch.zeros(24, 40)
    state["vision_model.embeddings.position_ids"] = torch.arange(17)  # old checkpoints hold it; no weight
    state["adapter.weight"] = torch.zeros(2)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_clip(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "vision_model.encoder.layers.1.self_attn.k_proj.bias is missing, expected (48,)" in message
    assert "visual_projection.weight is (24, 40), expected (24, 48)" in message
    assert "adapter.weight (2,) is not expected" in message
    assert "position_ids" not in message
    assert "\n" not in message


def test_weights_of_another_config(hf_folder) -> None:
    folder = hf_folder()
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_size"], config["vision_config"]["intermediate_size"] = 96, 384
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"is \(48,.*expected \(96,.* and \d+ more"):
        load_clip(folder)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("model_type",), "siglip", "model_type 'siglip'"),
        (("vision_config", "hidden_act"), "relu", "hidden_act 'relu'"),
        (("text_config", "intermediate_size"), 100, "intermediate_size 100"),
        (("text_config", "num_attention_heads"), 5, "5 heads"),
        (("vision_config", "patch_size"), 0, "sizes that make no model"),
        (("vision_config", "image_size"), "big", "sizes that make no model"),
        (("vision_config", "layer_norm_eps"), "x", "sizes that make no model"),
        (("text_config", "layer_norm_eps"), None, "sizes that make no model"),
        (("text_config",), 5, "text_config 5, expected an object"),
        (("vision_config",), [1], r"vision_config \[1\], expected an object"),
    ],
)
def test_configs_of_other_models(hf_folder, where, value, message) -> None:
    folder = hf_folder()
    config = json.loads((folder / "config.json").read_text())
    *parents, leaf = where
    at = config
    for parent in parents:
        at = at[parent]
    at[leaf] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_clip(folder)


def test_damaged_folders(hf_folder) -> None:
    folder = hf_folder()
    weights_file = folder / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors: was not read"):
        load_clip(folder)
    weights_file.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        load_clip(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match="expected an object"):
        load_clip(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        load_clip(folder)


@pytest.mark.parametrize(("eos", "text"), [(2, "a photo of a dog"), (3, "a photo of a dog"), (9, "dog </s> cat")])
@torch.no_grad()
def test_where_a_text_ends(hf_folder, eos, text) -> None:
    """transformers reads at the largest id where config.json says 2, as old ones do, else at the first end token."""
    clip = load_clip(hf_folder(eos=eos))
    theirs = oracle(eos=eos)
    ids = torch.tensor([clip.tokenizer.encode(text).ids])
    expected = F.normalize(theirs.text_projection(theirs.text_model(ids).pooler_output), dim=-1)
    torch.testing.assert_close(clip.text_features([text]), expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:this processor has no bfloat16")
@torch.no_grad()
def test_lower_precision_before_the_last_block_only(hf_folder) -> None:
    folder = hf_folder()
    full, low = load_clip(folder), load_clip(folder, precision="bfloat16")
    dtype = torch.bfloat16
    assert low.dtype == dtype
    types = {name: parameter.dtype for name, parameter in low.model.named_parameters()}
    before = ("vision.conv1", "vision.ln_pre", *(f"vision.transformer.resblocks.{i}." for i in range(3)))
    assert {name for name, kind in types.items() if kind == dtype} == {n for n in types if n.startswith(before)}
    got, expected = low.model.vision(PIXELS), full.model.vision(PIXELS)
    assert got.tokens.dtype == torch.float32
    spread = expected.tokens.std()
    assert 0 < (got.tokens - expected.tokens).abs().mean() < 0.05 * spread
    assert torch.equal(low.text_features(["a cat"]), full.text_features(["a cat"]))


def test_settings_that_do_not_exist(hf_folder) -> None:
    folder = hf_folder()
    with pytest.raises(UserError, match=r"float8.*float32, bfloat16, float16"):
        load_clip(folder, precision="float8")
    with pytest.raises(UserError, match="abacus"):
        load_clip(folder, device="abacus")


def test_storybook_clip_warns(hf_folder, tmp_path, monkeypatch) -> None:
    folder = hf_folder()
    monkeypatch.setattr("tag2mask.models.embedded.WEIGHTS", tmp_path)
    with pytest.raises(UserError, match="missing from this installation"):
        load_clip("storybook-clip")
    shutil.copytree(folder, tmp_path / "clip")
    with pytest.warns(UserWarning, match="knows no photographs") as caught:
        assert load_clip("storybook-clip").name == "storybook-clip"
    assert caught[0].filename == __file__  # not a file of the package


@pytest.mark.parametrize(("kind", "expected"), [("vit", "9806c8465a458c8a"), ("resnet", "7c04860f9526f7b5")])
def test_a_run_knows_its_clip_again(kind, expected) -> None:
    """Run folders keep the fingerprint: they must know the same CLIP again whatever the code looks like by then."""
    words = SimpleNamespace(sha256="w", context=5, end="x")
    facts = ("n", "s", (1, 1, 1), (1, 1, 1), torch.device("cpu"), torch.float32)
    clip = CLIP(from_openai_state(openai_state(kind)), *facts, words, None)
    assert clip.fingerprint[:16] == expected
    clip.model.vision.conv1.patch = 3  # what weights do not say, of any module
    assert clip.fingerprint[:16] != expected


def test_unknown_words_stop_or_warn(hf_folder) -> None:
    clip = load_clip(hf_folder())
    assert clip.unknown("a clean photo") == ["clean"]
    with pytest.raises(UserError, match=r"does not know 'clean', 'origami' in 'a clean origami cat' \(and words"):
        clip.text_features(["a cat", "a clean origami cat", "a zebra"])
    with pytest.warns(UserWarning, match="does not know 'zebra'"):
        rows = clip.text_features(["a zebra"], allow_unknown=True)
    assert rows.shape == (1, 24)


def test_features_do_not_depend_on_their_company(hf_folder) -> None:
    clip = load_clip(hf_folder(), cache=None)
    words = ("cat", "dog", "the red cat", "red", "a", "of the dog")
    texts = [f"{first} {second}" for first in words for second in ("cat", "photo of", "dog")] + ["cat cat"]
    together = clip.text_features(texts)  # more than one batch
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(texts)))
    assert torch.equal(together[0], together[-1])
    assert len(together.unique(dim=0)) == len(set(texts))
    for i in (0, 7, 17):
        clip.cache.memory.clear()
        assert torch.equal(clip.text_features(texts[i : i + 1])[0], together[i])
    assert clip.text_features([]).shape == (0, 24)


def test_ensemble_normalises_each_then_the_mean(hf_folder) -> None:
    clip = load_clip(hf_folder())
    templates = ["a photo of a {}.", "the {}", "red {} a"]
    rows = [clip.text_features([template.format(name) for template in templates]) for name in ("cat", "dog")]
    expected = F.normalize(torch.stack([each.mean(0) for each in rows]), dim=-1)
    torch.testing.assert_close(clip.ensemble(["cat", "dog"], templates), expected, atol=1e-6, rtol=0)
    for wrong in ([], ["a photo"], ["{} and {}"]):
        with pytest.raises(UserError, match=r"each with one \{\}"):
            clip.ensemble(["cat"], wrong)


def test_text_features_are_computed_once(hf_folder, tmp_path, monkeypatch) -> None:
    folder, kept = hf_folder(), tmp_path / "tag2mask-cache"
    first = load_clip(folder).text_features(["a cat", "a dog"])
    assert len(list(kept.iterdir())) == 1
    again = load_clip(folder)
    monkeypatch.setattr(again.model.text, "forward", None)
    assert torch.equal(again.text_features(["a dog", "a cat"]), first.flip(0))


def test_other_weights_or_settings_never_share_features(hf_folder, tmp_path) -> None:
    folder = hf_folder()
    load_clip(folder).text_features(["a cat"])
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(config))
    gelu = load_clip(folder).text_features(["a cat"])
    theirs = oracle()
    state = theirs.state_dict()
    with torch.no_grad():
        model = from_hf_state(state, config)
        expected = F.normalize(model.text(torch.tensor([[1, 2, 5, 9]]), torch.tensor([3])), dim=-1)
    torch.testing.assert_close(gelu, expected, atol=1e-6, rtol=0)
    assert len(list((tmp_path / "tag2mask-cache").iterdir())) == 2
    shutil.rmtree(tmp_path / "tag2mask-cache")
    load_clip(folder, cache=None).text_features(["a cat"])
    assert not (tmp_path / "tag2mask-cache").exists()
    load_clip(folder, cache=tmp_path / "mine").text_features(["a cat"])
    assert len(list((tmp_path / "mine").iterdir())) == 1


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.4]}),
        ("preprocessor_config.json", {"image_std": [0.4, 0.5, 0.7]}),
        ("config.json", {"vision_config": {"num_attention_heads": 1}}),
        ("config.json", {"text_config": {"num_attention_heads": 1}}),
        ("config.json", {"vision_config": {"hidden_act": "gelu"}}),
        ("config.json", {"text_config": {"hidden_act": "gelu"}}),
        ("config.json", {"vision_config": {"layer_norm_eps": 0.1}}),
        ("config.json", {"text_config": {"layer_norm_eps": 0.1}}),
        ("config.json", {"text_config": {"eos_token_id": 8}}),
        ("tokenizer.json", {"normalizer": None}),
    ],
)
def test_the_fingerprint_knows_what_the_weights_do_not(hf_folder, file, change) -> None:
    folder = hf_folder()
    before = load_clip(folder)
    assert load_clip(folder).fingerprint == before.fingerprint
    settings = json.loads((folder / file).read_text())
    for key, value in change.items():
        settings[key] = {**settings[key], **value} if isinstance(value, dict) else value
    (folder / file).write_text(json.dumps(settings))
    after = load_clip(folder)
    assert after.sha256 == before.sha256
    assert after.fingerprint != before.fingerprint


def test_the_fingerprint_of_an_untrained_copy_is_another(hf_folder) -> None:
    clip = load_clip(hf_folder())
    assert len({clip.fingerprint, untrained(clip, 0).fingerprint, untrained(clip, 1).fingerprint}) == 3
