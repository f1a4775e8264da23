"""CVAT: images with a manifest for cloud storage, first masks as "Segmentation mask 1.1", and that format back.

https://docs.cvat.ai/docs/dataset_management/formats/format-smask and .../dataset_management/dataset_manifest. The first
masks lie in SegmentationObject/ as an object for each part of a class that hangs together: CVAT shows them apart.
Why an image is asked for stands in the manifest's meta, what the strategy saw is the image's context image.
"""

import io
import json
import shutil
import zipfile
from functools import partial
from hashlib import md5
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from experiments.annotate.handoff import Drawn
from experiments.annotate.untrusted import files
from experiments.errors import BadData, Refused
from experiments.records.files import write as write_file
from experiments.store.reading import pixels, read_text

NOTHING = "background"  # CVAT's own name of what is in no mask, in black
MOST_OBJECTS = 255  # colours of objects that VOC has


def write(request, out):
    for label in request.labels:
        if set(label) & set(":,#\n") or label == NOTHING:
            raise Refused(f"The class {label} cannot be told to CVAT, for its name: hand over by --to coco.")
    request.copy_images(out / "images")
    lines = [{"version": "1.1"}, {"type": "images"}]
    for image in request.images:
        path = Path(image["image"])
        near = []
        if "uncertainty" in image:
            place = out / "images" / "related_images" / path.name.replace(".", "_") / "uncertainty.png"
            place.parent.mkdir(parents=True)
            shutil.copyfile(request.folder / image["uncertainty"], place)
            near = [place.relative_to(out / "images").as_posix()]
        meta = {"related_images": near, "why": request.why(image), **request.reasons(image)}
        digest = md5((out / "images" / path.name).read_bytes(), usedforsecurity=False).hexdigest()
        size = {"width": image["width"], "height": image["height"]}
        lines.append({"name": path.stem, "extension": path.suffix, **size, "meta": meta, "checksum": digest})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_file(out / "images" / "manifest.jsonl", text.encode())
    labels = [
        {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*request.colour(value)), "type": "mask", "attributes": []}
        for name, value in request.labels.items()
    ]
    write_file(out / "labels.json", json.dumps(labels, indent=1).encode())
    first = annotations(request)
    if first:
        write_file(out / "annotations.zip", first)
    then = ", then upload annotations.zip as Segmentation mask 1.1" if first else ""
    return f"make a CVAT task of images/ with the labels of labels.json (Raw){then}; export as Segmentation mask 1.1."


def annotations(request):
    """Bytes of a zip with the first masks; b"" if there are none."""
    packed, names = io.BytesIO(), []
    colours = {NOTHING: (0, 0, 0)} | {name: request.colour(value) for name, value in request.labels.items()}
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for image in request.images:
            if request.first(image) is None:
                continue
            classes, objects = (np.zeros((image["height"], image["width"], 3), np.uint8) for _ in range(2))
            number = 0
            for name, _, where in request.first_labels(image):
                classes[where] = colours[name]
                parts, count = ndimage.label(where)
                if number + count > MOST_OBJECTS - len(colours):
                    parts, count = where.astype(np.int32), 1
                palette = np.array([(0, 0, 0), *map(voc_colour, range(number + 1, number + count + 1))], np.uint8)
                objects[where] = palette[parts[where]]
                number += count
            names.append(Path(image["image"]).stem)
            file.writestr(f"SegmentationClass/{names[-1]}.png", rgb_png(classes))
            file.writestr(f"SegmentationObject/{names[-1]}.png", rgb_png(objects))
        if not names:
            return b""
        head = "# label:color_rgb:parts:actions\n"
        file.writestr("labelmap.txt", head + "".join(f"{n}:{r},{g},{b}::\n" for n, (r, g, b) in colours.items()))
        file.writestr("ImageSets/Segmentation/default.txt", "".join(f"{name}\n" for name in names))
    return packed.getvalue()


def voc_colour(number):
    """The colour that PASCAL VOC gives a number: its bits dealt to red, green and blue, the lowest ones first."""
    return tuple(sum((number >> (3 * bit + c) & 1) << (7 - bit) for bit in range(8)) for c in range(3))


def rgb_png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def read(request, place):
    maps = [path for path in files(place, ".txt") if path.name == "labelmap.txt"]
    if len(maps) != 1:
        raise Refused(f"{place} holds {len(maps)} files labelmap.txt, not one: export it as Segmentation mask 1.1.")
    names = labelmap(maps[0])
    folder = maps[0].parent / "SegmentationClass"
    request.say_blank()
    for path in files(folder, ".png") if folder.is_dir() else []:
        yield Drawn(path, partial(of_colours, request, path, names))


def labelmap(path):
    """{(red, green, blue): label} of labelmap.txt. Raises Refused."""
    names = {}
    try:
        for line in read_text(path).splitlines():
            if line.strip() and not line.startswith("#"):
                name, colour, *_ = line.split(":")
                red, green, blue = map(int, colour.split(","))
                if (red, green, blue) in names:
                    raise ValueError(f"two labels in one colour {colour}")
                names[red, green, blue] = name
    except (OSError, ValueError) as error:
        raise Refused(f"{path} is no table of labels and colours ({error}): export it again.") from error
    return names


def of_colours(request, path, names, image):
    """The mask of an image whose colours are those of the label map. Raises BadData for other colours and labels."""
    found = pixels(path)
    if found.ndim == 2:
        found = np.stack([found] * 3, axis=2)
    if found.shape[2] != 3 or found.dtype != np.uint8:
        raise BadData(f"{path} is no image of colours with 8 bits: export it as Segmentation mask 1.1.")
    codes = found.astype(np.int32) @ (1 << 16, 1 << 8, 1)
    mask = np.empty(codes.shape, np.uint8)
    for code in np.unique(codes).tolist():
        colour = code >> 16, code >> 8 & 255, code & 255
        if colour not in names:
            raise BadData(f"{path} has the colour {colour}, which labelmap.txt does not name: export it again.")
        label = names[colour]
        nothing = label == NOTHING and label not in request.classes
        mask[codes == code] = request.blank if nothing else request.value(label, path)
    return mask
