"""The doctor's page: a self-contained HTML file with every kind of fault and pictures of what is suspicious."""

import base64
import io
import os

import jinja2
import numpy as np
from PIL import Image

from data.doctor.files import SUFFIXES
from data.doctor.sets import by_kind
from experiments.store.reading import MAX_IMAGE, MAX_PIXELS, files_of, regular

SHOWN = 12  # faults of a kind with pictures
THUMB = 160  # pixels a side of a picture, at most

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ name }}: {{ faults }} faults</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { text-align: left; padding: .2em 1em .2em 0; border-bottom: 1px solid #ddd }
figure { display: inline-block; vertical-align: top; width: 23em; margin: 0 1em 1em 0 }
figcaption { font-size: 13px; overflow-wrap: anywhere } img { image-rendering: auto; margin-right: 4px }
p { color: #555 }
</style>
<h1>{{ name }}</h1>
<p>{{ images }} images, {{ faults or "no" }} fault{{ "" if faults == 1 else "s" }}.</p>
<table>{% if kinds %}<tr><th>kind<th>faults<th>what to do{% endif %}
{% for kind in kinds %}<tr><td><a href="#{{ loop.index }}">{{ kind.name }}</a><td>{{ kind.count }}<td>{{ kind.fix }}
{% endfor %}</table>
{% for kind in kinds %}<h2 id="{{ loop.index }}">{{ kind.name }}</h2>
{% for fault in kind.shown %}<figure>{% for url in fault.pictures %}<img alt="" src="{{ url }}">{% endfor %}
<figcaption><b>{{ fault.path }}</b><br>{{ fault.found }}</figcaption></figure>
{% endfor %}{% if kind.count > kind.shown | length %}<p>and {{ kind.count - kind.shown | length }} more</p>{% endif %}
{% endfor %}</html>
"""


def page(name, images, faults):
    """HTML of a dataset's Faults; every text in it is escaped."""
    kinds = []
    for kind, some in sorted(by_kind(faults).items(), key=lambda pair: -len(pair[1])):
        shown = [{"path": f.path, "found": f.found, "pictures": pictures(f)} for f in some[:SHOWN]]
        kinds.append({"name": kind, "count": len(some), "fix": some[0].fix, "shown": shown})
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    return template.render(name=name, images=images, faults=len(faults), kinds=kinds)


def pictures(fault):
    """data: addresses of the image, and of the mask in greys, of each item that a fault concerns, if they open."""
    found = [(files_of(place)[0], place == item.mask) for item in fault.items for place in (item.image, item.mask)]
    return [url for path, is_mask in found if (url := thumbnail(path, is_mask))]


def thumbnail(path, is_mask):
    try:
        with Image.open(regular(os.fspath(path), MAX_IMAGE), formats=list(SUFFIXES)) as image:
            if image.width * image.height > MAX_PIXELS:
                return ""
            image.load()
            if is_mask and image.mode in ("L", "P", "I", "I;16", "F"):
                values = np.nan_to_num(np.array(image).astype(np.float32))
                image = Image.fromarray((255 * values / max(values.max(), 1)).clip(0, 255).astype(np.uint8))
            image = image.convert("RGB")
            image.thumbnail((THUMB, THUMB))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return ""
    png = io.BytesIO()
    image.save(png, "PNG")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
