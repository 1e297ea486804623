"""Networks for other programs: onnxruntime agrees with torch on drawn scenes, and nothing foreign is replaced."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from calls import call
from tag2mask.classes import load_classes
from tag2mask.segment.network import SegmentationNet, build_network, load_network, save_network
from tag2mask.segment.saved import NetworkConfig
from tag2mask.stages.export_network import WholeSize, compare, export_network
from tag2mask.storybook.scenes import draw_scene
from tag2mask.types import UserError

CLASSES = load_classes("voc12")
TINY: dict[str, dict[str, Any]] = {
    "small": {},
    "deeplabv2-resnet101": {"width": 4, "blocks": (1, 1, 1, 1), "frozen_norm": False},
    "deeplabv1-resnet38": {"width": 2, "frozen_norm": False},
}


def saved(folder: Path, name: str = "small", **options: Any) -> SegmentationNet:
    net = build_network(NetworkConfig.of(name, CLASSES, **{**TINY[name], **options}))
    with torch.no_grad():
        for _ in range(3):  # statistics of norms as after some training, else numbers grow
            net(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8))
    save_network(folder, net, supervision="tags", noted={"step": 3})
    return net.eval()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    saved(folder / "network", width=4, blocks=(1, 1, 1, 1), channels=6)
    return folder


@pytest.fixture(scope="module")
def scenes() -> dict[tuple[int, int], torch.Tensor]:
    """Pictures (20, 3, H, W) of three sizes."""
    sizes = ((64, 96), (75, 101), (96, 64))
    drawn = {size: np.stack([draw_scene(i, size).image for i in range(20)]) for size in sizes}
    return {size: torch.from_numpy(images).permute(0, 3, 1, 2).float() for size, images in drawn.items()}


@pytest.mark.parametrize("name", list(TINY))
def test_onnx_gives_the_same_classes(name: str, scenes: Any, tmp_path: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    net = saved(tmp_path / "net", name)
    out = tmp_path / "made" / "net.onnx"
    told = export_network(tmp_path / "net", "onnx", out)
    assert told.pixels == 2 * sum(h * w for h, w in ((96, 128), (97, 131), (161, 115), (192, 192)))
    assert "onnxruntime against torch" in told.text()
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for size, images in scenes.items():
        theirs = session.run(["logits"], {"images": images.numpy()})[0]
        with torch.no_grad():
            ours = F.interpolate(net(images), size, mode="bilinear", align_corners=name.startswith("deeplabv1"))
        assert theirs.shape == (20, 21, *size)
        assert np.allclose(theirs, ours.numpy(), atol=1e-4 * float(ours.abs().max()))
        top = ours.topk(2, dim=1).values  # (20, 2, H, W)
        sure = (top[:, 0] - top[:, 1] > 1e-4 * float(ours.abs().max())).numpy()
        assert sure.mean() > 0.99
        assert np.array_equal(theirs.argmax(1)[sure], ours.argmax(1).numpy()[sure])
    notes = {p.key: p.value for p in onnx.load(str(out)).metadata_props}
    assert json.loads(notes["names"]) == list(CLASSES.names)
    assert notes["supervision"] == "tags"


def _differs(scale: float, side: int) -> bool:
    """Whether onnxruntime, by a graph of one Resize, and torch disagree about the size of a smaller picture."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    node = helper.make_node(
        "Resize", ["x", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="half_pixel"
    )
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, None, None]) for name in "xy"]
    scales = helper.make_tensor("s", TensorProto.FLOAT, [4], [1, 1, scale, scale])
    graph = helper.make_graph([node], "resize", shapes[:1], shapes[1:], [scales])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.zeros(1, 1, side, side)
    return session.run(None, {"x": images.numpy()})[0].shape != F.interpolate(images, scale_factor=scale).shape


@pytest.mark.parametrize(("scale", "side"), [(0.7, 90), (1.4, 45), (0.57, 100)])
def test_scales_that_onnx_rounds_otherwise_are_refused(scale: float, side: int, tmp_path: Path) -> None:
    assert _differs(scale, side)
    saved(tmp_path / "net", "deeplabv2-resnet101", scales=(0.5, scale))
    with pytest.raises(UserError, match=rf"scale {scale} rounds a side of \d+ pixels.*export to safetensors"):
        export_network(tmp_path / "net", "onnx", tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()
    export_network(tmp_path / "net", "safetensors", tmp_path / "given")


@pytest.mark.parametrize("scale", [0.75, 0.9, 1.25])
def test_scales_that_both_round_alike_are_exported(scale: float, tmp_path: Path) -> None:
    assert not any(_differs(scale, side) for side in range(2, 400))
    saved(tmp_path / "net", "deeplabv2-resnet101", scales=(scale,))
    assert export_network(tmp_path / "net", "onnx", tmp_path / "net.onnx").pixels


def test_a_graph_of_other_weights_is_told(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = {"width": 4, "blocks": (1, 1, 1, 1), "channels": 6}
    saved(tmp_path / "net", **options)
    export_network(tmp_path / "net", "onnx", tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    other = WholeSize(build_network(NetworkConfig.of("small", CLASSES, **options), seed=9)).eval()
    with pytest.raises(UserError, match="pixels of pictures"):
        compare(other, session, [torch.rand(1, 3, 40, 56) * 255], tmp_path / "net.onnx")


def test_safetensors_is_a_network_folder(tiny: Path, tmp_path: Path) -> None:
    done = call("export", tiny, "--to", "safetensors", "-o", tmp_path / "net")
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["config.json", "model.safetensors"]
    one, two = load_network(tiny, "cpu").state_dict(), load_network(tmp_path / "net", "cpu").state_dict()
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert call("export", tiny, "--to", "safetensors", "-o", tmp_path / "net").exit_code == 0  # its own is replaced


def test_faults(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    def refused(*arguments: Any) -> str:
        done = call("export", *arguments)
        assert done.exit_code == 1, done.output
        return done.stderr

    nowhere = refused(tmp_path / "no", "--to", "onnx", "-o", tmp_path / "x.onnx")
    assert "neither a run folder" in nowhere
    assert "nor the folder of a network" in nowhere
    assert "is a network, which goes to onnx, safetensors" in refused(tiny, "--to", "png", "-o", tmp_path / "x")
    assert "cannot export to 'tflite'" in refused(tiny, "--to", "tflite", "-o", tmp_path / "x")
    (tmp_path / "run.yaml").write_text("{}")
    assert "is a run, whose masks go to png, coco" in refused(tmp_path, "--to", "onnx", "-o", tmp_path / "x")
    (tmp_path / "thesis.onnx").write_text("thesis")
    assert "is not replaced" in refused(tiny, "--to", "onnx", "-o", tmp_path / "thesis.onnx")
    assert "is no network of tag2mask" in refused(tiny, "--to", "safetensors", "-o", tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert 'pip install "tag2mask[export]"' in refused(tiny, "--to", "onnx", "-o", tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
