"""COCO: polygons along the edges of pixels, and run lengths for what has a hole, which COCO's polygons cannot have.

https://cocodataset.org/#format-data; Lin et al. 2014, https://arxiv.org/abs/1405.0312. Read are polygons and run
lengths, plain or compressed. Why an image was asked for stands in its entry.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np

from experiments.annotate.handoff import Drawn, sized
from experiments.annotate.polygons import area, paint, traced
from experiments.annotate.untrusted import files, read_json
from experiments.errors import BadData, Refused, shown
from experiments.records.files import write as write_file


def write(request, out):
    request.copy_images(out / "images")
    ids = {name: number for number, name in enumerate(request.labels, 1)}
    images, annotations = [], []
    for number, image in enumerate(request.images, 1):
        entry = {"id": number, "file_name": Path(image["image"]).name}
        entry |= {"width": image["width"], "height": image["height"]}
        own = {"sha256": image["sha256"], "asked_id": image["id"], "why": request.why(image)}
        images.append(entry | own | request.reasons(image))
        for name, _, where in request.first_labels(image):
            for part in traced(where):
                (left, top), (right, bottom) = part[0].min(0).tolist(), part[0].max(0).tolist()
                shape, size = [part[0].ravel().tolist()], area(part[0])
                if len(part) > 1:
                    alone = np.zeros((image["height"], image["width"]), bool)
                    size = paint(alone, part, True)
                    shape = runs(alone)
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": ids[name], "segmentation": shape,
                     "area": int(size), "bbox": [left, top, right - left, bottom - top],
                     "iscrowd": int(len(part) > 1)}
                )  # fmt: skip
    categories = [{"id": id, "name": name, "supercategory": ""} for name, id in ids.items()]
    said = {"description": f"{request.asked['run']}: masks wanted, with the model's first ones"}
    found = {"info": said, "images": images, "categories": categories, "annotations": annotations}
    (out / "annotations").mkdir()
    write_file(out / "annotations" / "instances_default.json", json.dumps(found).encode())
    return "open images/ with annotations/instances_default.json in a tool that reads COCO; export as COCO."


def runs(where):
    """The plain run lengths of a mask (H, W) bool, column by column, pixels that are not in it first."""
    flat = where.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return {"size": list(where.shape), "counts": np.diff(edges, prepend=0, append=flat.size).tolist()}


def read(request, place):
    request.say_blank()
    for path in files(place, ".json"):
        found = read_json(path)
        try:
            images, names, drawn = found["images"], {c["id"]: c["name"] for c in found["categories"]}, {}
            for annotation in found["annotations"]:
                drawn.setdefault(annotation["image_id"], []).append(annotation)
            of = [(image["id"], path / Path(str(image["file_name"])).name, image) for image in images]
            todo = [(at, partial(mask, request, at, drawn.get(id), names, image), image) for id, at, image in of]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Refused(f"{path} is no COCO file of images, categories and annotations ({error!r}).") from error
        for at, make, image in todo:
            words = {word: image[key] for word, key in (("id", "asked_id"), ("sha256", "sha256")) if key in image}
            yield Drawn(at, make, {word: value for word, value in words.items() if isinstance(value, str)})


def mask(request, path, annotations, names, entry, image):
    """The mask of one image, later annotations over earlier ones; None without any. Raises BadData."""
    if not annotations:
        return None
    height, width = image["height"], image["width"]
    sized(path, image, entry.get("height", height), entry.get("width", width))
    drawn = request.canvas(image)
    for annotation in annotations:
        category = annotation.get("category_id")
        value = request.value(names.get(category) if isinstance(category, int) else category, path)
        shape = annotation.get("segmentation")
        try:
            cover(drawn, shape, value)
        except BadData as error:
            raise BadData(f"{path}: {error}; export it again.") from error
    return drawn


def cover(drawn, shape, value):
    """Paint polygons, one beside the other, or run lengths into a mask. Raises BadData, without a file's name."""
    height, width = drawn.shape
    if isinstance(shape, dict):
        if shape.get("size") != [height, width]:
            raise BadData(f"run lengths are of {shown(shape.get('size'))}, not {[height, width]}")
        drawn[of_runs(shape.get("counts"), height, width)] = value
        return
    if not isinstance(shape, list) or not shape:
        raise BadData("an annotation is neither a polygon nor run lengths")
    for ring in shape:
        if not isinstance(ring, list) or len(ring) % 2:
            raise BadData("a polygon is no list of x and y")
        paint(drawn, [list(zip(ring[::2], ring[1::2], strict=True))], value)


def of_runs(counts, height, width):
    """(H, W) bool of plain or compressed run lengths."""
    counts = decompressed(counts, height * width) if isinstance(counts, str) else counts
    whole = isinstance(counts, list) and all(type(n) is int and 0 <= n <= height * width for n in counts)
    if not whole or sum(counts) != height * width:
        raise BadData(f"run lengths are not of {height * width} pixels together")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape((height, width), order="F")


def decompressed(text, most):
    """The counts of COCO's compressed run lengths: six bits a letter, later ones as differences."""
    counts, number, shift = [], 0, 0
    if len(text) > 8 * most + 8:
        raise BadData("run lengths are longer than their image")
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 60:
            raise BadData("run lengths are damaged")
        number |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        number -= (code >> 4 & 1) << shift
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number, shift = 0, 0
    if shift:
        raise BadData("run lengths are cut off")
    return counts
