"""Small COCO files for the tests."""

from __future__ import annotations

import json

from PIL import Image

H, W = 20, 30
BOX = [[4, 3, 14, 3, 14, 13, 4, 13]]


def content(files=("a.jpg", "b.jpg"), names=("cat", "dog")):
    """A list of images, each with one object of the first category."""
    return {
        "images": [{"id": n, "file_name": file, "width": W, "height": H} for n, file in enumerate(files, 1)],
        "annotations": [
            {"id": 10 * n, "image_id": n, "category_id": 1, "segmentation": BOX} for n in range(1, len(files) + 1)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, 1)],
    }


def write(folder, what, there=("a.jpg", "b.jpg")):
    """The file, with images in ``images/`` beside it."""
    for name in there:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (W, H)).save(path)
    path = folder / "instances_x.json"
    path.write_text(what if isinstance(what, str) else json.dumps(what, ensure_ascii=False), encoding="utf-8")
    return path
