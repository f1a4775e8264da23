"""The folder of a query for people: images, first masks, uncertainty, what is asked and why, and a page to look at.

images/<name>       the files as they are; pages and tiles as PNG
prediction/<name>   the mask that the model would give, to begin from: a PNG whose values are the classes; none of an
                    image of the audit, for a mask that began from the prediction would agree with it, nor of a repeat
uncertainty/<name>  what the strategy saw, black to white from its 0.5th to its 99.5th percentile
manifest.json       for programs: names, hashes, sizes, classes, scores, ranks, the nearest labelled image
index.html          for people
labels/             where the answers go
"""

import io
import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.acquisition import pictures, showing
from experiments.annotate import nearest, page
from experiments.records.files import write
from experiments.store.reading import size as size_of


def name_of(cycle):
    """What the folder of the query before this cycle's training is called."""
    return f"cycle_{cycle - 1:03d}" if cycle else "start"


def write_request(state, queries, cycle, trained):
    """Write the folder of these queries unless it is whole already; returns its Path."""
    place = state.ledger.folder / "queries" / name_of(cycle)
    if (place / "manifest.json").exists():
        return place
    for part in ("images", "prediction", "uncertainty", "labels"):
        (place / part).mkdir(parents=True, exist_ok=True)
    position = {id: index for index, id in enumerate(state.train.ids)}
    chosen = [position[query["id"]] for query in queries]
    near, by = nearest.among(state, chosen, cycle, trained)
    if cycle and not any(near):
        state.progress.line(f"{place.name} names no nearest labelled images: {by}.")
    masks, maps = [None] * len(chosen), [None] * len(chosen)
    if cycle and trained():
        masks, maps = showing.look(state, cycle - 1, chosen)
    images = []
    for query, index, mask, map, other in zip(queries, chosen, masks, maps, near, strict=True):
        shown = (None, None) if query.get("audit") or query.get("repeat") else (mask, map)
        entry = write_image(state, place, query, index, *shown)
        images.append(entry | {"nearest": None if query.get("repeat") else other})
    asked = {
        "run": state.ledger.folder.name,
        "cycle": cycle,
        "heuristic": state.config["heuristic"] if cycle else state.config["initial"],
        "classes": named(state.splits.classes),
        "nearest_by": by,
        "images": images,
    }
    drawn = all(state.train.split.items[index].mask is not None for index in chosen)
    write(place / "index.html", page.written(asked, drawn).encode())
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
    entry |= {kind: True for kind in ("audit", "repeat") if query.get(kind)}
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
