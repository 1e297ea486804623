"""What every image tower keeps to: CLIP's transformer and ResNet, and one of another make."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.clip import CLIPModel, Cotangents, ImageTower, TextTransformer, VisionTransformer
from tag2mask.models.resnet import ModifiedResNet
from tag2mask.models.save import save_clip
from tag2mask.models.tower import Each, Mean, Positions, Tower, resample_positions, walk


class ScaledBlock(nn.Module):
    """A block of another make: one head, branches scaled channel by channel, no MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor, *, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        q, k, v = self.qkv(self.norm(x.to(self.scale.dtype))).chunk(3, -1)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return x + self.scale * (weights @ v), weights.float() if need_weights else None


class ManyTokens(nn.Module):
    """A tower with three class tokens and a grid that is not square; it inherits nothing."""

    def __init__(self, width: int = 12, layers: int = 3) -> None:
        super().__init__()
        self.patch, self.native_grid = 14, (2, 3)
        self.project = nn.Conv2d(3, width, 14, 14)
        self.classes = nn.Parameter(torch.randn(3, width))
        self.table = nn.Parameter(torch.randn(3 + 6, width))
        self.layers = nn.ModuleList(ScaledBlock(width) for _ in range(layers))

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        return tuple(self.layers)

    @property
    def trunk(self) -> tuple[nn.Module, ...]:
        return (self.project, *self.layers[:-1])

    def positions(self, grid: tuple[int, int], how: Positions) -> Tensor:
        return resample_positions(self.table, self.native_grid, grid, how)

    def embed(self, pixels: Tensor, positions: Positions) -> tuple[Tensor, tuple[int, int]]:
        if pixels.shape[2] % 14 or pixels.shape[3] % 14:
            raise ValueError("expected multiples of 14; resize the image first")
        x = self.project(pixels)
        grid = (x.shape[2], x.shape[3])
        x = torch.cat([self.classes.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        return x + self.positions(grid, positions), grid

    forward = walk


MADE = {
    "transformer": lambda: VisionTransformer(width=24, layers=3, heads=2, patch=8, native_grid=(2, 3), embed=10),
    "resnet": lambda: ModifiedResNet(layers=(1, 1, 1, 1), width=8, heads=4, native_grid=(2, 3), embed=10),
    "other": ManyTokens,
}
GRID = (4, 5)


@pytest.fixture(params=MADE)
def tower(request) -> Tower:
    return made(request.param)


@pytest.fixture(params=["transformer", "resnet"])
def clip_tower(request) -> ImageTower:
    return made(request.param)


def made(kind: str) -> Tower:
    torch.manual_seed(0)
    return MADE[kind]().eval()


def pixels(tower: Tower, grid: tuple[int, int] = GRID, batch: int = 2) -> Tensor:
    size = (grid[0] * tower.patch, grid[1] * tower.patch)
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_patch_is_a_cell_of_the_grid(tower) -> None:
    before = set()
    for grid in (GRID, tower.native_grid, (1, 2)):
        tokens, found = tower.embed(pixels(tower, grid), Positions())
        assert found == grid
        assert tower(pixels(tower, grid)).grid == grid
        assert len(tower.positions(grid, Positions())) == tokens.shape[1]
        before.add(tokens.shape[1] - grid[0] * grid[1])
    assert len(before) == 1  # what is no patch is as much on every grid
    with pytest.raises(ValueError, match="resize the image first"):
        tower.embed(torch.zeros(1, 3, tower.patch, tower.patch + tower.patch // 2), Positions())


@torch.no_grad()
def test_patches_come_last_row_by_row(tower) -> None:
    x = pixels(tower, batch=1)
    plain = tower.embed(x, Positions())[0][0, -GRID[0] * GRID[1] :]
    p = tower.patch
    for row, column in ((0, 0), (1, 3), (3, 1), (3, 4)):
        other = x.clone()
        other[..., row * p : (row + 1) * p, column * p : (column + 1) * p] += 5
        change = (tower.embed(other, Positions())[0][0, -GRID[0] * GRID[1] :] - plain).norm(dim=-1)
        assert change.argmax() == row * GRID[1] + column


@torch.no_grad()
def test_positions_of_class_tokens_stay_as_they_are(tower) -> None:
    native = tower.positions(tower.native_grid, Positions())
    special = len(native) - tower.native_grid[0] * tower.native_grid[1]
    grown = tower.positions((4, 6), Positions())
    assert torch.equal(grown[:special], native[:special])
    square = native[special:].T.reshape(1, -1, *tower.native_grid)
    expected = F.interpolate(square, size=(4, 6), mode="bilinear", align_corners=False).flatten(2)[0].T
    torch.testing.assert_close(grown[special:], expected)
    assert torch.equal(tower.positions(tower.native_grid, Positions(round_fp16=True)), native.half().float())


@torch.no_grad()
def test_positions_come_as_they_are_asked_for(tower) -> None:
    bilinear, bicubic = Positions(), Positions("bicubic")
    x = pixels(tower)
    assert (tower.embed(x, bicubic)[0] - tower.embed(x, bilinear)[0]).abs().max() > 1e-4
    assert torch.equal(tower(x).tokens, tower(x, positions=bilinear).tokens)
    assert (tower(x, positions=bicubic).tokens - tower(x).tokens).abs().max() > 1e-4


@torch.no_grad()
def test_the_tower_is_its_blocks_one_after_the_other(tower) -> None:
    x, _ = tower.embed(pixels(tower), Positions())
    total = len(tower.blocks)
    seen = tower(pixels(tower), taps=range(total), attention=Each(total) if total else None)
    stopped = tower(pixels(tower), stop_before_last=True).tokens
    for i, block in enumerate(tower.blocks):
        if i == total - 1:
            torch.testing.assert_close(stopped, x)
        x, weights = block(x, need_weights=True)
        torch.testing.assert_close(seen.taps[i], x)
        torch.testing.assert_close(seen.attention[:, i], weights)
    torch.testing.assert_close(seen.tokens, x)
    assert (total > 0) == (seen.attention is not None)
    # as the checkpoints number them
    assert list(tower.blocks) == [part for part in tower.modules() if part in tower.blocks]


def test_the_trunk_is_all_modules_before_the_last_block(tower) -> None:
    tower(pixels(tower), stop_before_last=True).tokens.square().sum().backward()
    names = {id(parameter): name for name, parameter in tower.named_parameters()}
    trunk = {names[id(parameter)] for part in tower.trunk for parameter in part.parameters()}
    reached = {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
    tables = {"class_embedding", "positional_embedding", "attnpool.positional_embedding", "classes", "table"}
    assert trunk == reached - tables


@torch.no_grad()
def test_a_lowered_trunk_leaves_the_last_block_as_it_is(tower) -> None:
    whole = tower(pixels(tower)).tokens
    for part in tower.trunk:
        part.to(torch.bfloat16)
    if isinstance(tower, ManyTokens):  # its embedding takes the pixels as they come
        tower.project.float()
    low = tower(pixels(tower)).tokens
    assert low.dtype == torch.float32
    assert 0 < (low - whole).abs().max() < 0.1 * whole.abs().max()


def test_what_was_not_run_is_refused(tower) -> None:
    total = len(tower.blocks)
    with pytest.raises(ValueError, match=f"last {total + 1} layers was asked for; this tower has {total}"):
        tower(pixels(tower), attention=Mean(total + 1))
    with pytest.raises(ValueError, match=rf"taps \[{total}\] were asked for"):
        tower(pixels(tower), taps=(total,))


# --- CLIP's


@pytest.mark.parametrize("readout", ["patches", "class"])
def test_scores_are_of_each_image_s_own_embedding(clip_tower, readout) -> None:
    """By their definition: the gradient of a score of the embedding, one image and one score at a time."""
    asked: list[Tensor] = []
    directions = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(2))  # of each image, its scores'

    def gradients(i: int) -> Cotangents:
        return lambda embedding: asked.append(embedding) or directions[i]

    x, how = pixels(clip_tower), Positions("bicubic")
    with torch.no_grad():
        embeddings = clip_tower.embedding(x, readout=readout, positions=how)
        found = list(clip_tower.gradcams(x, [gradients(0), gradients(1)], readout=readout, positions=how))
    torch.testing.assert_close(torch.stack(asked), embeddings)
    for i, (cams, attention) in enumerate(found):
        assert attention is None
        torch.testing.assert_close(cams, by_definition(clip_tower, x[i : i + 1], directions[i], readout, how))


def by_definition(tower: ImageTower, x: Tensor, directions: Tensor, readout: str, how: Positions) -> Tensor:
    """GradCAM (K, N) by autograd alone, from the feature map that each tower is looked at."""
    kept: list[Tensor] = []
    if tower.blocks:
        at = tower.blocks[-1].ln_1.register_forward_hook(lambda _, __, out: kept.append(out) or out)
    else:
        at = tower.layer4.register_forward_hook(lambda _, __, out: kept.append(out) or out)
    embedding = tower.embedding(x, readout=readout, positions=how)[0]
    at.remove()
    rows = []
    for direction in directions:
        (gradient,) = torch.autograd.grad(embedding @ direction, kept, retain_graph=True)
        feature, gradient = (
            (t[0, 1:] if tower.blocks else t[0].flatten(1).T) for t in (kept[0].detach(), gradient)
        )  # (N, D)
        rows.append(F.relu(feature @ gradient.mean(0)))
    return torch.stack(rows)


@torch.no_grad()
def test_the_attention_between_patches_is_that_of_the_last_blocks() -> None:
    tower = made("transformer")
    x = pixels(tower)
    every = tower(x, attention=Each(3)).attention  # (B, 3, 1 + N, 1 + N)
    for layers in (1, 2, 3):
        found = tower.gradcams(x, [lambda _: torch.zeros(1, 10)] * 2, readout="patches", attention=Mean(layers))
        got = torch.stack([attention for _, attention in found])
        torch.testing.assert_close(got, every[:, -layers:, 1:, 1:].mean(1))


def test_a_resnet_has_no_attention_to_give() -> None:
    tower = made("resnet")
    with pytest.raises(ValueError, match="this tower has 0"):
        next(tower.gradcams(pixels(tower), [lambda _: torch.zeros(1, 10)] * 2, readout="patches", attention=Mean(1)))


@torch.no_grad()
def test_one_cotangent_for_each_image(clip_tower) -> None:
    with pytest.raises(ValueError, match="zip"):
        list(clip_tower.gradcams(pixels(clip_tower), [lambda _: torch.zeros(1, 10)], readout="patches"))


def test_only_a_transformer_over_a_square_grid_is_saved(tmp_path) -> None:
    text = TextTransformer(vocabulary=8, context=4, width=8, layers=1, heads=1, embed=10)
    square = ModifiedResNet(layers=(1, 1, 1, 1), width=8, heads=4, native_grid=(2, 2), embed=10)
    for tower in (square, made("transformer")):
        with pytest.raises(ValueError, match="only a vision transformer over a square grid"):
            save_clip(tmp_path, CLIPModel(tower, text), start=1, end=2, pad=0)
    assert not list(tmp_path.iterdir())
