"""Loading a CLIP from every place it may lie in, and what the loaded CLIP says of texts."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from tag2mask.models import hub, weights
from tag2mask.models.convert import from_hf_state, from_openai_state
from tag2mask.models.tower import Positions
from tag2mask.models.untrained import untrained
from tag2mask.models.weights import CLIP, fetch, load_clip
from tag2mask.types import UserError
from tiny_clips import Evil, openai_state, oracle, script, write_tokenizer

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


def into_hub_cache(folder: Path, repository: str, hub: Path) -> None:
    """Lay a folder where the hub's client keeps its downloads."""
    at = hub / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, at / "snapshots" / "0123456789abcdef")
    (at / "refs").mkdir()
    (at / "refs" / "main").write_text("0123456789abcdef")


def test_hub_repositories_come_from_the_cache_alone(hf_folder, tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asked.append(a) or [][0])
    with pytest.raises(UserError, match=r"about 600 MB.*`tag2mask fetch openai/clip-vit-base-patch16`"):
        load_clip()
    with pytest.raises(UserError, match=r"`tag2mask fetch some/clip`"):
        load_clip("some/clip")
    with pytest.raises(UserError, match=r"no folder, \.pt file or hub repository") as caught:
        load_clip("./nowhere/clip.pt")
    assert "fetch" not in str(caught.value)
    folder = hf_folder()
    into_hub_cache(folder, "some/clip", tmp_path / "hub")
    into_hub_cache(folder, weights.DEFAULT_CLIP, tmp_path / "hub")
    assert load_clip("some/clip").name == "some/clip"
    assert load_clip().name == weights.DEFAULT_CLIP
    with pytest.raises(UserError, match="fetch"):
        load_clip("some/clip", revision="other")
    (folder / "model.safetensors").unlink()  # a repository of which only the tokenizer was ever asked for
    into_hub_cache(folder, "half/clip", tmp_path / "hub")
    with pytest.raises(UserError, match=r"`tag2mask fetch half/clip`"):
        load_clip("half/clip")
    assert asked == []


@pytest.fixture(autouse=True)
def reachable(monkeypatch):
    """The hub answers, whatever network there is: no test downloads anything."""
    monkeypatch.setattr("tag2mask.models.find_clip.why_unreachable", lambda: None)


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], {"model.safetensors"}),
        (["pytorch_model.bin", "flax_model.msgpack"], {"pytorch_model.bin"}),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"],
            {"model.safetensors.index.json", "model-*.safetensors"},
        ),
    ],
)
def test_fetch_takes_settings_tokenizer_and_weights_only(monkeypatch, tmp_path, listing, expected) -> None:
    asked = {}

    def download(repository, *, revision, allow_patterns):
        asked.update(repository=repository, revision=revision, patterns=set(allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(
        "huggingface_hub.HfApi.list_repo_files", lambda self, repository, revision: ["config.json", *listing]
    )
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetch("some/clip", revision="v1") == tmp_path
    assert (asked["repository"], asked["revision"]) == ("some/clip", "v1")
    small = {"config.json", "preprocessor_config.json", "tokenizer.json", "vocab.json", "merges.txt"}
    assert asked["patterns"] == small | expected


def test_fetch_says_what_went_wrong(monkeypatch) -> None:
    def fail(self, repository, revision):
        raise OSError("no route to host\nlong trace")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repository, revision: ["README.md"])
    with pytest.raises(UserError, match=r"holds no config\.json"):
        fetch("some/clip")
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fail)
    with pytest.raises(UserError, match=r"could not be fetched: no route to host; check") as caught:
        fetch("some/clip")
    assert "\n" not in str(caught.value)


OFFLINE = (
    r"^some/clip could not be fetched: .*HF_ENDPOINT.*config\.json.*model\.safetensors.*"
    r"--clip FOLDER; of a DINO --dino FOLDER\)$"
)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: "[Errno -3] Temporary failure in name resolution", "name resolution"),
        (lambda: time.sleep(3), "no answer within 0.05 s"),
    ],
)
def test_fetch_without_a_network_says_what_to_do_and_does_not_wait(monkeypatch, answer, reason) -> None:
    """Also where the network neither answers nor refuses; the hub's own client is not asked."""
    monkeypatch.undo()
    monkeypatch.setattr("tag2mask.models.hub._ask", lambda address: answer())
    monkeypatch.setattr("tag2mask.models.hub.SECONDS", 0.05 if "answer within" in reason else 20)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UserError, match=OFFLINE) as caught:
        fetch("some/clip")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fetch_asks_the_mirror_and_any_answer_will_do(monkeypatch) -> None:
    asked = []

    class Session:
        def head(self, address, timeout):
            asked.append((address, timeout))
            if address.endswith("gone"):
                raise OSError("no route to host\nlong trace")
            return "503"

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://mirror.example")
    assert hub.why_unreachable() is None
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://mirror.example/gone")
    assert hub.why_unreachable() == "https://mirror.example/gone cannot be reached (no route to host)"
    assert asked == [("https://mirror.example", hub.SECONDS), ("https://mirror.example/gone", hub.SECONDS)]
    assert hub.SECONDS < 5
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    assert "HF_HUB_OFFLINE" in hub.why_unreachable()


def test_storybook_clip_warns(hf_folder, tmp_path, monkeypatch) -> None:
    folder = hf_folder()
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path / package)
    with pytest.raises(UserError, match="missing from this installation"):
        load_clip("storybook-clip")
    shutil.copytree(folder, tmp_path / "tag2mask" / "storybook" / "weights" / "clip")
    with pytest.warns(UserWarning, match="knows no photographs") as caught:
        assert load_clip("storybook-clip").name == "storybook-clip"
    assert caught[0].filename == __file__  # not a file of the package


@pytest.mark.filterwarnings("ignore:this processor has no bfloat16")
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_openai_s_pt(tmp_path, kind) -> None:
    state = openai_state(kind)
    script(state, tmp_path / "ViT.pt")
    with pytest.raises(UserError, match=r"holds no tokenizer.*--tokenizer"):
        load_clip(tmp_path / "ViT.pt")
    write_tokenizer(tmp_path)
    clip = load_clip(tmp_path / "ViT.pt", tokenizer=tmp_path / "tokenizer.json")
    assert len(clip.model.vision.blocks) == (3 if kind == "vit" else 0)
    assert clip.patch == (8 if kind == "vit" else 32)
    assert {parameter.dtype for parameter in clip.model.parameters()} == {torch.float32}
    direct = from_openai_state(state)
    with torch.no_grad():
        expected = F.normalize(direct.text(torch.tensor([[1, 2, 5, 9]]), torch.tensor([3])), dim=-1)
    torch.testing.assert_close(clip.text_features(["a cat"]), expected, atol=1e-6, rtol=0)
    assert torch.equal(direct.text.text_projection, state["text_projection"].float())
    if kind == "resnet":
        low = load_clip(tmp_path / "ViT.pt", tokenizer=tmp_path, precision="bfloat16").model.vision
        with torch.no_grad():
            pooled = low.embedding(torch.zeros(1, 3, 64, 64), readout="class")
        assert (low.layer4[0].conv1.weight.dtype, pooled.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(("kind", "expected"), [("vit", "9806c8465a458c8a"), ("resnet", "7c04860f9526f7b5")])
def test_a_run_knows_its_clip_again(kind, expected) -> None:
    """Run folders keep the fingerprint: they must know the same CLIP again whatever the code looks like by then."""
    words = SimpleNamespace(sha256="w", context=5, end="x")
    facts = ("n", "s", (1, 1, 1), (1, 1, 1), torch.device("cpu"), torch.float32)
    clip = CLIP(from_openai_state(openai_state(kind)), *facts, words, None)
    assert clip.fingerprint[:16] == expected
    clip.model.vision.conv1.patch = 3  # what weights do not say, of any module
    assert clip.fingerprint[:16] != expected


def test_a_tokenizer_from_the_hub_cache_serves_openai_s_pt(tmp_path) -> None:
    torch.save(openai_state(), tmp_path / "ViT.pt")
    (tmp_path / "tok").mkdir()
    write_tokenizer(tmp_path / "tok")
    into_hub_cache(tmp_path / "tok", "openai/clip-vit-base-patch32", tmp_path / "hub")
    clip = load_clip(tmp_path / "ViT.pt", activation="quick_gelu")
    assert clip.tokenizer.encode("a cat").ids == (1, 2, 5, 9)


def test_pt_files_of_other_models(tmp_path) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / "x.pt"
    torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(UserError, match=r"x\.pt: the weights are no CLIP.*'text_projection' is missing"):
        load_clip(path, tokenizer=tmp_path)
    torch.save(openai_state() | {"visual.conv1.weight": torch.zeros(128, 3)}, path)
    with pytest.raises(UserError, match="wrong rank"):
        load_clip(path, tokenizer=tmp_path)
    torch.save(openai_state() | {"visual.conv1.weight": torch.zeros(100, 3, 8, 8)}, path)
    with pytest.raises(UserError, match="100 wide, expected a multiple of 64"):
        load_clip(path, tokenizer=tmp_path)
    torch.save(openai_state() | {"visual.positional_embedding": torch.zeros(12, 128)}, path)
    with pytest.raises(UserError, match=r"visual\.positional_embedding is \(12, 128\), expected \(10, 128\)"):
        load_clip(path, tokenizer=tmp_path)
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"x\.onnx: was not read: it is a text file of 1 bytes"):
        load_clip(tmp_path / "x.onnx")


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


# --- open_clip, wrappings, activations


def open_clip_folder(folder: Path, *, quick: bool | None = None, names: str = "open_clip_model.safetensors") -> Path:
    """As open_clip puts a CLIP on the hub."""
    folder.mkdir(exist_ok=True)
    model: dict[str, object] = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 24, "layers": 3, "width": 128, "patch_size": 8, "head_width": 32},
        "text_cfg": {"context_length": 8, "width": 64, "heads": 2, "layers": 2},
    } | ({} if quick is None else {"quick_gelu": quick})
    config = {"model_cfg": model, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if names.endswith(".safetensors"):
        safetensors.torch.save_file(openai_state(), folder / names)
    else:
        torch.save({"state_dict": {f"module.{n}": v for n, v in openai_state().items()}, "epoch": 32}, folder / names)
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("names", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize(("quick", "activation"), [(None, "gelu"), (False, "gelu"), (True, "quick_gelu")])
def test_open_clip_s_layout(tmp_path, names, quick, activation) -> None:
    folder = open_clip_folder(tmp_path / "x", quick=quick, names=names)
    expected = from_openai_state(openai_state(), activation=activation, vision_heads=4, text_heads=2)
    pixels, ids = torch.randn(1, 3, 24, 24), torch.tensor([[1, 2, 5, 9]])
    for source in (folder, folder / names):
        clip = load_clip(source)
        assert (clip.mean, clip.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        with torch.no_grad():
            assert torch.equal(clip.model.vision(pixels).tokens, expected.vision(pixels).tokens)
            assert torch.equal(clip.model.text(ids, torch.tensor([3])), expected.text(ids, torch.tensor([3])))
    other = "gelu" if activation == "quick_gelu" else "quick_gelu"
    with pytest.raises(UserError, match=rf"open_clip_config.json says {activation}, --activation {other}"):
        load_clip(folder, activation=other)


def test_a_folder_of_both_layouts_is_read_as_hugging_face_s(hf_folder) -> None:
    folder = hf_folder(hidden_act="gelu")
    open_clip_folder(folder, quick=True)
    assert load_clip(folder).model.text.transformer.resblocks[0].mlp.activation == "gelu"


def test_damaged_open_clip_settings(tmp_path) -> None:
    folder = open_clip_folder(tmp_path / "x")
    for text, message in (
        ("[]", "expected an object"),
        ('{"model_cfg": {}}', "describes no CLIP"),
        ("{", "cannot be read"),
    ):
        (folder / "open_clip_config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_clip(folder)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.clip."])
def test_a_bare_state_dict_asks_for_its_activation(tmp_path, prefix) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / "clip.ckpt"
    torch.save({"state_dict": {f"{prefix}{name}": value for name, value in openai_state().items()}}, path)
    with pytest.raises(UserError, match=r"--activation quick_gelu .* or --activation gelu"):
        load_clip(path, tokenizer=tmp_path)
    found = {}
    for activation in ("quick_gelu", "gelu"):
        clip = load_clip(path, tokenizer=tmp_path, activation=activation)
        found[activation] = clip.text_features(["a cat"])
        direct = from_openai_state(openai_state(), activation=activation).text
        with torch.no_grad():
            row = F.normalize(direct(torch.tensor([[1, 2, 5, 9]]), torch.tensor([3])), dim=-1)
        torch.testing.assert_close(found[activation], row, atol=1e-6, rtol=0)
    assert not torch.allclose(found["quick_gelu"], found["gelu"], atol=1e-5)


def test_a_clip_inside_another_network(tmp_path) -> None:
    write_tokenizer(tmp_path)
    inside = {f"encoder.{name}": value for name, value in openai_state().items()}
    torch.save(inside | {"decoder.weight": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.warns(UserWarning, match=r"1 tensors outside of 'encoder\.', the CLIP in it, were left out"):
        load_clip(tmp_path / "x.pt", tokenizer=tmp_path, activation="gelu")
    torch.save(inside | {f"momentum.{name}": value for name, value in openai_state().items()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"2 networks of one kind, under 'encoder\.', 'momentum\.'"):
        load_clip(tmp_path / "x.pt", tokenizer=tmp_path, activation="gelu")


def test_openai_s_merges_beside_openai_s_pt_are_taken(tmp_path) -> None:
    script(openai_state(), tmp_path / "ViT.pt")
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(b"no merges")
    with pytest.raises(UserError, match=r"bpe_simple_vocab_16e6\.txt\.gz: is no tokenizer"):
        load_clip(tmp_path / "ViT.pt")


def test_fetch_of_an_open_clip_repository(monkeypatch, tmp_path) -> None:
    asked = []
    listing = [
        "open_clip_config.json",
        "open_clip_pytorch_model.bin",
        "open_clip_model.safetensors",
        "tokenizer.json",
    ]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repository, revision: listing)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *_, allow_patterns, **__: asked.extend(allow_patterns) or str(tmp_path),
    )
    fetch("some/clip")
    assert {"open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"} <= set(asked)
    assert "open_clip_pytorch_model.bin" not in asked
