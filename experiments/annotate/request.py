"""The folder of a query for people: images, first masks, uncertainty, what is asked and why, and a page to look at.

images/<name>       the files as they are; pages and tiles as PNG
prediction/<name>   the mask that the model would give, to begin from: a PNG whose values are the classes; none of an
                    image of the audit, for a mask that began from the prediction would agree with it
uncertainty/<name>  what the strategy saw, black to white from its 0.5th to its 99.5th percentile
manifest.json       for programs: names, hashes, sizes, classes, scores, ranks
index.html          for people
labels/             where the answers go
"""

import io
import json
import shutil
from hashlib import sha256
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from experiments.acquisition import pictures, showing
from experiments.records.files import write
from experiments.store.reading import size as size_of


def name_of(cycle):
    """What the folder of the query before this cycle's training is called."""
    return f"cycle_{cycle - 1:03d}" if cycle else "start"


def write_request(state, queries, chosen, cycle, trained):
    """Write the folder of these queries, at the `chosen` positions in train, unless it is whole already; its Path."""
    place = state.ledger.folder / "queries" / name_of(cycle)
    if (place / "manifest.json").exists():
        return place
    for part in ("images", "prediction", "uncertainty", "labels"):
        (place / part).mkdir(parents=True, exist_ok=True)
    masks, maps = [None] * len(chosen), [None] * len(chosen)
    if cycle and trained():
        masks, maps = showing.look(state, cycle - 1, chosen)
    images = []
    for query, index, mask, map in zip(queries, chosen, masks, maps, strict=True):
        shown = (None, None) if query.get("audit") else (mask, map)
        images.append(write_image(state, place, query, index, *shown))
    asked = {
        "run": state.ledger.folder.name,
        "cycle": cycle,
        "heuristic": state.config["heuristic"] if cycle else state.config["initial"],
        "classes": named(state.splits.classes),
        "images": images,
    }
    write(place / "index.html", page(asked).encode())
    write(place / "manifest.json", json.dumps(asked, indent=1).encode())  # last: then the folder is whole
    return place


def write_image(state, place, query, index, mask, map):
    """Write what belongs to one image; its entry in the manifest."""
    item, seen = state.train.split.items[index], state.train.image(index).cpu().numpy()
    name, plain = file_name(query["id"]), isinstance(item.image, Path)
    if plain:
        image = place / "images" / f"{name}{item.image.suffix.lower()}"
        shutil.copyfile(item.image, image)
    else:
        image = place / "images" / f"{name}.png"
        write(image, png(seen[..., 0] if seen.shape[-1] not in (3,) else seen))
    height, width = size_asked(state.train, index)
    entry = {
        "id": query["id"], "name": name, "image": image.relative_to(place).as_posix(), "group": item.group,
        "source": item.source, "sha256": sha256(image.read_bytes()).hexdigest(), "height": height, "width": width,
        "score": query["score"], "rank": query["rank"],
    }  # fmt: skip
    if query.get("audit"):
        entry["audit"] = True
    if mask is not None:
        large = Image.fromarray(mask.numpy()).resize((width, height), Image.Resampling.NEAREST)
        write(place / "prediction" / f"{name}.png", pictures.mask_png(np.array(large)))
        entry["prediction"] = f"prediction/{name}.png"
    if map is not None:
        low, high = np.percentile(map, [0.5, 99.5])
        shown = np.rint((map - low) / max(high - low, 1e-12) * 255).clip(0, 255).astype(np.uint8)
        write(place / "uncertainty" / f"{name}.png", png(np.array(Image.fromarray(shown).resize((width, height)))))
        entry["uncertainty"] = f"uncertainty/{name}.png"
    return entry


def file_name(id):
    """The name that an image's files have, without ending: of no two ids the same."""
    name = id.replace("/", "__")
    return name if name.replace("__", "/") == id else f"{name}-{sha256(id.encode()).hexdigest()[:12]}"


def named(classes):
    """{value of a mask, as text: what it means}."""
    return {str(number): name for number, name in enumerate(classes)} | {"255": "not drawn"}


def size_asked(store, index):
    """(height, width) that an image's mask is to have: those of its file; of a page or a tile as the run sees it."""
    place = store.split.items[index].image
    return size_of(place) if isinstance(place, Path) else tuple(store.sizes[index])


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def page(asked):
    """The page of a manifest, which asks for nothing from outside."""
    legend = "".join(
        f'<span><i style="background:rgb{pictures.mask_colour(int(value))}"></i>{value} {escape(name)}</span>'
        for value, name in asked["classes"].items()
    )
    rows = "".join(figure(place, image, asked["heuristic"]) for place, image in enumerate(asked["images"], 1))
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(asked["run"])}: masks wanted</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 72rem; padding: 0 1rem }}
:root {{ color-scheme: light dark }}
section {{ border-top: 1px solid #8888; padding: 1rem 0 }}
div {{ display: flex; flex-wrap: wrap; gap: .5rem }}
figure {{ flex: 1 1 16rem; margin: 0 }} img {{ width: 100%; image-rendering: auto }} figcaption {{ font-size: .85rem }}
span {{ margin-right: 1rem; white-space: nowrap }}
i {{ display: inline-block; width: .9em; height: .9em; margin-right: .3em; border: 1px solid #888 }}
</style>
<h1>{len(asked["images"])} masks wanted</h1>
<p>{escape(asked["run"])}, cycle {asked["cycle"]}, asked for by {escape(asked["heuristic"])}.
Draw the mask of each image (the files in <code>prediction/</code> are a beginning where there are some), save it as a
PNG whose values are the numbers below, or whose colours are those of the predictions, into <code>labels/</code> under
the image's name, and type the run's command again. What nobody looked at is 255.</p><p>{legend}</p>{rows}</html>
"""


def figure(place, image, heuristic):
    why = "" if image["score"] is None else f", rank {image['rank'] + 1} by {heuristic}: {image['score']:.4g}"
    why = ", at random, for the audit" if image.get("audit") else why
    group = f", {image['group']}" if image["group"] else ""
    parts = "".join(
        f'<figure><img src="{escape(quote(image[part]))}" alt=""><figcaption>{part}</figcaption></figure>'
        for part in ("image", "prediction", "uncertainty")
        if part in image
    )
    size = f"{image['width']} x {image['height']}"
    name = escape(image["name"])
    head = f"<h2>{place}. {name}</h2><p>labels/{name}.png, {size}{escape(group + why)}</p>"
    return f"<section>{head}<div>{parts}</div></section>"
