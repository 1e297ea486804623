from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tag2mask.classes import BUILT_IN, color_map, find_class, fold, load_classes, plain_classes
from tag2mask.storybook.embedded import embedded_clip
from tag2mask.types import UserError
from tag2mask.words import nearest


def write(tmp_path, text, name="mine.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_colours_are_those_of_the_voc_devkit():
    colours = color_map(256)
    # Read off the devkit's own masks.
    published = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 7: (128, 128, 128)}
    published |= {8: (64, 0, 0), 15: (192, 128, 128), 16: (0, 64, 0), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {value: colours[value] for value in published} == published
    assert len(set(colours)) == 256


@pytest.mark.parametrize(("name", "count"), [("voc12", 20), ("coco14", 80)])
def test_built_in_sets_are_complete(name, count):
    classes = load_classes(name)
    assert classes.id == name
    assert classes.names[0] == "background"
    assert len(classes) == len(classes.palette) == count + 1
    assert len(set(classes.palette)) == count + 1
    for method, text in classes.texts.items():
        assert len(text.names) == count
        assert len(set(text.names)) == count
        assert text.templates == ("a clean origami {}.",) or not method.startswith("clip-es")
        assert set(text.per_class) <= set(classes.foreground)


def test_every_set_in_the_room_is_listed():
    from importlib import resources

    files = [path.name for path in resources.files("tag2mask.classes").iterdir()]
    assert {name.removesuffix(".yaml") for name in files if name.endswith(".yaml")} == set(BUILT_IN)


def test_voc_texts_are_those_of_clip_es():
    classes = load_classes("voc12")
    text = classes.texts["clip-es"]
    said = {own: text for own, text in zip(classes.foreground, text.names, strict=True) if own != text}
    assert said == {
        "bird": "bird avian",
        "chair": "chair seat",
        "person": "person with clothes,people,human",
        "tvmonitor": "tvmonitor screen",
    }
    assert len(text.background) == 25
    assert text.background[:3] == ("ground", "land", "grass")
    assert text.background[-1] == "sign"
    assert text.per_class["person"] == ("person with clothes", "people", "human")
    assert (find_class(classes, "aeroplane"), find_class(classes, "person"), find_class(classes, "tvmonitor")) == (
        1,
        15,
        20,
    )


def test_texts_equal_the_released_ones(golden):
    recorded = golden("clip-es/tokens", "class_names")
    voc, coco = load_classes("voc12"), load_classes("coco14")
    assert list(voc.foreground) == recorded["class_names"].tolist()
    assert list(coco.foreground) == recorded["class_names_coco"].tolist()
    assert list(voc.texts["clip-es"].names) == recorded["names_voc_fg"].tolist()
    assert list(voc.texts["clip-es"].background) == recorded["names_voc_bg"].tolist()
    assert list(coco.texts["clip-es-released"].names) == recorded["names_coco_fg"].tolist()
    assert list(coco.texts["clip-es"].background) == recorded["names_coco_bg"].tolist()


def test_coco_texts_and_the_released_misspelling():
    classes = load_classes("coco14")
    mended, released = classes.texts["clip-es"], classes.texts["clip-es-released"]
    differ = [
        (name, a, b) for name, a, b in zip(classes.foreground, mended.names, released.names, strict=True) if a != b
    ]
    assert differ == [("snowboard", "snowboard", "sknowboard")]
    assert mended.background == released.background
    assert mended.per_class == released.per_class
    assert len(mended.background) == 23
    by_class = dict(zip(classes.foreground, mended.names, strict=True))
    assert by_class["hair drier"] == "hairdrier,blowdrier"
    assert by_class["spoon"] == "dessertspoon"
    assert by_class["cake"] == "cake"
    # Mask values: the released 0-based keys, plus one.
    assert [classes.names[key + 1] for key in (0, 4, 14, 24, 31, 44, 57, 62, 79)] == [
        "person",
        "aeroplane",
        "bird",
        "backpack",
        "snowboard",
        "spoon",
        "sofa",
        "tvmonitor",
        "toothbrush",
    ]


def clims_sentences(classes, method):
    text = classes.texts[method]
    return [text.templates[0].format(name) for name in text.names]


def test_clims_texts_equal_the_released_ones():
    path = Path(__file__).resolve().parents[3] / "shared" / "golden" / "clims" / "clims_prompts.json"
    if not path.exists():
        pytest.skip("the recorded prompts are not at hand")
    recorded = json.loads(path.read_text(encoding="utf-8"))
    voc, coco = load_classes("voc12"), load_classes("coco14")
    assert clims_sentences(voc, "clims") == recorded["voc_previous"]
    assert clims_sentences(voc, "clims-released") == recorded["voc_current"]
    assert clims_sentences(coco, "clims-released") == recorded["coco_current"]
    for classes, key in ((voc, "bg_voc_current"), (coco, "bg_coco_current")):
        text = classes.texts["clims-released"]
        assert [text.templates[0].format(phrase) for phrase in text.background] == recorded[key]
        assert not text.per_class
        camera_ready = classes.texts["clims"]
        said = {
            name: [camera_ready.templates[0].format(phrase) for phrase in more]
            for name, more in camera_ready.per_class.items()
        }
        assert said == recorded["bg_previous"]
        assert not camera_ready.background


def test_clims_texts_of_any_class_set():
    classes = plain_classes(["boat", "person", "river"], "mine")
    paper, released = classes.texts["clims"], classes.texts["clims-released"]
    assert clims_sentences(classes, "clims") == ["a photo of boat", "a photo of person", "a photo of river"]
    assert paper.per_class == {"boat": ("river", "water", "lake", "sea", "building")}
    assert released.templates == ("a photo of {}.",)
    assert "river" not in released.background
    assert len(released.background) == 9
    coco = load_classes("coco14")
    differ = [
        pair
        for pair in zip(coco.texts["clims"].names, coco.texts["clims-released"].names, strict=True)
        if len(set(pair)) == 2
    ]
    assert differ == [("person", "player")]


def test_storybooks_clip_knows_the_words_of_voc():
    voc = load_classes("voc12")
    tokenizer = Tokenizer.from_file(str(embedded_clip() / "tokenizer.json"))
    unknown = tokenizer.token_to_id(tokenizer.model.unk_token)
    for text in voc.texts.values():
        phrases = (*text.names, *text.background, *(phrase for more in text.per_class.values() for phrase in more))
        for template in text.templates:
            assert not [p for p in phrases if unknown in tokenizer.encode(template.format(p)).ids]


def test_default_background_reproduces_clip_es_choice_for_coco():
    coco = load_classes("coco14")
    assert plain_classes(coco.foreground, "x").texts["clip-es"].background == coco.texts["clip-es"].background


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("Dining Table", "diningtable"),
        ("dining_table", "diningtable"),
        ("POTTED-PLANT", "pottedplant"),
        ("tv monitor", "tvmonitor"),
        ("tv/monitor", "tvmonitor"),
        ("TV", "tvmonitor"),
        ("airplane", "aeroplane"),
        ("motorcycle", "motorbike"),
        ("couch", "sofa"),
    ],
)
def test_spellings_of_voc_and_coco_lead_to_one_class(word, name):
    for classes in (load_classes("voc12"), load_classes("coco14")):
        assert classes.names[find_class(classes, word)] == name


@pytest.mark.parametrize("word", ["background", "unicorn", "", "aero"])
def test_other_words_are_no_class(word):
    assert find_class(load_classes("voc12"), word) is None


def test_all_of_cocos_own_names_are_known():
    official = "airplane;motorcycle;couch;potted plant;dining table;tv;cell phone;hair drier;hot dog;donut;skis"
    assert all(find_class(load_classes("coco14"), word) for word in official.split(";"))


def test_nearest():
    assert nearest("aeroplan", load_classes("voc12").foreground) == "aeroplane"
    assert nearest("Dining tabel", ["cat", "diningtable"]) == "diningtable"
    assert nearest("xyz", ["cat", "dog"]) is None


def test_shortest_file(tmp_path):
    classes = load_classes(write(tmp_path, "names: [cat, road]"))
    assert classes.id == "mine"
    assert classes.names == ("background", "cat", "road")
    assert classes.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    text = classes.texts["clip-es"]
    assert text.names == ("cat", "road")
    assert text.templates == ("a clean origami {}.",)
    assert len(text.background) == 24
    assert "road" not in text.background


def test_longest_file(tmp_path):
    path = write(
        tmp_path,
        """
        id: farm
        names: [background, cow, fire truck]
        palette: [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
        aliases: {cattle: cow, engine: Fire_Truck}
        texts:
          clip-es: {names: {fire-truck: red truck}, background: [], templates: ["a {}", "the {}."]}
          other: {per_class: {cow: [cow, calf]}}
        superclasses: {kind: {animal: [cow], machine: [firetruck]}}
        """,
    )
    classes = load_classes(path)
    assert classes.id == "farm"
    assert classes.palette[2] == (4, 5, 6)
    assert find_class(classes, "ENGINE") == 2
    assert find_class(classes, "cattle") == 1
    text = classes.texts["clip-es"]
    assert (text.names, text.background, text.templates) == (("cow", "red truck"), (), ("a {}", "the {}."))
    assert classes.texts["other"].per_class == {"cow": ("cow", "calf")}
    assert classes.superclasses == {"kind": {"animal": ("cow",), "machine": ("fire truck",)}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmaes: [cat]", "did you mean 'names'"),
        ("names: [cat]\npallete: []", "unknown key 'pallete' (did you mean 'palette'?)"),
        ("names: [cat]\ntexts: {clip-es: {tempaltes: [x]}}", "did you mean 'templates'"),
        ("names: [cat, Cat]", "'cat' and 'Cat' are the same"),
        ("names: [hot dog, hot_dog]", "are the same"),
        ("names: []", "names"),
        ("names: [background]", "0 classes"),
        ("names: [cat, background]", "'background' stands among"),
        ("names: [cat, '']", "names.1"),
        ("names: [cat, ' ']", "is no name"),
        ("names: [cat, yes]", "put it in quotes"),
        ("names: cat", "names"),
        ("names: [cat]\npalette: [[0, 0, 0]]", "1 colours for 2 mask values"),
        ("names: [cat]\npalette: [[0, 0, 0], [0, 0, 256]]", "palette.1.2"),
        ("names: [cat]\naliases: {kitty: cta}", "did you mean 'cat'"),
        ("names: [cat, dog]\naliases: {dog: cat}", "take one out"),
        ("names: [cat]\ntexts: {clip-es: {names: {cta: x}}}", "which is no class (did you mean 'cat'?)"),
        ("names: [cat]\ntexts: {clip-es: {per_class: {dog: [x]}}}", "per_class names 'dog'"),
        ("names: [cat]\ntexts: {clip-es: {templates: ['a photo']}}", "must hold one {}"),
        ("names: [cat]\ntexts: {clip-es: {templates: ['{} {0}']}}", "must hold one {}"),
        ("names: [cat]\nsuperclasses: {kind: {animal: [cow]}}", "superclasses.kind.animal names 'cow'"),
        ("names: [cat", "not readable YAML"),
        ("- cat", "holds list"),
        ("", "holds NoneType"),
        ("names: !!python/object/apply:os.getcwd []", "not readable YAML"),
    ],
)
def test_faults_in_a_file_are_named(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        load_classes(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_masks_have_room_for_254_classes():
    assert len(plain_classes([f"class {n}" for n in range(254)], "many")) == 255
    with pytest.raises(UserError, match="room for 1 to 254"):
        plain_classes([f"class {n}" for n in range(255)], "many")


def test_unknown_set_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'voc12'"):
        load_classes("voc2012")
    with pytest.raises(UserError, match="YAML file that exists"):
        load_classes("nowhere/mine.yaml")


@pytest.mark.parametrize("one", ["traffic light", "traffic_light", "traffic-light", "trafficlight", "Traffic  Light",
                                 "_traffic light_", "TRAFFIC - LIGHT", "traffic__light"])  # fmt: skip
def test_names_of_letters_are_joined(one):
    assert fold(one) == fold("traffic light")


@pytest.mark.parametrize("names", [("h1-1", "h11"), ("type 1 12", "type 11 2", "type 112"), ("level -1", "level 1"),
                                   ("-cat", "cat", "!cat", "~cat"), ("cat -dog", "cat dog"), ("A-", "A", "A+"),
                                   ("no 1 2", "no 12"), ("1-2", "12"), ("- cat", "cat")])  # fmt: skip
def test_signs_and_digits_keep_names_apart(names):
    assert len({fold(name) for name in names}) == len(names)


def test_signs_beside_digits_are_one():
    assert len({fold(name) for name in ("h1-1", "H1 1", "h1_1", "h1  1")}) == 1
    assert find_class(plain_classes(["h1-1", "h11"], "c"), "H11") == 2


def test_a_class_needs_more_than_signs():
    for name in ("-", "_", "- _"):
        with pytest.raises(UserError, match="is no name"):
            plain_classes([name], "c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: oak pine", "names is the text 'oak pine': write a list, such as names: [oak, pine]"),
        ("names: [cat]\ncolours: [[0, 0, 0], [1, 2, 3]]", "unknown key 'colours': it is called 'palette' here"),
        ("names: [cat]\npalette: red", "palette is the text 'red'"),
        ("names: [cat]\npalette: 3", "palette is 3: expected a list, [red, green, blue] from 0 to 255"),
        ("names: [cat]\naliases: [kitty]", "aliases is ['kitty']: expected keys with values, such as"),
        ("names: [cat]\naliases: {cat: kitty}", "word: class, and 'cat' is the class of the two: write kitty: cat"),
        ("names: [cat]\naliases: {cat: [kitty, tom]}", "such as aliases: {kitty: cat, tom: cat}"),
        ("names: [cat]\naliases: {kitty: cta}", "did you mean 'cat'"),
    ],
)
def test_usual_mistakes_are_answered_with_what_to_write(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_classes(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
