"""QuPath: a GeoJSON file an image, polygons with holes in pixels of the full image, and the same back.

https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html, RFC 7946. Why an image is asked for is
the name of a point in its corner, with score and rank as measurements. Smaller annotations lie above larger ones.
"""

import json
from functools import partial
from uuid import NAMESPACE_OID, uuid5

import numpy as np

from experiments.annotate.handoff import Drawn
from experiments.annotate.polygons import area, paint, points, traced
from experiments.annotate.untrusted import files, read_json
from experiments.errors import BadData, shown
from experiments.records.files import write as write_file


def write(request, out):
    request.copy_images(out / "images")
    (out / "annotations").mkdir()
    for image in request.images:
        measured = {k: v for k, v in request.reasons(image).items() if isinstance(v, int | float)}
        said = {k: str(v) for k, v in request.reasons(image).items() if isinstance(v, str)}
        why = {"name": request.why(image), "measurements": measured, "metadata": said}
        found = [feature(image, 0, {"type": "Point", "coordinates": [0.5, 0.5]}, why)]
        for name, value, where in request.first_labels(image):
            of = {"classification": {"name": name, "color": list(request.colour(value))}, "measurements": measured}
            for part in traced(where):
                rings = [np.concatenate([ring, ring[:1]]).tolist() for ring in part]
                found.append(feature(image, len(found), {"type": "Polygon", "coordinates": rings}, of))
        text = json.dumps({"type": "FeatureCollection", "features": found})
        write_file(out / "annotations" / f"{image['name']}.geojson", text.encode())
    return (
        "make a QuPath project of images/, drop each annotations/*.geojson onto its image; "
        "export each as GeoJSON (a FeatureCollection) under its image's name."
    )


def feature(image, number, geometry, properties):
    id = str(uuid5(NAMESPACE_OID, f"{image['sha256']} {number}"))
    properties = {"objectType": "annotation", "isLocked": False} | properties
    return {"type": "Feature", "id": id, "geometry": geometry, "properties": properties}


def read(request, place):
    request.say_blank()
    for path in files(place, ".geojson", ".json"):
        yield Drawn(path, partial(mask, request, path))


def mask(request, path, image):
    """The mask of a file, larger annotations below smaller ones; None where none has an area. Raises BadData."""
    found = read_json(path)
    found = found.get("features", [found]) if isinstance(found, dict) else found
    if not isinstance(found, list):
        raise BadData(f"{path} is no GeoJSON: export it as a FeatureCollection.")
    areas = []
    for one in found:
        try:
            geometry, said = one["geometry"], one.get("properties") or {}
            kind, coordinates = geometry["type"], geometry["coordinates"]
            label = said.get("classification") or {}
            label = label.get("name") or ": ".join(label.get("names", []))
        except (KeyError, TypeError, AttributeError) as error:
            raise BadData(f"{path} has an annotation without a geometry: export it again.") from error
        if kind in ("Point", "MultiPoint") and not label:
            continue
        if kind not in ("Polygon", "MultiPolygon"):
            raise BadData(f"{path} has a {shown(kind)}, which has no area: draw a polygon.")
        if not label:
            raise BadData(f"{path} has an annotation without a class: give it one.")
        areas += [(request.value(label, path), part) for part in (coordinates if kind[0] == "M" else [coordinates])]
    drawn = request.canvas(image)
    try:
        for value, part in sorted(areas, key=lambda one: -extent(one[1])):
            if not paint(drawn, part, value) and extent(part) > 1:
                raise BadData("a polygon lies outside of its image: coordinates count pixels of the full image")
    except BadData as error:
        raise BadData(f"{path}: {error}; export it again.") from error
    return drawn if areas else None


def extent(rings):
    """The area within a polygon's outline, in pixels."""
    if not isinstance(rings, list) or not rings or not isinstance(rings[0], list):
        raise BadData("a polygon is no list of rings")
    return area(points(rings[0]))
