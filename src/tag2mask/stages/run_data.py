"""The data of a run: opened as settings describe it, found again later, also where it has moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tag2mask.classes import BUILT_IN, fold, load_classes, plain_classes, with_more
from tag2mask.config import DataConfig, LabelConfig, parse_config, parse_data
from tag2mask.data import TagReading, is_file_of_data, read_dataset
from tag2mask.data.columns import Columns
from tag2mask.data.one_image import is_one_image, names_a_file
from tag2mask.formats import READERS, said
from tag2mask.run.about import is_predicted, stored_classes
from tag2mask.run.folder import Run
from tag2mask.types import ClassSet, UserError

__all__ = ["absolute", "data_for", "data_of", "images_for", "in_run_order", "open_data", "with_its_truth"]


def open_data(config: DataConfig, network: ClassSet | None = None, classes: ClassSet | None = None) -> Columns:
    """The data set that the settings describe. Raises UserError where there is none.

    network: the classes of a network that is to look at the images, or has: tags are not needed then. Data that
        names its own classes has these instead, in their order, if they have every name in it.
    classes: instead of those that the settings name.
    """
    if network is not None and classes is None:
        data = _read(config, network, None)
        return _as_the_network(data, config, network)
    return _read(config, network, classes)


def _read(config: DataConfig, network: ClassSet | None, classes: ClassSet | None) -> Columns:
    if config.path is None:
        raise UserError(f"no data: give {said(READERS)}")
    return read_dataset(
        config.path,
        kind=config.kind,
        split=config.split,
        tags=config.tags,
        images=config.images,
        truth=config.truth,
        classes=config.classes if classes is None else classes,
        unknown=config.unknown,
        network=network,
        reading=TagReading(config.separator, config.twins, config.count_from),
        truth_values=config.truth_values,
        truth_turn=config.truth_turn,
    )


def absolute(config: LabelConfig) -> LabelConfig:
    """The same settings with every path of the data made absolute."""
    paths = {
        key: str(Path(value).absolute())
        for key in ("path", "tags", "images", "truth")
        if (value := getattr(config.data, key)) is not None
        and (key != "tags" or names_a_file(value, config.data.path))
    }
    if config.data.classes is not None and config.data.classes.endswith((".yaml", ".yml")):
        paths["classes"] = str(Path(config.data.classes).absolute())
    if config.data.truth_values is not None and Path(config.data.truth_values).is_file():
        paths["truth_values"] = str(Path(config.data.truth_values).absolute())
    return config.model_copy(update={"data": config.data.model_copy(update=paths)})


def data_for(run: Run, given: Mapping[str, Any] | None = None) -> Columns:
    """The data of a run, with the run's classes in its order; that of ``predict`` needs no tags.

    Args:
        run: says in run.yaml where its data were.
        given: keys of ``config.DataConfig`` that take the place of the run's own, None as if it were not there. With
            another ``path`` the run's tags file, images and ground truth are looked for below it, if they lay below
            the old one.

    Raises:
        UserError: the data is not known, or no longer there.
    """
    new = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in (given or {}).items()
        if value is not None
    }
    before = {} if "path" in new and "config" not in run.noted else data_of(run).model_dump()
    if "path" in new:
        before = _moved(before, Path(new["path"]))
    lost = before.pop("truth_lost", False)
    if lost or "truth" in new:  # what was said of the old truth
        before |= {"truth_values": None, "truth_turn": None}
    config = parse_data({**before, **new})
    try:
        data = open_data(config, stored_classes(run) if is_predicted(run) else None)
    except UserError as error:
        raise UserError(f"{error}{_where_to_say(config)}") from error
    return data if is_predicted(run) else in_run_order(data, config, run)


def with_its_truth(config: DataConfig, run: Run) -> DataConfig:
    """The settings with the ground truth that a run was given before, where they name none for the same data."""
    if config.truth is not None or "config" not in run.noted:
        return config
    before = data_of(run)
    if before.path != config.path or (before.truth is not None and not Path(before.truth).exists()):
        return config
    keys = ("truth", "truth_values", "truth_turn")
    return config.model_copy(update={key: getattr(before, key) for key in keys if getattr(config, key) is None})


def _moved(before: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings of data that lies at another place now."""
    old = Path(str(before.get("path")))
    here, there = (each.parent if is_file_of_data(each) else each for each in (path, old))
    found: dict[str, Any] = {}
    for key in ("tags", "images", "truth"):
        value = before.get(key)
        if value is None or (key == "tags" and not names_a_file(value, old)):
            continue
        place = Path(value)
        place = here / place.relative_to(there) if place.is_relative_to(there) else place
        found[key] = str(place) if place.exists() else None
    return {**before, **found, "truth_lost": before.get("truth") is not None and found.get("truth") is None}


def _where_to_say(config: DataConfig) -> str:
    """What to give where a place that the settings name is not there."""
    options = {"path": "--data PATH", "images": "--images FOLDER", "tags": "--tags FILE", "truth": "--truth FOLDER"}
    gone = [
        option
        for key, option in options.items()
        if (value := getattr(config, key)) is not None
        and (key != "tags" or names_a_file(value, config.path))
        and not Path(value).exists()
    ]
    file = None if config.path is None or is_one_image(config.path) else Path(config.path)
    if gone == [] and file is not None and is_file_of_data(file):
        gone = ["--images FOLDER"] if config.images is None else []
    return f". If the data has moved, say where it is now: {' '.join(gone)}" if gone else ""


def in_run_order(data: Columns, config: DataConfig, run: Run) -> Columns:
    """Data whose classes are the names in it, with those of a run first, in its order, and new ones after them.

    Mask values of a run never change their meaning, whatever names come and go. Classes that the settings name
    (``--classes``, ``classes.yaml``) stay as these have them.
    """
    stored, names = stored_classes(run), data.classes.foreground
    published = load_classes(stored.id) if stored.id in BUILT_IN else None
    same = names[: len(stored.foreground)] == stored.foreground
    if (same and (published is None or data.classes.id == stored.id)) or not _names_its_own(data, config):
        return data
    new, aliases = _beside(data.classes, stored)
    if published is not None and stored.names[: len(published)] == published.names:
        more = [*stored.names[len(published) :], *new]
        classes = with_more(published, more, aliases)
        after = f", and after them {', '.join(map(repr, more))}" if more else ""
        said = f"the classes are {stored.id}'s, as in the run{after}"
    else:
        classes = replace(plain_classes([*stored.foreground, *new], stored.id), aliases=aliases)
        said = "the classes are in the order of the run, those that are new come last"
    again = open_data(config, classes=classes)
    return again.with_notes(*again.notes, said)


def _as_the_network(data: Columns, config: DataConfig, network: ClassSet) -> Columns:
    """Data whose classes are the names in it, with those of a network, if these have every name.

    Without any tags nothing would show that truth is numbered otherwise: then the data keeps its classes.
    """
    if data.classes.names == network.names or not _names_its_own(data, config):
        return data
    new, aliases = _beside(data.classes, network)
    if new or not any(sample.tags for sample in data):
        return data
    again = _read(config, network, replace(network, aliases=aliases))
    return again.with_notes(*again.notes, "the classes are the network's, which has every name in the data")


def _beside(classes: ClassSet, stored: ClassSet) -> tuple[list[str], dict[str, str]]:
    """The names of a class set that a stored one has not, and the stored one's aliases for the others."""
    known = {fold(name): name for name in stored.foreground}
    # names that were put together (--twins merge) may be called otherwise in the stored set
    called = {to: known[fold(alias)] for alias, to in classes.aliases.items() if fold(alias) in known}
    called = {name: old for name, old in called.items() if fold(name) not in known}
    new = [name for name in classes.foreground if fold(name) not in known and name not in called]
    aliases = {alias: called.get(name, name) for alias, name in classes.aliases.items()} | called
    return new, {alias: name for alias, name in aliases.items() if fold(alias) != fold(name)}


def _names_its_own(data: Columns, config: DataConfig) -> bool:
    if config.classes not in (None, "file") or config.path is None:
        return False
    path = Path(config.path)
    places = {data.root, path.parent if is_file_of_data(path) else path}
    return not any((place / "classes.yaml").is_file() for place in places)


def images_for(run: Run, given: Mapping[str, Any] | None = None) -> Columns:
    """As ``data_for``, to be looked at: of data in other classes than the network's that saw it, the images alone.

    Raises:
        UserError: as ``data_for``.
    """
    data = data_for(run, given)
    if is_predicted(run) and data.classes.names != stored_classes(run).names:
        return data.images_only(stored_classes(run))
    return data


def data_of(run: Run) -> DataConfig:
    """Where a run's data was. Raises UserError for a run made from Python, whose data has no path on record."""
    config = run.noted.get("config")
    if config is None:
        raise UserError(f"{run.path} does not say where its images are; name the data with --data")
    return parse_config(config, str(run.path / "run.yaml")).data
