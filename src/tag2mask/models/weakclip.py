"""WeakCLIP's network: a CLIP whose texts and pixels are matched, and a decoder that the matching guides.

L. Zhu, X. Wang, J. Feng, T. Cheng, Y. Li, B. Jiang, D. Zhang and J. Han, "WeakCLIP: Adapting CLIP for
Weakly-supervised Semantic Segmentation", IJCV 2024. Both towers are CLIP's own; what learns is in
``models.weakclip_parts`` and the prompts here. How paper and released code differ is said in ``methods.weakclip``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.clip import TextTransformer, VisionTransformer
from tag2mask.models.text import Tokens
from tag2mask.models.tower import Positions, resample_positions
from tag2mask.models.weakclip_parts import CoAttention, Decoder, PyramidAdapter, coarsest
from tag2mask.types import UserError

TOWERS = ("tower", "text_encoder")
"""The parts that are a CLIP's."""

TEMPERATURE = 0.07
"""Cosines are divided by it where they are to be logits."""


@dataclass(frozen=True)
class WeakCLIPSettings:
    """All that decides what the network is, beside its CLIP and texts; nothing is left open.

    encoders: CLIP's towers: "frozen", "creep" (their rate rises from 0 to the schedule's floor), or "trained" as the
    rest. adapter: "trained", or "as-encoders". taps: after which four blocks of the image tower, from 1.
    class_twice: the class embedding is added to its token once more. drop_path: of the image tower's last block in
    training, from 0 at the first; not where it is frozen. edges: pictures that do not fit the cells are padded and
    the result is cut ("pad"), or lose what is over, and the result is stretched ("cut").
    resolution: side in pixels of the square whose grid positions are brought to first; None: no such step.
    prompts: learnt vectors. match: "co-attention", or "direct" (Eq. 4). layers, chained, width, heads: of the
    co-attention. scale: what its share in texts and pixels starts with. decoder: "text-guided", "plain" (without the
    matching scores, which are added as logits), or "none" (these scores are the logits). channels: of the decoder.
    dropout: of co-attention and head.
    """

    encoders: Literal["frozen", "creep", "trained"] = "frozen"
    adapter: Literal["trained", "as-encoders"] = "trained"
    taps: tuple[int, int, int, int] = (3, 6, 9, 12)
    class_twice: bool = False
    drop_path: float = 0.0
    edges: Literal["pad", "cut"] = "pad"
    resolution: int | None = 512
    prompts: int = 8
    match: Literal["co-attention", "direct"] = "co-attention"
    layers: int = 1
    chained: bool = True
    width: int = 256
    heads: int = 4
    scale: float = 0.1
    decoder: Literal["text-guided", "plain", "none"] = "text-guided"
    channels: int = 256
    dropout: float = 0.1


def default_taps(depth: int, variant: str) -> tuple[int, int, int, int]:
    """Quarters of the depth as in the paper, or the thirds of its code: 3, 6, 9, 12 or 4, 6, 8, 12 of 12."""
    parts = (1 / 4, 1 / 2, 3 / 4, 1) if variant == "paper" else (1 / 3, 1 / 2, 2 / 3, 1)
    a, b, c, d = (max(1, round(part * depth)) for part in parts)
    return a, b, c, d


class Looked(NamedTuple):
    """What the network makes of pictures.

    scores: (B, T, h, w), the cosines of texts and cells. logits: (B, K, h', w').
    """

    scores: Tensor
    logits: Tensor


class WeakCLIPNet(nn.Module):
    """The network; pixels come standardised.

    vision, text: the towers; frozen ones are shared, not copied. own_towers: copies of them are made, to learn or to
    be filled. texts: one for each class, background first, and further ones that only take part in the matching.
    classes: K.

    Raises:
        UserError: an image tower without a pyramid, or texts that are too long for the text tower.
    """

    def __init__(
        self,
        vision: nn.Module,
        text: TextTransformer,
        texts: Sequence[Tokens],
        classes: int,
        settings: WeakCLIPSettings | None = None,
        *,
        own_towers: bool = False,
    ) -> None:
        super().__init__()
        self.settings = settings = settings or WeakCLIPSettings()
        if not isinstance(vision, VisionTransformer):
            raise UserError(
                "weakclip: got a CLIP whose image tower is a ResNet, expected a vision transformer; take another, "
                "such as openai/clip-vit-base-patch16"
            )
        self.multiple = coarsest(vision.patch)
        self.classes = classes
        self.frozen = settings.encoders == "frozen"
        side = None if settings.resolution is None else max(1, settings.resolution // vision.patch)
        self.positions = Positions(via=None if side is None else (side, side), class_twice=settings.class_twice)
        own = own_towers or not self.frozen
        self.tower = _own_tower(vision, self.positions) if own else vision
        self.text_encoder = copy.deepcopy(text).float() if own else text
        for tower in (self.tower, self.text_encoder):
            tower.requires_grad_(not self.frozen)
        if not self.frozen:
            rates = torch.linspace(0, settings.drop_path, len(self.tower.blocks)).tolist()
            for block, rate in zip(self.tower.blocks, rates, strict=True):
                block.drop_path = rate
        embed, words = text.text_projection.shape[1], text.text_projection.shape[0]
        self._read(texts)
        width = vision.conv1.out_channels
        self.contexts = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, settings.prompts, words)))  # std 1
        self.contexts.requires_grad_(settings.prompts > 0)
        if settings.match == "co-attention":
            self.context_decoder = CoAttention(
                embed, settings.width, settings.heads, settings.layers, settings.chained, settings.dropout
            )
            self.gamma, self.beta = (nn.Parameter(torch.full((embed,), settings.scale)) for _ in range(2))
        if settings.decoder != "none":
            self.adapter = PyramidAdapter(width, vision.patch)
            self.adapter.requires_grad_(not (self.frozen and settings.adapter == "as-encoders"))
            self.decoder = Decoder(
                width,
                len(texts),
                classes,
                settings.channels,
                guided=settings.decoder == "text-guided",
                dropout=settings.dropout,
            )
        self.found_options: dict[str, Any] = {}
        self._kept: tuple[object, Tensor] | None = None

    def _read(self, texts: Sequence[Tokens]) -> None:
        longest = max(texts, key=lambda each: len(each.ids))
        total, most = len(longest.ids) + self.settings.prompts, self.text_encoder.context
        if total > most:
            raise UserError(
                f"weakclip: the longest name has {len(longest.ids)} tokens, start and end included, and with "
                f"{self.settings.prompts} prompts it is {total}; this CLIP reads at most {most}: set fewer prompts, "
                "or shorten the name"
            )
        ids = torch.zeros(len(texts), len(longest.ids), dtype=torch.int64)
        for row, each in zip(ids, texts, strict=True):
            row[: len(each.ids)] = torch.tensor(each.ids)
        self.ids: Tensor
        self.ends: Tensor
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("ends", torch.tensor([each.end for each in texts]), persistent=False)

    def train(self, mode: bool = True) -> WeakCLIPNet:
        """Frozen towers stay in evaluation mode; out of training the texts are computed at once."""
        super().train(mode)
        if self.frozen:
            self.tower.eval()
            self.text_encoder.eval()
        if not mode:
            with torch.no_grad():
                self.texts()
        return self

    # --- the stages, in order --------------------------------------------------------------------------

    def encode_texts(self) -> Tensor:
        """Eq. 5 and 6: each name after the learnt vectors, which follow the start of the text: (T, E)."""
        words = self.text_encoder.token_embedding(self.ids)  # (T, L, W)
        learnt = self.contexts.expand(len(words), -1, -1)  # (T, N, W)
        words = torch.cat([words[:, :1], learnt, words[:, 1:]], 1)  # (T, N + L, W)
        return self.text_encoder.from_embeddings(words, self.ends + self.settings.prompts).float()

    def texts(self) -> Tensor:
        """``encode_texts``, (T, E); without gradients it is computed once for the same weights."""
        if self.training or (torch.is_grad_enabled() and not _traced()):
            return self.encode_texts()
        weights = [self.contexts, *self.text_encoder.parameters()]
        stamp = tuple((each.data_ptr(), each._version) for each in weights)
        if self._kept is None or self._kept[0] != stamp:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = stamp, self.encode_texts()
        return self._kept[1]

    def see(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Eq. 1 to 3: (B, 3, H, W) -> four taps (B, D, h, w), and all tokens projected (B, 1 + N, E), class first."""
        blocks = [tap - 1 for tap in self.settings.taps]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found = self.tower(pixels, taps=blocks, positions=self.positions)
            embedded = self.tower.project(found.tokens).float()  # (B, 1 + N, E)
            # contiguous: on a processor torch's group norm dies in the backward pass of channels-last pictures that
            # need no gradient themselves
            cells = [found.taps[i][:, 1:].float().transpose(1, 2).contiguous() for i in blocks]  # (B, D, N) each
        return [each.reshape(found.tokens.shape[0], -1, *found.grid) for each in cells], embedded

    def match(self, texts: Tensor, embedded: Tensor, grid: Sequence[int]) -> Tensor:
        """Eq. 7 to 9: texts (T, E) and tokens (B, 1 + N, E) of a grid (h, w) -> cosines (B, T, h, w)."""
        rows = texts.expand(embedded.shape[0], -1, -1)  # (B, T, E)
        if self.settings.match == "co-attention":
            more_text, more_pixels = self.context_decoder(rows, embedded)
            rows, embedded = rows + self.gamma * more_text, embedded + self.beta * more_pixels
        cells = F.normalize(embedded[:, 1:], dim=-1)  # (B, N, E)
        cosines = F.normalize(rows, dim=-1) @ cells.transpose(1, 2)  # (B, T, N)
        return cosines.unflatten(2, tuple(grid))

    def look(self, pixels: Tensor) -> Looked:
        """All stages, for standardised pictures (B, 3, H, W) that fit the cells."""
        taps, embedded = self.see(pixels)
        scores = self.match(self.texts(), embedded, taps[0].shape[2:])
        own = scores[:, : self.classes] / TEMPERATURE
        if self.settings.decoder == "none":
            return Looked(scores, own)
        logits = self.decoder(self.adapter(taps), scores)
        if self.settings.decoder == "plain":
            logits = logits + F.interpolate(own, logits.shape[2:], mode="bilinear", align_corners=False)
        return Looked(scores, logits)

    def forward(self, pixels: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, K, h, w) of pictures (B, 3, H, W) of any size.

        A cell has four pixels on a side, or one where the picture had to be padded. In training the matching scores
        (B, T, h', w'), as logits, come second.
        """
        height, width = pixels.shape[2:]
        fitted = self._fitted(pixels)
        scores, logits = self.look(fitted)
        if self.training:
            return [logits, scores / TEMPERATURE]
        if self.settings.edges == "cut":
            return logits
        if _traced() or fitted.shape != pixels.shape:
            logits = F.interpolate(logits, fitted.shape[2:], mode="bilinear", align_corners=False)
            logits = logits[..., :height, :width]
        return logits

    def _fitted(self, pixels: Tensor) -> Tensor:
        """Pictures whose sides are multiples of the cells, at least of the coarsest ones."""
        height, width = pixels.shape[2:]
        if self.settings.edges == "cut":
            patch = self.tower.patch
            pixels = pixels[..., : max(height // patch, 1) * patch, : max(width // patch, 1) * patch]
            over = [max(self.multiple - side, 0) for side in pixels.shape[2:]]  # too small for the coarsest level
        else:
            over = [-side % self.multiple for side in (height, width)]
        if _traced() or any(over):
            pixels = F.pad(pixels, (0, over[1], 0, over[0]), mode="replicate")
        return pixels


def _traced() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined]


def _own_tower(tower: VisionTransformer, positions: Positions) -> VisionTransformer:
    """A copy in float32, its positions brought to the grid of the training's crops once and for all."""
    own: VisionTransformer = copy.deepcopy(tower).float()
    if positions.via is not None:
        with torch.no_grad():
            table = resample_positions(own.positional_embedding, own.native_grid, positions.via, Positions())
        own.positional_embedding = nn.Parameter(table)
        own.native_grid = positions.via
    return own
