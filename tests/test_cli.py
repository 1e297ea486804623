"""The command line: the whole job on a few scenes, every error on one line, and every command in the docs."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from calls import call
from tag2mask.cli_options import SOME_FAILED
from tag2mask.data.png import read_mask
from tag2mask.ops.crf import engine
from tag2mask.run.folder import Run
from tag2mask.storybook import embedded_clip, render

ROOT = Path(__file__).parents[1]
CLIP = ["--clip", "storybook-clip"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return render(tmp_path_factory.mktemp("scenes"), 6, split="val", size=(96, 128))


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    done = call("label", scenes, "--split", "val", "-o", out, *CLIP, "--mu", "0")
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def photos(scenes, tmp_path):
    """A folder of images with a tags.csv, as a newcomer has it."""
    return folder_of_photos(scenes, tmp_path / "photos")


def folder_of_photos(scenes, out):
    shutil.copytree(scenes / "JPEGImages", out / "holiday")
    text = (scenes / "tags.csv").read_text().replace("JPEGImages/", "holiday/")
    (out / "tags.csv").write_text(text)
    return out


def error_of(*arguments, code=1):
    """The message of a command that fails; it must be one line and no traceback."""
    done = call(*arguments)
    assert done.exit_code == code, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.output
    assert "Traceback" not in done.output
    return lines[0]


def next_of(done):
    """The commands that it says come next."""
    return [line.removeprefix("next: ") for line in done.stdout.splitlines() if line.startswith("next: ")]


def test_label_eval_report_export(scenes, run, tmp_path):
    opened = Run.open(run)
    assert len(opened.ids()) == 6
    assert opened.noted["config"]["data"]["path"] == str(scenes)

    done = call("eval", run)
    assert done.exit_code == 0, done.output
    assert "mIoU" in done.output
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 < metrics["miou"] < 1
    assert metrics["images"] == 6
    assert next_of(done) == [f"tag2mask report {run}"]

    done = call("report", run, "--worst", "3")
    assert done.exit_code == 0
    assert next_of(done) == [f"tag2mask export {run} --to png -o masks/{run.name}"]
    assert "<html" in (run / "report.html").read_text(encoding="utf-8")

    done = call("export", run, "--to", "coco", "-o", tmp_path / "masks.json")
    assert done.exit_code == 0
    (back,) = next_of(done)
    assert back == f"tag2mask import {run} {tmp_path / 'masks.json'}"
    done = call(*shlex.split(back)[1:])
    assert done.exit_code == 0, done.output
    assert next_of(done) == [
        f"tag2mask export {run} --to png -o corrected-masks/{run.name}",
        f"tag2mask train {run} -o nets/{run.name}",
    ]
    assert len(json.loads((tmp_path / "masks.json").read_text())["images"]) == 6
    assert call("export", run, "--to", "png", "-o", tmp_path / "png").exit_code == 0
    for id in opened.ids():
        assert (read_mask(tmp_path / "png" / f"{id}.png") == read_mask(opened.mask_path(id))).all()


def test_a_folder_of_photographs_needs_only_a_path(photos, tmp_path):
    done = call("label", photos, "-o", tmp_path / "run", *CLIP)
    assert done.exit_code == 0, done.output
    assert len(Run.open(tmp_path / "run").ids()) == 6


def test_it_goes_on_and_refuses_other_settings(scenes, run):
    same = ["label", scenes, "--split", "val", "-o", run, *CLIP, "--mu", "0"]
    before = {p: p.stat().st_mtime_ns for p in (run / "masks").rglob("*.png")}
    done = call(*same)
    assert done.exit_code == 0, done.output
    assert {p: p.stat().st_mtime_ns for p in (run / "masks").rglob("*.png")} == before
    assert "--overwrite" in error_of(*same, "--set", "layers=3")


def test_config_with_flags_on_top(scenes, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"clip": "storybook-clip", "masks": {"crf": "none"}, "options": {"layers": 2}}))
    done = call("label", scenes, "--config", config, "-o", tmp_path / "run", "--set", "affinity=mhsa", "--mu", "0.5")
    assert done.exit_code == 0, done.output
    settings = Run.open(tmp_path / "run").settings
    assert settings["options"]["layers"] == 2
    assert settings["options"]["affinity"] == "mhsa"
    assert settings["mask_rule"]["refiner"] is None
    assert settings["mask_rule"]["mu"] == 0.5


def test_prompts_ranks_and_counts_what_it_left_out(scenes):
    done = call("prompts", scenes, *CLIP, "--limit", "4", "--top", "0")
    assert done.exit_code == 0, done.output
    rows = re.findall(r"^ +([\d.]+)  (.+)$", done.output, re.MULTILINE)
    values = [float(value) for value, _ in rows]
    assert len(rows) == 81
    assert "left out" not in done.output
    assert values == sorted(values)
    assert "a clean origami {}." in [template for _, template in rows]
    some = ["--template", "a photo of the {}.", "--template", "a zoetrope of the {}."]
    done = call("prompts", scenes, *CLIP, "--limit", "4", *some)
    assert re.findall(r"^ +[\d.]+  (.+)$", done.output, re.MULTILINE) == ["a photo of the {}."]
    assert re.search(r"left out: 1 templates .*zoetrope", done.output)


def test_methods_doctor_version_and_help():
    assert "clip-es" in call("methods").output
    assert "box_threshold" in call("methods", "clip-es").output
    assert "bfloat16" in call("doctor").output
    assert f"dense CRF: {'compiled loops (numba' if engine() == 'loops' else 'torch'}" in call("doctor").output
    assert call("--version").output.startswith("tag2mask ")
    for command in ("demo", "label", "eval", "report", "export", "prompts", "methods", "fetch", "doctor"):
        done = call(command, "--help")
        assert done.exit_code == 0
        assert len(done.output) > 200
    assert call("storybook", "render", "--help").exit_code == 0


def test_train_lists_and_explains_its_settings():
    told = call("train", "--semi", "cct", "--list").output
    assert 'architecture="cct-small"' in told
    assert "steps: optimiser steps." in told


def test_one_bad_image_is_counted_and_the_rest_is_done(photos, tmp_path):
    (photos / "holiday" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    (photos / "holiday" / "empty.jpg").write_bytes(b"")
    with (photos / "tags.csv").open("a") as file:
        file.write("holiday/broken.jpg,cat\nholiday/empty.jpg,cat\n")
    done = call("label", photos, "-o", tmp_path / "run", *CLIP)
    assert done.exit_code == SOME_FAILED, done.output
    assert "broken" in done.output
    assert len(Run.open(tmp_path / "run").ids()) == 6


def test_unknown_classes_are_listed_with_counts_before_any_work(photos, tmp_path):
    with (photos / "tags.csv").open("a") as file:
        file.write("holiday/val_000_000000.jpg,hrose\n")
    message = error_of("label", photos, "--classes", "voc12", "-o", tmp_path / "run", *CLIP)
    assert "hrose" in message
    assert "horse" in message
    assert not (tmp_path / "run").exists()


def test_tags_of_two_meanings_are_asked_and_answered(photos, tmp_path):
    (photos / "tags.csv").write_text('image,labels\nholiday/val_000_000000.jpg,"cow,horse"\n')
    message = error_of("label", photos, "-o", tmp_path / "run", *CLIP)
    assert "--separator ','" in message
    assert "--separator none" in message
    done = call("label", photos, "-o", tmp_path / "run", "--separator", ",", *CLIP)
    assert done.exit_code == 0, done.output
    assert "'cow' (1), 'horse' (1)" in done.stderr
    assert call("report", tmp_path / "run").exit_code == 0  # the answer is kept with the run
    assert "keep" in error_of("label", photos, "-o", tmp_path / "other", "--twins", "both", *CLIP)


def test_words_that_the_clip_does_not_know(photos, tmp_path):
    (photos / "tags.csv").write_text("image,labels\nholiday/val_000_000000.jpg,zeppelin\n")
    assert "'zeppelin'" in error_of("label", photos, "-o", tmp_path / "run", *CLIP)
    done = call("label", photos, "-o", tmp_path / "run", *CLIP, "--set", "allow_unknown=true")
    assert done.exit_code == 0, done.output
    assert "zeppelin" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["label", "{scenes}", "-m", "clipes"], "did you mean 'clip-es'"),
        (["label", "{scenes}", "--set", "lambda=1"], "known:"),
        (["label", "{scenes}", "--set", "layers"], "expected NAME=VALUE"),
        (["label", "{scenes}", "--crf", "clip-ess"], "clip-es"),
        (["label", "{scenes}", "--background", "powr:1"], "expected"),
        (["label", "{scenes}", "--mu", "7"], "masks.mu"),
        (["label", "{scenes}", "--shard", "4/4", "--clip", "storybook-clip"], "shard"),
        (["label", "{scenes}", "--clip", "/no/such/clip"], "/no/such/clip"),
        (["label", "{scenes}", "--clip", "storybook-clip", "--device", "tpu"], "expected auto, cpu"),
        (["label", "{scenes}", "--classes", "voc21", "--clip", "storybook-clip"], "voc12"),
        (["label", "/no/such/folder"], "/no/such/folder"),
        (["label"], "no data"),
        (["label", "--config", "/no/such.yaml"], "no config"),
        (["eval", "{scenes}"], "no run of tag2mask"),
        (["report", "/no/such/run"], "no run of tag2mask"),
        (["storybook", "render", "--split", "vall"], "val"),
    ],
    ids=lambda value: " ".join(value[1:4]) if isinstance(value, list) else "",
)
def test_errors_are_one_line_and_say_what_to_do(scenes, tmp_path, arguments, said):
    arguments = [a.format(scenes=scenes) for a in arguments]
    if arguments[0] == "label":
        arguments += ["-o", str(tmp_path / "run")]
    assert said in error_of(*arguments)
    assert not (tmp_path / "run").exists()


def test_no_clip_named_and_none_cached(scenes, tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "nothing"))
    message = error_of("label", scenes, "-o", tmp_path / "run")
    assert "tag2mask fetch openai/clip-vit-base-patch16" in message


def test_a_checkpoint_of_the_wrong_shape(scenes, tmp_path):
    folder = shutil.copytree(embedded_clip(), tmp_path / "clip")
    state = load_file(folder / "model.safetensors")
    state["visual_projection.weight"] = state["visual_projection.weight"][:, :100].clone()
    save_file(state, folder / "model.safetensors")
    message = error_of("label", scenes, "-o", tmp_path / "run", "--clip", folder)
    assert "(128, 100)" in message
    assert "(128, 192)" in message


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


@pytest.mark.parametrize("kind", ["plain", "torch"])
def test_a_malicious_checkpoint_is_not_executed(scenes, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "clip.pt"
    if kind == "plain":
        path.write_bytes(pickle.dumps(Evil()))
    else:
        torch.save({"weights": Evil()}, path)
    error_of("label", scenes, "-o", tmp_path / "run", "--clip", path)
    assert not (tmp_path / "evil-was-here").exists()


def test_debug_shows_the_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "tag2mask", "--debug", "eval", "/no/such/run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_importing_is_quick_and_loads_no_torch():
    code = (
        "import sys, tag2mask; assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(dir(tag2mask))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "label" in done.stdout


def test_every_public_name_is_there():
    import tag2mask

    for name in tag2mask.__all__:
        assert getattr(tag2mask, name) is not None
    with pytest.raises(AttributeError, match="lable"):
        tag2mask.lable  # noqa: B018
