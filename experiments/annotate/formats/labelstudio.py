"""Label Studio: tasks with first masks as brush strokes in its run lengths, a labelling page, and its JSON export back.

https://labelstud.io/guide/export and .../tags/brushlabels. Its run lengths are those of thi.ng's rle-pack, of the red,
green, blue and alpha of every pixel: https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack. Read here,
not by label-studio-converter, which believes the length that a file claims; a test holds the two against each other.
"""

import json
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import numpy as np

from experiments.annotate.handoff import Drawn, sized
from experiments.annotate.request import png
from experiments.annotate.untrusted import files, read_json
from experiments.errors import BadData, Refused, shown
from experiments.records.files import write as write_file
from experiments.store.reading import pixels

SIZES = (3, 4, 8, 16)  # bits of a run's length; the header says them


def write(request, out):
    request.copy_images(out / "images")
    for path in sorted((out / "images").glob("*.tif*")):
        write_file(path.with_suffix(".png"), png(eight_bits(pixels(path))))
        path.unlink()
    with_map = all("uncertainty" in image for image in request.images)
    tasks = []
    for image in request.images:
        data = {"image": address("images", seen_as(image["image"])), "id": image["id"], "sha256": image["sha256"]}
        data |= {"why": request.why(image), **request.reasons(image)}
        if with_map:
            data["uncertainty"] = address("images", f"uncertainty/{image['name']}.uncertainty.png")
            name = Path(unquote(data["uncertainty"])).name
            write_file(out / "images" / name, (request.folder / image["uncertainty"]).read_bytes())
        task = {"data": data}
        strokes = [stroke(name, where) for name, _, where in request.first_labels(image)]
        if strokes:
            task["predictions"] = [{"model_version": request.asked["run"], "result": strokes}]
            if image.get("score") is not None:
                task["predictions"][0]["score"] = image["score"]
        tasks.append(task)
    write_file(out / "tasks.json", json.dumps(tasks).encode())
    write_file(out / "config.xml", page(request, with_map))
    return (
        "start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT set to this folder, make a project with the labelling page config.xml, "
        "add images/ as local storage (do not sync it), import tasks.json; export as JSON."
    )


def seen_as(path):
    """The name of an image for a browser, which shows no TIFF."""
    return f"{PurePosixPath(path).stem}.png" if path.endswith((".tif", ".tiff")) else path


def eight_bits(array):
    """An image of any values and channels as (H, W) or (H, W, 3) uint8, from percentile .5 to 99.5."""
    if array.ndim == 3:
        array = array[..., :3] if array.shape[2] > 2 else array[..., 0]
    if array.dtype == np.uint8:
        return array
    low, high = np.percentile(array, [0.5, 99.5])
    return np.rint((array - low) / max(high - low, 1e-12) * 255).clip(0, 255).astype(np.uint8)


def address(folder, path):
    return f"/data/local-files/?d={quote(f'{folder}/{PurePosixPath(path).name}')}"


def page(request, with_map):
    """The XML of the labelling page: why, the image with its brushes, and what the strategy saw."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Header", value="$why")
    ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true", zoomControl="true")
    brushes = ElementTree.SubElement(view, "BrushLabels", name="mask", toName="image")
    for name, value in request.labels.items():
        colour = "#{:02x}{:02x}{:02x}".format(*request.colour(value))
        ElementTree.SubElement(brushes, "Label", value=name, background=colour)
    if with_map:
        ElementTree.SubElement(view, "Header", value="Uncertainty, black to white")
        ElementTree.SubElement(view, "Image", name="uncertainty", value="$uncertainty")
    ElementTree.indent(view)
    return ElementTree.tostring(view)


def stroke(name, where):
    """A region of a prediction, of the pixels in a mask (H, W) bool."""
    height, width = where.shape
    value = {"format": "rle", "rle": encoded(where), "brushlabels": [name]}
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    return {"id": name, "type": "brushlabels", "from_name": "mask", "to_name": "image", "value": value, **size}


def encoded(where):
    """The run lengths, a list of bytes, of a mask (H, W) bool: 255 in all four channels where it is True."""
    flat = where.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=not flat[0]))
    lengths = np.diff(starts, append=flat.size) * 4
    bits = [f"{flat.size * 4:032b}{8 - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = "1" * 8 if flat[start] else "0" * 8
        while length:
            part = min(length, 1 << SIZES[-1])
            which = next(n for n, size in enumerate(SIZES) if part <= 1 << size)
            bits.append(f"1{which:02b}{part - 1:0{SIZES[which]}b}{value}")
            length -= part
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decoded(rle, height, width):
    """The pixels (H, W) bool that a stroke covers. Raises BadData, without a file's name, for what is none."""
    count = height * width * 4
    if not isinstance(rle, list) or not 7 <= len(rle) <= 64 + 4 * count:
        raise BadData("a stroke is no list of bytes, or a longer one than its image can have")
    try:
        data = bytes(rle)
    except (TypeError, ValueError):
        raise BadData("a stroke is no list of bytes") from None
    array = np.unpackbits(np.frombuffer(data, np.uint8))
    text, at = (array + ord("0")).tobytes().decode(), 0

    def number(size):
        nonlocal at
        at += size
        if at > len(text):
            raise BadData("a stroke ends too early")
        return int(text[at - size : at], 2)

    if (number(32), number(5) + 1) != (count, 8):
        raise BadData(f"a stroke is not of {height} x {width} pixels with four channels")
    sizes = [number(4) + 1 for _ in range(4)]
    out, done = np.empty(count, np.uint8), 0
    while done < count:
        same, length = number(1), number(sizes[number(2)]) + 1
        if done + length > count:
            raise BadData("a stroke goes on beyond its image")
        if same:
            out[done : done + length] = number(8)
        else:
            number(8 * length)
            out[done : done + length] = np.packbits(array[at - 8 * length : at])
        done += length
    return out.reshape(height, width, 4)[..., 3] > 127


def read(request, place):
    request.say_blank()
    for path in files(place, ".json"):
        tasks = read_json(path)
        if not isinstance(tasks, list) or not all(isinstance(task, dict) and "annotations" in task for task in tasks):
            raise Refused(f"{path} is no list of tasks with annotations: export the project as JSON (not JSON-MIN).")
        for task in tasks:
            data = task["data"] if isinstance(task.get("data"), dict) else {}
            name = PurePosixPath(unquote(str(data.get("image", "")))).name or f"task_{task.get('id')}"
            words = {key: data[key] for key in ("id", "sha256") if isinstance(data.get(key), str)}
            done = task["annotations"] if isinstance(task["annotations"], list) else []
            done = [one for one in done if isinstance(one, dict) and not one.get("was_cancelled")]
            for one in sorted(done, key=lambda one: str(one.get("updated_at") or one.get("created_at"))):
                yield Drawn(path / name, partial(mask, request, path / name, one), words, about(one), reviewed=True)


def about(annotation):
    """Seconds and annotator, as far as an annotation has them."""
    who, seconds = annotation.get("completed_by"), annotation.get("lead_time")
    who = who.get("email") or who.get("id") if isinstance(who, dict) else who
    found = {"annotator": str(who)[:200]} if isinstance(who, str | int) else {}
    plausible = isinstance(seconds, int | float) and 0 < seconds < 1e7
    return found | ({"seconds": f"{seconds:.1f}"} if plausible else {})


def mask(request, path, annotation, image):
    """The mask of one annotation, later strokes over earlier ones. Raises BadData."""
    drawn = request.canvas(image)
    results = annotation.get("result")
    for region in results if isinstance(results, list) else []:
        kind, value = (region.get("type"), region.get("value")) if isinstance(region, dict) else (None, None)
        if not isinstance(value, dict) or "original_width" not in region:
            continue  # a choice or a remark about the image
        if kind != "brushlabels" or "rle" not in value:
            raise BadData(f"{path} has a region of the kind {shown(kind)}: draw with the brush.")
        sized(path, image, region.get("original_height"), region["original_width"])
        names = value.get("brushlabels")
        if not isinstance(names, list) or len(names) != 1:
            raise BadData(f"{path} has a stroke with {shown(names)} as its label: give it one.")
        if region.get("image_rotation"):
            raise BadData(f"{path} was drawn on the turned image: turn it back, and submit it again.")
        try:
            where = decoded(value["rle"], image["height"], image["width"])
        except BadData as error:
            raise BadData(f"{path}: {error}; export it again.") from error
        drawn[where] = request.value(names[0], path)
    return drawn
