"""WeCLIP: a light decoder on a frozen CLIP, taught by pseudo labels that CLIP makes at every step.

B. Zhang, S. Yu, Y. Wei, Y. Zhao and J. Xiao, "Frozen CLIP: A Strong Backbone for Weakly Supervised Semantic
Segmentation", CVPR 2024. The paper reports 76.4 mIoU on VOC 2012 val and 47.1 on COCO val, with dense CRF (not
measured here; others report 73.3 to 73.5 without CRF and 74.4 with it from the released code).

CLIP's GradCAM of the image's tags is spread along its own attention, from the middle of the training on along the
attention that the decoder's affinity corrects (RFM), refined by PAR, and taught to the decoder, whose masks are what
``predict`` gives. As maps, the same for every image come out of ``label``.

``variant="paper"`` (default) and ``"released"`` (zbf1991/WeCLIP at 0f47db4):

====================  ==================================  =======================================================
                      paper                               released
====================  ==================================  =======================================================
switch to RFM         half of the steps (15 000 of VOC)   VOC 9 145 of 30 000: its counter counts validation, too
RFM's layers          |A_f - A_l| at most the mean        sum of A_f - A_l at most the mean, which leaves A_f out
boxes                 whole                               lose the grid's last row and column
positions             as interpolated                     rounded to float16
a crop's padding      ignored                             labelled and learned
words for COCO        correct                             "sknowboard"
====================  ==================================  =======================================================

In both, as the code has it: pixels with ImageNet's statistics (``statistics``), PAR on the standardised picture, tags
of the whole image for a crop that may not show them, cells that have the label of their upper left pixel, no ignored
pixels. The code reads its tags from ground-truth masks; here they are the image's tags. Its attention's output
projection is in float16 on every device; here all is float32. It cuts the sides of scaled pictures and smooths what
it shrinks; here they are rounded, and not smoothed. A CLIP of other depth has shares of the published numbers of
layers: two thirds (8 of 12), and for RFM a half (6 of 12) or, for COCO, five sixths (10 of 12). Its decoder is a
third as wide as the tower (256 of 768).

As published, each picture is scaled and cut anew at every step, so the frozen tower runs at every step. ``views=N``
shows each picture in N fixed ways instead and keeps what the tower says of them on the disk until the fit is done:
of a ViT-B/16 at 320 pixels 14 MB a view, and 4 MB more for RFM's attention. With as many views as draws it saves
nothing; with few it decides what is learned from. On a processor a step of such views is several times as quick
(measured: the page on CD-CLIP); where a GPU runs the tower, reading may take longer than looking. Several devices
share each batch; each takes the losses of its share, and the gradients are averaged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from tag2mask.methods.online.method import VOC_STEPS, Online, OnlineOptions
from tag2mask.methods.online.recipe import OnlineRecipe, recipe_of
from tag2mask.ops.affinity import AFFINITIES, Affinity, Choose

_RELEASED_SWITCH = 9_145 / VOC_STEPS


class WeCLIPOptions(OnlineOptions):
    """How maps are spread, and when that changes."""

    affinity: Literal["rfm", "caa", "mhsa", "none"] = Field(
        "rfm", description="how maps are spread after the switch; before it caa is, or this where it is none or mhsa"
    )
    switch: int | None = Field(
        None, ge=0, description="the step from which RFM is used; default half of all, released on VOC 0.305 of all"
    )


class WeCLIP(Online):
    """WeCLIP as a tag2mask method; fitted by ``stages.machinery.fit``, or ready after ``load``."""

    Options = WeCLIPOptions
    name = "weclip"
    options: WeCLIPOptions

    def make_recipe(self) -> OnlineRecipe:
        """As ``Online`` asks: RFM from the switch on."""
        options = self.options
        steps = self.steps
        late = self.spreading(options.affinity)
        early = self.spreading("caa" if options.affinity in ("rfm", "caa") else options.affinity)
        share = _RELEASED_SWITCH if self.released and not self.coco else 0.5
        switch = round(share * steps) if options.switch is None else options.switch
        return recipe_of(
            options,
            steps=steps,
            batch=4,
            patch=self.clip.patch,
            lr=self.decoder_lr(2e-4),
            early=early,
            late=late,
            switch=switch,
            padding="labelled" if self.released else "ignored",
        )

    def idle(self) -> dict[str, set[str]]:
        """Of the affinity, and of a switch that leaves one of the two phases out."""
        recipe, chosen = self.recipe, self.options.affinity
        setting = f"affinity={chosen}"
        if chosen != "rfm":
            return {setting: {"switch", *without_effect(recipe.late)}}
        used = [*([recipe.early] if recipe.switch else []), *([recipe.late] if recipe.switch < recipe.steps else [])]
        return {f"{setting} and switch={recipe.switch} of {recipe.steps} steps": without_effect(*used)}

    def spreading(self, name: str) -> Affinity:
        """The affinity of that name with this method's numbers in it."""
        return tuned(self, AFFINITIES[name])

    def compared_texts(self) -> Tensor:
        """None, (0, E): WeCLIP compares no distributions."""
        return self.say(self.text_set.names)[:0]


def without_effect(*used: Affinity) -> set[str]:
    """The options of ``tuned`` that none of these affinities uses. used: all that a training has."""
    spreading = [each for each in used if each.steps]
    used_by_any = {
        "spread_steps": bool(spreading),
        "layers": any(not each.decoder for each in spreading),
        "late_layers": any(each.decoder for each in spreading),
        "choose": any(each.decoder for each in spreading),
        "box_threshold": any(each.boxes is not None for each in spreading),
    }
    return {name for name, there in used_by_any.items() if not there}


def tuned(method: Online, affinity: Affinity) -> Affinity:
    """An affinity with the layers, boxes and steps that a method's options, CLIP and data ask for."""
    options = method.options
    if not affinity.steps:
        return replace(affinity, layers=1)
    late = affinity.decoder
    share = (5 / 6 if method.coco else 1 / 2) if late else 2 / 3
    threshold = options.box_threshold if options.box_threshold is not None else 0.7 if method.coco else 0.4
    choose: Choose = options.choose or ("signed" if method.released else "abs")
    return replace(
        affinity,
        layers=method.layers_of(options.late_layers if late else options.layers, share),
        choose=choose if late else "all",
        boxes=None if affinity.boxes is None else threshold,
        keep_edges=not method.released,
        steps=options.spread_steps,
    )
