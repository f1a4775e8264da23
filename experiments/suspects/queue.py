"""The queue of suspects: all labelled images by their score, the first of them as a query's folder and a page.

images/, prediction/, manifest.json and labels/ are those of a query (experiments/annotate/request.py): hand-off formats
work on it. uncertainty/ is how little each pixel of the mask is believed, black to white; mask/ what is there now.
"""

import csv
import io
import json
import shutil
from html import escape
from urllib.parse import quote

import numpy as np
from PIL import Image
from skimage.segmentation import mark_boundaries

from experiments.acquisition import pictures
from experiments.annotate.request import named, png, write_image
from experiments.records.cells import harmless
from experiments.records.files import write
from experiments.store import IGNORE

SIDE = 384  # pixels of the pictures' longer side at least, and at most twice that
OUTLINES = {"mask": pictures.LINES["true"]["colors"], "predicted": pictures.LINES["predicted"]["colors"]}
COLUMNS = ("place", "id", "group", "source", "suspicion", "disagreeing")


def ranked(run, found):
    """Positions of the labelled images, the most suspicious first; equal ones in the ledger's order."""
    return sorted(found, key=lambda index: (found[index][0], index))


def write_queue(run, place, found, most):
    """Write suspects.csv of all images {position: (quality, predicted, doubt)} and the folder of the first `most`."""
    order = ranked(run, found)
    for part in ("images", "prediction", "uncertainty", "mask", "outlines"):
        shutil.rmtree(place / part, ignore_errors=True)
        (place / part).mkdir(parents=True)
    (place / "labels").mkdir(exist_ok=True)
    images = []
    for rank, index in enumerate(order[:most]):
        score, predicted, doubt = found[index]
        query = {"id": run.train.ids[index], "score": 1 - score, "rank": rank}
        entry = write_image(run, place, query, index, Shown(predicted), doubt)
        mask, name = run.train.mask(index).cpu().numpy(), entry["name"]
        size = entry["width"], entry["height"]
        large = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
        write(place / "mask" / f"{name}.png", pictures.mask_png(np.array(large)))
        image = run.train.image(index).cpu().numpy()
        write(place / "outlines" / f"{name}.png", png(outlined(image, {"mask": mask, "predicted": predicted})))
        entry |= {"mask": f"mask/{name}.png", "outlines": f"outlines/{name}.png"}
        images.append(entry | {"disagreeing": disagreeing(mask, predicted)})
    write(place / "suspects.csv", table(run, order, found))
    asked = {"run": run.folder.name, "cycle": run.events[-1]["cycle"], "heuristic": "suspects"}
    asked |= {"classes": named(run.classes), "images": images}
    write(place / "index.html", page(asked, len(order)).encode())
    write(place / "manifest.json", json.dumps(asked, indent=1).encode())  # last: then the folder is whole
    return order


class Shown:
    """An array that is asked for as a tensor is."""

    def __init__(self, array):
        self.numpy = lambda: array


def disagreeing(mask, predicted):
    """The share of a mask's pixels, IGNORE left out, of which a model says another class."""
    known = mask != IGNORE
    return float((mask != predicted)[known].mean()) if known.any() else 0.0


def table(run, order, found):
    """CSV bytes: a row for each image, the most suspicious first."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    for place, index in enumerate(order, 1):
        score, predicted, _ = found[index]
        item, share = run.train.split.items[index], disagreeing(run.train.mask(index).cpu().numpy(), predicted)
        row = place, item.id, item.group, item.source, f"{1 - score:.6g}", f"{share:.4g}"
        lines.writerow(map(harmless, row))
    return text.getvalue().encode()


def outlined(image, masks):
    """An image (H, W, channels) uint8, enlarged or thinned out, with outlines of masks {name: (H, W)}."""
    image = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    step = -(-max(image.shape[:2]) // (2 * SIDE))
    factor = max(1, SIDE * step // max(image.shape[:2]))

    def sized(array):
        return array[::step, ::step].repeat(factor, 0).repeat(factor, 1)

    shown = sized(image)
    for name, mask in masks.items():
        colour = tuple(value / 255 for value in bytes.fromhex(OUTLINES[name][1:]))
        shown = (mark_boundaries(shown, sized(mask).astype(int), colour, mode="thick") * 255).round().astype(np.uint8)
    return shown


def page(asked, images):
    """The page of a queue, which asks for nothing from outside."""
    legend = "".join(f'<span><i style="background:{colour}"></i>{name}</span>' for name, colour in OUTLINES.items())
    rows = "".join(figure(place, image) for place, image in enumerate(asked["images"], 1))
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(asked["run"])}: suspects</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 72rem; padding: 0 1rem }}
:root {{ color-scheme: light dark }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem }}
figure {{ margin: 0 }} img {{ width: 100%; image-rendering: auto }} figcaption {{ font-size: .85rem }}
figcaption {{ overflow-wrap: anywhere }}
span {{ margin-right: 1rem; white-space: nowrap }}
i {{ display: inline-block; width: .9em; height: .9em; margin-right: .3em; border: 1px solid #888 }}
</style>
<h1>{len(asked["images"])} of {images} masks to look at again</h1>
<p>{escape(asked["run"])}: outlines of the mask that is there and of what models say that never saw the image, those
first that disagree with the mask most confidently. A model may be wrong: these are suspects. <code>prediction/</code>
holds what the models would draw. Masks drawn anew belong into <code>labels/</code> under the images' names, where
<code>python -m experiments.annotate</code> puts them. From the folder <code>suspects</code> of the run its own command
takes them for its next training; the masks before stay in the dataset and the ledger.</p>
<p>{legend}</p><main>{rows}</main></html>
"""


def figure(place, image):
    group = f", {image['group']}" if image["group"] else ""
    said = f"suspicion {image['score']:.4f}, {100 * image['disagreeing']:.1f} % of the pixels disagree{group}"
    head = f"<b>{place}. {escape(image['name'])}</b><br>{escape(said)}"
    return f'<figure><img src="{escape(quote(image["outlines"]))}" alt=""><figcaption>{head}</figcaption></figure>'
