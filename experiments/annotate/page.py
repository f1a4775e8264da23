"""The page of a query, for people: each image with why it was asked for, the model's mask and its uncertainty.

It asks for nothing from outside, and can be read on a phone.
"""

from html import escape
from urllib.parse import quote

from experiments.acquisition import pictures

DRAW = """Draw the mask of each image (the files in <code>prediction/</code> are a beginning where there are some), save
it as a PNG whose values are the numbers below, or whose colours are those of the predictions, into <code>labels/</code>
under the image's name, and type the run's command again. What nobody looked at is 255."""
KNOWN = """The dataset has the masks of these images, and the run's command goes on with them; one that is put into
<code>labels/</code> under the image's name, a PNG whose values are the numbers below, counts before the dataset's."""

REASONS = {
    "audit": "at random, for the audit",
    "repeat": "again, for how far two drawings agree: draw it without a look at the first",
}


def written(asked, known=False):
    """The HTML of a manifest; `known`: the dataset has the masks of all these images, nobody needs to draw them."""
    legend = "".join(
        f'<span><i style="background:rgb{pictures.mask_colour(int(value))}"></i>{value} {escape(name)}</span>'
        for value, name in asked["classes"].items()
    )
    rows = "".join(figure(place, image, asked["heuristic"]) for place, image in enumerate(asked["images"], 1))
    what = "images asked for" if known else "masks wanted"
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(asked["run"])}: {what}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 72rem; padding: 0 1rem }}
body {{ overflow-wrap: anywhere }}
:root {{ color-scheme: light dark }}
section {{ border-top: 1px solid #8888; padding: 1rem 0 }}
div {{ display: flex; flex-wrap: wrap; gap: .5rem }}
figure {{ flex: 1 1 16rem; margin: 0; max-width: 24rem }}
img {{ width: 100%; image-rendering: auto }} figcaption {{ font-size: .85rem }}
span {{ margin-right: 1rem; white-space: nowrap }}
i {{ display: inline-block; width: .9em; height: .9em; margin-right: .3em; border: 1px solid #888 }}
</style>
<h1>{len(asked["images"])} {what}</h1>
<p>{escape(asked["run"])}, cycle {asked["cycle"]}, asked for by {escape(asked["heuristic"])}.
{KNOWN if known else DRAW}</p><p>{legend}</p>{rows}</html>
"""


def figure(place, image, heuristic):
    """One image of a manifest: why it was asked for, and what is there to look at."""
    why = [f"{image['width']} x {image['height']}", image["group"]]
    if image["score"] is not None:
        why.append(f"rank {image['rank'] + 1} by {heuristic}: {image['score']:.4g}")
    why += [REASONS[kind] for kind in REASONS if image.get(kind)]
    why.append(f"nearest labelled image: {image['nearest']}" if image.get("nearest") else "")
    parts = "".join(
        f'<figure><img src="{escape(quote(image[part]))}" alt=""><figcaption>{part}</figcaption></figure>'
        for part in ("image", "prediction", "uncertainty")
        if part in image
    )
    name, said = escape(image["name"]), escape(", ".join(filter(None, why)))
    return f"<section><h2>{place}. {name}</h2><p>labels/{name}.png, {said}</p><div>{parts}</div></section>"
