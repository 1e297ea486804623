"""Where a network is kept: a folder with config.json and model.safetensors, found, read and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tag2mask.run.artefacts import CHECKPOINTS
from tag2mask.run.files import file_sha256, read_object, write_atomic
from tag2mask.run.settings import plain
from tag2mask.segment.test_time import PRESETS, Preset
from tag2mask.types import ClassSet, Color, UserError

__all__ = ["INSIDE", "WEIGHTS", "NetworkConfig", "SavedNetwork", "find_network", "read_saved", "write_saved"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MODEL_TYPE = "tag2mask-segmentation"
INSIDE = "network"
"""Where a training folder keeps its network; a run's fit is such a folder, too."""


@dataclass(frozen=True)
class NetworkConfig:
    """All that a network is built from.

    architecture: a key of ``ARCHITECTURES``, or "transformers:" and a hub id or folder.
    names: of the mask values; ``names[0]`` is "background". palette: their colours.
    options: of the architecture; what is left out has its default.
    classes: id of the class set.
    """

    architecture: str
    names: tuple[str, ...]
    palette: tuple[Color, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: str = ""

    @classmethod
    def of(cls, architecture: str, classes: ClassSet, **options: Any) -> NetworkConfig:
        """That of an architecture for a class set."""
        return cls(architecture, classes.names, classes.palette, options, classes.id)


@dataclass(frozen=True)
class SavedNetwork:
    """What a network's folder says beside its weights.

    path: of the folder that holds config.json. supervision: "tags", or "tags+pixels(n)" where n masks drawn by hand
    were used. noted: whatever its maker wrote down; under "test" a ``Preset``, how the network is tested.
    sha256: of model.safetensors.
    """

    path: Path
    config: NetworkConfig
    supervision: str
    noted: Mapping[str, Any]
    sha256: str

    @property
    def test(self) -> Preset:
        """How it is tested unless somebody says otherwise: as its maker noted, or plainly.

        Raises:
            UserError: what is noted is no such thing.
        """
        if "test" not in self.noted:
            return PRESETS["plain"]
        try:
            return Preset.from_plain(self.noted["test"])
        except (KeyError, TypeError, AttributeError, UserError) as error:
            raise UserError(
                f"{self.path / CONFIG}: says how the network is tested in a way that is not understood ({error}); "
                "choose how (predict --test plain), or train again"
            ) from error


def find_network(folder: Path | str) -> Path | None:
    """The folder with a network's config.json: ``folder`` itself, or the one in a training's or run's folder."""
    top = Path(folder).expanduser()
    for place in (top, top / INSIDE, top / CHECKPOINTS / INSIDE):
        try:
            if read_object(place / CONFIG).get("model_type") == MODEL_TYPE:
                return place
        except (OSError, ValueError):
            continue
    return None


def read_saved(folder: Path | str) -> SavedNetwork:
    """What a network's folder says of it, once it is sure that the weights beside are the ones meant.

    Raises:
        UserError: no network there, or it is damaged.
    """
    place = find_network(folder)
    if place is None:
        raise UserError(
            f"{folder}: holds no network of tag2mask ({CONFIG} and {WEIGHTS}); give a folder that "
            "`tag2mask train` wrote, or a run of a method that trains a network"
        )
    about = read_object(place / CONFIG)
    try:
        config = NetworkConfig(
            architecture=str(about["architecture"]),
            names=tuple(map(str, about["names"])),
            palette=tuple((int(r), int(g), int(b)) for r, g, b in about["palette"]),
            options=dict(about["options"]),
            classes=str(about["classes"]),
        )
        known = {str(each["sha256"]): (str(each["supervision"]), dict(each["noted"])) for each in about["weights"]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{place / CONFIG}: is damaged ({type(error).__name__}: {error}); copy the folder again from where it "
            "was made, or train again"
        ) from error
    try:
        sha256 = file_sha256(place / WEIGHTS)
    except OSError as error:
        raise UserError(f"{place / WEIGHTS}: cannot be read ({error.strerror}); copy the whole folder") from error
    if sha256 not in known:
        raise UserError(
            f"{place / WEIGHTS}: is damaged, or is not the file that {CONFIG} beside it describes (sha256 "
            f"{sha256[:12]}…, expected {next(iter(known), 'none')[:12]}…); copy the folder again, or train again"
        )
    supervision, noted = known[sha256]
    return SavedNetwork(place, config, supervision, noted, sha256)


def write_saved(
    folder: Path, config: NetworkConfig, data: bytes, *, supervision: str, noted: Mapping[str, Any]
) -> None:
    """Write config.json and model.safetensors; whatever moment it is killed at, the folder holds a whole network.

    Args:
        folder: made where it is missing; a network in it is replaced.
        config: what the network is built from, with all options written out.
        data: of model.safetensors.
        supervision: "tags", or "tags+pixels(n)".
        noted: of its making; what ``plain`` takes.

    Raises:
        OSError: the disk is full or read-only.
    """
    weights = [{"sha256": hashlib.sha256(data).hexdigest(), "supervision": supervision, "noted": plain(noted)}]
    about = {"model_type": MODEL_TYPE, **plain(config)}
    try:
        before = read_object(folder / CONFIG)
        earlier = before.pop("weights") if before.keys() == about.keys() | {"weights"} else []
    except (OSError, ValueError):
        before, earlier = {}, []
    # two files cannot be replaced at once: in between, config.json speaks of the old weights and of the new ones
    between = [each for each in earlier if each.get("sha256") != weights[0]["sha256"]] if before == about else []
    if before != about:  # another network's weights would look damaged beside the new config.json
        (folder / WEIGHTS).unlink(missing_ok=True)
    _write_about(folder / CONFIG, {**about, "weights": [*weights, *between]})
    write_atomic(folder / WEIGHTS, data, token="weights")  # a training that is often killed must not fill the disk
    if between:
        _write_about(folder / CONFIG, {**about, "weights": weights})


def _write_about(path: Path, about: Mapping[str, Any]) -> None:
    write_atomic(path, (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())
