"""WeCLIP+'s decoder over CLIP and a DINO."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from methods.online_cases import PLUS, SMALL, WORDS, WORLD, batch, cd_clip, changed, plus, training
from methods.toys import make_data
from tag2mask.classes import load_classes
from tag2mask.config import read_config
from tag2mask.methods import make_method, method_class
from tag2mask.methods.cd_clip import CDCLIP, CDCLIPOptions
from tag2mask.methods.online.method import Online
from tag2mask.models.clip import VisionTransformer
from tag2mask.segment.network import load_network
from tag2mask.types import IGNORE, Item, UserError
from tiny_clips import oracle


def test_two_outputs_agree_and_their_mean_counts(clip, dino, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "tag2mask.methods.online.training.balanced_cross_entropy",
        lambda logits, labels: seen.append((logits, labels)) or logits.mean(),
    )
    module = training(plus(clip, dino))
    module.training_step(batch(), 0)
    (mean, labels), (first, of_second), (second, of_first) = seen
    torch.testing.assert_close(mean, (first + second) / 2)
    known = labels != IGNORE
    assert torch.equal(of_second[known].long(), second.argmax(1)[known])
    assert torch.equal(of_first[known].long(), first.argmax(1)[known])
    assert (of_first[~known] == IGNORE).all()
    assert (~known).any()
    wanted = 0.1 * float(first.mean() + second.mean())
    assert module.terms["mutual"] == pytest.approx(wanted, rel=1e-4)


def test_feedback_multiplies_initial_maps_by_the_decoders_probabilities(clip):
    method = cd_clip(clip, setting=0, feedback=True)
    pictures, tags = batch(((1, 3), (2,)))
    seen = method.teacher.look(method.teacher.pixels(pictures.nan_to_num(0)))
    probs = torch.rand(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    plain, fed = (method.teacher.maps(seen, tags, method.recipe.early, None, each) for each in (None, probs))
    for i, own in enumerate(tags):
        torch.testing.assert_close(fed[i].initial, plain[i].initial * probs[i, own])
    module = training(method)
    given = []
    lessons = module.lessons
    module.lessons = lambda *of: replace(found := lessons(*of), teach=lambda *x: given.append(x) or found.teach(*x))
    module.training_step(batch(), 0)
    assert given[0][2].shape == (2, 4, 4, 4)
    torch.testing.assert_close(given[0][2].sum(1), torch.ones(2, 4, 4))


def test_what_weclip_plus_adds_can_be_left_out(clip, dino):
    method = plus(clip, dino, mutual_weight=0, dice_weight=0.0)
    module = training(method)
    loss = module.training_step(batch(), 0)
    loss.backward()
    assert set(module.terms) == {"loss", "affinity", "segmentation"}
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())
    assert method.recipe.late.boxes is None
    assert plus(clip, dino, boxes=True).recipe.late.boxes == 0.4
    assert "mutual" not in training(cd_clip(clip, setting=1)).__dict__


def test_a_dino_sees_its_own_statistics(clip, dino):
    with pytest.raises(UserError, match="a DINO knows ImageNet's; leave statistics out"):
        plus(clip, dino, statistics="clip")


def test_without_boundaries_a_decoder_still_needs_its_dino(clip):
    kind = method_class("cd-clip")
    assert kind.towers_of(kind.Options(setting=2, decoder="clip+dino")) == ("clip", "dino")
    with pytest.raises(UserError, match="cd-clip needs a DINO"):
        make_method("cd-clip", WORLD, clip=clip, **SMALL, **PLUS)


@pytest.fixture(scope="module")
def fitted_plus(clip, dino, tmp_path_factory):
    where = tmp_path_factory.mktemp("plus")
    plus(clip, dino).fit(make_data(where / "images", count=4), where / "fit")
    return where / "fit"


def test_a_network_beside_a_dino_is_saved_without_it_and_finds_it(fitted_plus, clip, dino, tmp_path):
    method = plus(clip, dino)
    method.load(fitted_plus)
    net = load_network(fitted_plus, "cpu")
    assert net.towers == ("network.tower.", "network.dino.")
    image = torch.randint(0, 256, (1, 3, 32, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(image), method.net(image))
    assert method.scores([Item("a", image[0].to(torch.uint8), torch.tensor([1, 3]))])[0].maps.shape == (2, 4, 5)
    state = torch.load(fitted_plus / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"fuse", "decoder", "dino_fuse"}
    with pytest.raises(UserError, match=r"stands on a DINO of sha256 .*, and this method's on CLIP alone"):
        cd_clip(clip, setting=2).load(fitted_plus)
    for about, said in (
        ({"dino": str(tmp_path / "gone")}, "not saved with it and not at hand"),
        ({"dino_sha256": "0" * 64}, "with sha256 000000000000"),
    ):
        with pytest.raises(UserError, match=f"{said}.*`dino` under `options`"):
            load_network(changed(fitted_plus / "network", tmp_path / next(iter(about)), about), "cpu")


@pytest.mark.parametrize(("name", "late"), [("voc12_weclip_plus", (None, 6)), ("coco14_weclip_plus", (0.7, 8))])
def test_weclip_plus_has_rules_for_each_data_set(dino, name, late):
    vision = VisionTransformer(width=48, layers=12, heads=3, patch=8, native_grid=(4, 4), embed=24)
    config = read_config(Path(__file__).parents[2] / "recipes" / f"{name}.yaml")
    known = load_classes(config.data.classes)
    world = replace(known, texts={"weclip": replace(WORDS, names=("cat",) * len(known.foreground))})
    deep = oracle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Online, "say", lambda self, phrases: torch.ones(len(phrases), 24) / 24**0.5)
        clip = SimpleNamespace(model=SimpleNamespace(vision=vision, logit_scale=deep.logit_scale.detach()), patch=8,
                               name="a", sha256="0", device=torch.device("cpu"), dtype=torch.float32)  # fmt: skip
        method = CDCLIP(world, CDCLIPOptions(**config.options), clip=clip, dino=dino)
    recipe = method.recipe
    assert (recipe.late.boxes, recipe.late.layers) == late
    assert (recipe.late.choose, recipe.late.decoder, recipe.feedback) == ("signed", True, True)
    assert recipe.replace_at / recipe.steps == pytest.approx({30_000: 0.6, 80_000: 0.5}[recipe.steps], abs=1e-4)
    assert recipe.batch == (4 if recipe.steps == 30_000 else 8)
    assert recipe.lr == pytest.approx(2e-4)
