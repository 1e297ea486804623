"""CLIPs of OpenAI and open_clip in their own files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from tag2mask.models.convert import from_openai_state
from tag2mask.models.weights import load_clip
from tag2mask.types import UserError
from tiny_clips import openai_state, script, write_tokenizer


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
