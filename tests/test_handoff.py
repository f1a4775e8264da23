"""Queries handed to annotation tools and back: no pixel is lost, nothing that comes back is trusted."""

import csv
import json
import shutil
import stat
import zipfile
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from experiments.acquisition.pictures import mask_png
from experiments.annotate import answers, handoff, polygons, untrusted
from experiments.annotate.__main__ import FORMATS, main
from experiments.annotate.formats import coco, cvat, labelstudio
from experiments.annotate.request import file_name, named
from experiments.errors import BadData, Refused

CLASSES = ["background", "gland", "vessel & <nerve>", "fat"]
SIZES = {"im_0": (37, 53), "p7/im_1": (48, 40), "im_2": (1, 9), "im_3": (64, 64)}


def drawn(rng, height, width, classes):
    """A mask with touching blobs, holes, single pixels, lines of one pixel, and all of it on the border too."""
    noise = ndimage.gaussian_filter(rng.normal(size=(classes, height, width)), (0, 2, 2))
    mask = noise.argmax(0)
    for _ in range(12):
        y, x, value = rng.integers(height), rng.integers(width), rng.integers(classes)
        mask[y, x] = value
        mask[y, x // 2 : x] = rng.integers(classes)
        steps = np.arange(min(height - y, width - x))
        mask[y + steps, x + steps] = value
    return mask.astype(np.uint8)


def request_of(folder, classes, predicted=True, seed=0):
    """The folder of a query as request.py writes it, with drawn predictions; {name: prediction}."""
    rng, images, masks = np.random.default_rng(seed), [], {}
    for part in ("images", "prediction", "uncertainty", "labels"):
        (folder / part).mkdir(parents=True)
    for rank, (id, (height, width)) in enumerate(SIZES.items()):
        name = file_name(id)
        image = folder / "images" / f"{name}.bmp"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(image)
        entry = {"id": id, "name": name, "image": f"images/{name}.bmp", "group": "benign", "source": "",
                 "sha256": sha256(image.read_bytes()).hexdigest(), "height": height, "width": width,
                 "score": 0.25 + rank, "rank": rank}  # fmt: skip
        if predicted:
            masks[name] = drawn(rng, height, width, len(classes))
            (folder / "prediction" / f"{name}.png").write_bytes(mask_png(masks[name]))
            Image.fromarray(masks[name]).save(folder / "uncertainty" / f"{name}.png")
            entry |= {"prediction": f"prediction/{name}.png", "uncertainty": f"uncertainty/{name}.png"}
        images.append(entry)
    asked = {"run": "bald_0", "cycle": 1, "heuristic": "bald", "classes": named(classes), "images": images}
    (folder / "manifest.json").write_text(json.dumps(asked))
    return masks


@pytest.fixture
def query(tmp_path):
    return tmp_path / "cycle_000", request_of(tmp_path / "cycle_000", CLASSES)


def submitted(out):
    """The predictions of tasks.json as if a person had submitted them: what Label Studio exports."""
    tasks = json.loads((out / "tasks.json").read_text())
    for number, task in enumerate(tasks):
        done = {"id": number, "was_cancelled": False, "completed_by": {"email": "=ann@lab"}, "lead_time": 61.52}
        task["annotations"] = [done | {"result": task.pop("predictions", [{"result": []}])[0]["result"]}]
    path = out / "export.json"
    path.write_text(json.dumps(tasks))
    return path


BACK = {
    "coco": lambda out: out / "annotations" / "instances_default.json",
    "cvat": lambda out: out / "annotations.zip",
    "labelstudio": submitted,
    "napari": lambda out: out / "labels",
    "qupath": lambda out: out / "annotations",
}


def labels(folder):
    return {path.stem: np.array(Image.open(path)) for path in (folder / "labels").glob("*.png")}


def same(found, expected):
    return found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("classes", [CLASSES, ["sky", "road"]])
@pytest.mark.parametrize("kind", FORMATS)
def test_masks_go_there_and_back_without_a_pixel_changed(kind, classes, tmp_path, capsys):
    folder, out = tmp_path / "q", tmp_path / "out"
    for seed in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        masks = request_of(folder, classes, seed=seed)
        assert main([str(folder), "--to", kind, "-o", str(out)]) == 0
        assert sorted(p.name for p in (out / "images").glob("*.bmp")) == sorted(f"{name}.bmp" for name in masks)
        back = ["--from", kind, str(BACK[kind](out))]
        assert main([str(folder), *back, "--unchanged"]) == 0
        assert same(labels(folder), masks)
        images = json.loads((folder / "manifest.json").read_text())["images"]
        rows = answers.table(folder / "labels" / "answers.csv")
        for path in (folder / "labels").glob("*.png"):  # as the run reads them
            image = answers.image_of(path, images, rows[path.name])
            assert image["name"] == path.stem
        assert main([str(folder), *back, "--unchanged"]) == 0 and same(labels(folder), masks)
    assert "4 masks" in capsys.readouterr().out and BACK.keys() == set(FORMATS)


def test_the_reason_is_where_the_tool_shows_it(query, tmp_path):
    folder, _ = query
    for kind in FORMATS:
        main([str(folder), "--to", kind])
    why = "rank 2 by bald, score 1.25, group benign"
    lines = [json.loads(line) for line in (folder / "cvat/images/manifest.jsonl").read_text().splitlines()]
    assert lines[:2] == [{"version": "1.1"}, {"type": "images"}] and lines[3]["meta"]["why"] == why
    assert (folder / "cvat/images" / lines[3]["meta"]["related_images"][0]).exists()
    task = json.loads((folder / "labelstudio/tasks.json").read_text())[1]
    assert task["data"]["why"] == why and task["predictions"][0]["score"] == 1.25
    assert b'<Header value="$why"' in (folder / "labelstudio/config.xml").read_bytes()
    assert json.loads((folder / "coco/annotations/instances_default.json").read_text())["images"][1]["why"] == why
    point = json.loads((folder / "qupath/annotations/p7__im_1.geojson").read_text())["features"][0]["properties"]
    assert point["name"] == why and point["measurements"] == {"score": 1.25, "rank": 1}
    with Image.open(folder / "napari/labels/p7__im_1.tif") as image:
        assert why in str(image.tag_v2[50839], "utf-8", "ignore").replace("\0", "")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 on numpy 2.4
def test_pycocotools_reads_what_is_written_for_coco(query, capsys):
    pytest.importorskip("pycocotools", reason="pip install -r requirements-dev.txt")
    from pycocotools import mask as tool
    from pycocotools.coco import COCO

    folder, masks = query
    main([str(folder), "--to", "coco"])
    read = COCO(folder / "coco/annotations/instances_default.json")
    names = {c["id"]: c["name"] for c in read.loadCats(read.getCatIds())}
    for image in read.loadImgs(read.getImgIds()):
        found = np.zeros((image["height"], image["width"]), np.uint8)
        for one in read.loadAnns(read.getAnnIds(imgIds=image["id"])):
            where = read.annToMask(one).astype(bool)
            assert where.sum() == one["area"]
            found[where] = CLASSES.index(names[one["category_id"]])
        assert np.array_equal(found, masks[image["file_name"][:-4]])
    for mask in masks.values():
        runs = tool.encode(np.asfortranarray(mask == 1))
        assert np.array_equal(coco.of_runs(runs["counts"].decode(), *mask.shape), mask == 1)


def test_geojson_is_of_valid_polygons_of_the_right_area(query):
    shapely = pytest.importorskip("shapely", reason="pip install -r requirements-dev.txt")
    folder, masks = query
    main([str(folder), "--to", "qupath"])
    for name, mask in masks.items():
        found = json.loads((folder / f"qupath/annotations/{name}.geojson").read_text())
        assert found["type"] == "FeatureCollection"
        areas = dict.fromkeys(CLASSES[1:], 0)
        for one in found["features"][1:]:
            shape = shapely.from_geojson(json.dumps(one["geometry"]))
            assert shape.is_valid and one["type"] == "Feature" and one["properties"]["objectType"] == "annotation"
            areas[one["properties"]["classification"]["name"]] += shape.area
        assert list(areas.values()) == [(mask == n).sum() for n in range(1, 4)]


def test_datumaro_reads_what_is_written_for_cvat(query, tmp_path):
    datumaro = pytest.importorskip("datumaro", reason="it pins other pandas: try in an environment of its own")
    folder, masks = query
    main([str(folder), "--to", "cvat"])
    with zipfile.ZipFile(folder / "cvat/annotations.zip") as file:
        file.extractall(tmp_path / "zip")
    read = datumaro.Dataset.import_from(str(tmp_path / "zip"), "voc_segmentation")
    names = [label.name for label in read.categories()[datumaro.AnnotationType.label]]
    for item in read:
        found = np.zeros_like(masks[item.id])
        for one in item.annotations:
            if one.type == datumaro.AnnotationType.mask and names[one.label] != "background":
                found[np.asarray(one.image, bool)] = CLASSES.index(names[one.label])
        assert np.array_equal(found, masks.pop(item.id))
    assert not masks


def test_strokes_are_those_of_label_studio_s_converter():
    rng = np.random.default_rng(0)
    masks = [rng.random(size) < share for size in ((1, 1), (7, 9), (40, 30)) for share in (0, 0.02, 0.5, 1)]
    masks.append(np.ones((150, 200), bool))  # runs beyond 16 bits
    for mask in masks:
        rle = labelstudio.encoded(mask)
        assert np.array_equal(labelstudio.decoded(rle, *mask.shape), mask)
        assert np.array_equal(unpacked(rle).reshape(*mask.shape, 4)[..., 3] == 255, mask)
    brush = pytest.importorskip("label_studio_converter.brush", reason="its converter, pip install --target elsewhere")
    for mask in masks:
        theirs = brush.encode_rle(np.repeat(mask.ravel() * np.uint8(255), 4))
        assert np.array_equal(labelstudio.decoded(list(theirs), *mask.shape), mask)
        found = brush.decode_rle(labelstudio.encoded(mask)).reshape(*mask.shape, 4)
        assert np.array_equal(found, np.repeat(mask[..., None] * np.uint8(255), 4, 2))


def unpacked(rle):
    """rle-pack's decoder, read off its description, one bit after the other."""
    bits, at = "".join(f"{byte:08b}" for byte in rle), 53
    sizes = [int(bits[37 + 4 * n : 41 + 4 * n], 2) + 1 for n in range(4)]
    out = []
    while len(out) < int(bits[:32], 2):
        size = sizes[int(bits[at + 1 : at + 3], 2)]
        length = int(bits[at + 3 : at + 3 + size], 2) + 1
        same, at = bits[at] == "1", at + 3 + size
        words = [int(bits[at + 8 * n : at + 8 * n + 8], 2) for n in range(1 if same else length)]
        out += words * length if same else words
        at += 8 * len(words)
    return np.array(out, np.uint8)


def test_strokes_with_literal_runs_are_read():
    where = np.array([[1, 0, 1]], bool)
    words = "".join(f"{value:08b}" for value in np.repeat(where.ravel() * 255, 4))
    bits = f"{12:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16)) + f"001{11:04b}{words}"
    bits += "0" * (-len(bits) % 8)
    assert np.array_equal(labelstudio.decoded(list(int(bits, 2).to_bytes(len(bits) // 8, "big")), 1, 3), where)


def test_a_pixel_belongs_to_the_polygon_around_its_centre():
    from matplotlib.path import Path

    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[:30, :40] + 0.5
    for _ in range(30):
        ring = rng.uniform(-10, 50, (rng.integers(3, 4), 2))
        mask = np.zeros((30, 40), np.uint8)
        count = polygons.paint(mask, [ring.tolist()], 3)
        inside = Path(ring).contains_points(np.stack([columns.ravel(), rows.ravel()], 1)).reshape(30, 40)
        assert np.array_equal(mask == 3, inside) and count == inside.sum()


def back(folder, kind, source, *more):
    return main([str(folder), "--from", kind, str(source), *more])


def test_partial_and_wrong_returns(query, tmp_path, capsys):
    folder, masks = query
    main([str(folder), "--to", "napari", "-o", str(tmp_path / "out")])
    place = tmp_path / "out" / "labels"
    capsys.readouterr()
    assert back(folder, "napari", place) == 0 and not labels(folder)
    assert "As the model drew them are im_0, im_2, im_3, p7__im_1: left out" in capsys.readouterr().out
    new = (masks["im_0"] + 1) % 4
    Image.fromarray(new.astype(np.int32)).save(place / "im_0.tif")
    Image.fromarray(new).save(place / "im_2.tif")
    Image.fromarray(masks["im_3"] + 4).save(place / "im_3.tif")
    Image.fromarray(new).save(place / "im_9.tif")
    (place / "p7__im_1.tif").write_bytes(b"no TIFF at all")
    before = {path: path.read_bytes() for path in place.iterdir()}
    assert back(folder, "napari", place) == 1 and same(labels(folder), {"im_0": new})
    said = capsys.readouterr().out
    assert "im_2.tif is 53 x 37, its image 9 x 1" in said and "im_9.tif is for no image that was asked for" in said
    assert ": the classes are 0 to 3, 255 is" in said and "p7__im_1.tif cannot be read as TIFF" in said
    assert "Taken: 1 mask into" in said and before == {path: path.read_bytes() for path in place.iterdir()}
    Image.fromarray(masks["im_0"][::-1]).save(place / "im_0.tif")
    back(folder, "napari", place)
    back(folder, "napari", place)
    assert same(labels(folder), {"im_0": new, "im_0__2": masks["im_0"][::-1]})
    rows = answers.table(folder / "labels" / "answers.csv")
    assert rows["im_0__2.png"]["id"] == "im_0" and len(rows) == 2


def test_people_and_their_seconds_come_back_from_label_studio(query, tmp_path, capsys):
    folder, masks = query
    main([str(folder), "--to", "labelstudio", "-o", str(tmp_path / "out")])
    path = submitted(tmp_path / "out")
    tasks = json.loads(path.read_text())
    second = tasks[0]["annotations"][0] | {"completed_by": 7, "lead_time": 1e99, "updated_at": "2026-01-02"}
    tasks[0]["annotations"][0]["updated_at"] = "2026-01-01"
    tasks[0]["annotations"].insert(0, second | {"result": []})  # of another person, later, and empty
    tasks[1]["annotations"][0]["was_cancelled"] = True
    tasks[2]["annotations"][0]["result"][0]["value"]["brushlabels"] = ["glnd"]
    del tasks[3]["data"]["id"], tasks[3]["data"]["sha256"]
    path.write_text(json.dumps(tasks))
    assert back(folder, "labelstudio", path) == 1
    said = capsys.readouterr().out
    assert "im_2.bmp has the label 'glnd': known are gland" in said and "Did you mean gland?" in said
    assert same(labels(folder), {"im_0": masks["im_0"], "im_0__2": masks["im_0"] * 0, "im_3": masks["im_3"]})
    rows = answers.table(folder / "labels" / "answers.csv")
    assert (rows["im_0.png"]["annotator"], rows["im_0.png"]["seconds"]) == ("=ann@lab", "61.5")
    assert (rows["im_0__2.png"]["annotator"], rows["im_0__2.png"]["seconds"]) == ("7", "")
    with open(folder / "labels" / "answers.csv") as file:
        assert next(csv.DictReader(file))["annotator"] == "'=ann@lab"


def test_label_studio_is_given_what_a_browser_shows(query):
    folder, masks = query
    manifest = json.loads((folder / "manifest.json").read_text())
    deep = np.arange(37 * 53, dtype=np.uint16).reshape(37, 53) * 20
    Image.fromarray(deep).save(folder / "images" / "im_0.tif")
    digest = sha256((folder / "images" / "im_0.tif").read_bytes()).hexdigest()
    manifest["images"][0] |= {"image": "images/im_0.tif", "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    main([str(folder), "--to", "labelstudio"])
    task = json.loads((folder / "labelstudio/tasks.json").read_text())[0]
    assert task["data"]["image"].endswith("?d=images/im_0.png") and task["data"]["sha256"] == digest
    with Image.open(folder / "labelstudio/images/im_0.png") as image:
        assert image.mode == "L" and np.corrcoef(np.array(image).ravel(), deep.ravel())[0, 1] > 0.999
    assert not list((folder / "labelstudio/images").glob("*.tif"))
    assert back(folder, "labelstudio", submitted(folder / "labelstudio")) == 0 and same(labels(folder), masks)


def test_a_file_that_is_refused_whole_is_so_before_anything_is_kept(query):
    folder, _ = query
    main([str(folder), "--to", "labelstudio"])
    (submitted(folder / "labelstudio").with_name("z.json")).write_text("{")
    (folder / "labelstudio/tasks.json").unlink()
    with pytest.raises(Refused, match="z.json cannot be read as JSON"):
        back(folder, "labelstudio", folder / "labelstudio")
    assert not labels(folder)


def test_cvat_may_order_and_colour_its_labels_as_it_likes(query, tmp_path, capsys):
    folder, masks = query
    main([str(folder), "--to", "cvat", "-o", str(tmp_path / "out")])
    place = tmp_path / "back"
    (place / "SegmentationClass").mkdir(parents=True)
    other = {"fat": (9, 9, 9), "vessel & <nerve>": (255, 255, 255), "gland": (1, 2, 3), "background": (0, 0, 0)}
    other |= {"not drawn": (5, 0, 0)}
    head = "# label:color_rgb:parts:actions\n"
    (place / "labelmap.txt").write_text(head + "".join(f"{n}:{r},{g},{b}::\n" for n, (r, g, b) in other.items()))
    colours = np.array([other[name] for name in CLASSES], np.uint8)
    Image.fromarray(colours[masks["im_0"]]).save(place / "SegmentationClass" / "im_0.png")
    seen = colours[masks["im_3"]]
    seen[:5] = 5, 0, 0
    Image.fromarray(seen).quantize(8).save(place / "SegmentationClass" / "im_3.png")
    Image.fromarray(colours[masks["im_2"]] + np.uint8(3)).save(place / "SegmentationClass" / "im_2.png")
    assert back(folder, "cvat", place, "--unchanged") == 1
    expected = masks["im_3"].copy()
    expected[:5] = 255
    assert same(labels(folder), {"im_0": masks["im_0"], "im_3": expected})
    assert "which labelmap.txt does not name" in capsys.readouterr().out


def zipped(path, *members):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "_writecheck", lambda *_: None)  # it warns of a name that is there twice
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, kind, data in members:
                info = zipfile.ZipInfo("x")
                info.filename = info.orig_filename = name
                info.external_attr = (kind | 0o644) << 16
                file.writestr(info, data, zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize(
    "members",
    [
        [("/etc/x.tif", stat.S_IFREG, b"x")],
        [("../x.tif", stat.S_IFREG, b"x")],
        [("a/../../x.tif", stat.S_IFREG, b"x")],
        [("a\\..\\x.tif", stat.S_IFREG, b"x")],
        [("C:/x.tif", stat.S_IFREG, b"x")],
        [("a\nb.tif", stat.S_IFREG, b"x")],
        [("im_0.tif", stat.S_IFLNK, b"/etc/passwd")],
        [("im_0.tif", stat.S_IFCHR, b"")],
        [("im_0.tif", stat.S_IFIFO, b"")],
        [("im_0.tif", stat.S_IFREG, b"x"), ("im_0.tif", stat.S_IFREG, b"y")],
        [("x" * 300 + ".tif", stat.S_IFREG, b"x")],
        [("bomb.tif", stat.S_IFREG, bytes(2**22))],
        [(f"{n}.tif", stat.S_IFREG, b"") for n in range(30)],
    ],
)
def test_a_hostile_zip_is_refused_whole(query, tmp_path, members, monkeypatch):
    folder, masks = query
    monkeypatch.setattr(untrusted, "MOST_BYTES", 2**21)
    monkeypatch.setattr(untrusted, "MOST_FILES", 20)
    good = tmp_path / "good.tif"
    Image.fromarray(masks["im_3"]).save(good)
    path = zipped(tmp_path / "back.zip", ("im_3.tif", stat.S_IFREG, good.read_bytes()), *members)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Refused, match="back.zip holds") as refused:
        back(folder, "napari", path, "--unchanged")
    assert "\n" not in str(refused.value) and sorted(tmp_path.rglob("*")) == before and not labels(folder)


def test_a_damaged_zip_or_one_that_lies_about_its_size_is_refused(query, tmp_path):
    folder, _ = query
    data = zipped(tmp_path / "back.zip", ("im_0.tif", stat.S_IFREG, bytes(10**6))).read_bytes()
    for wrong in (data[:-30], data.replace((10**6).to_bytes(4, "little"), (100).to_bytes(4, "little")), b"PK"):
        (tmp_path / "back.zip").write_bytes(wrong)
        with pytest.raises(Refused, match="back.zip cannot be unpacked"):
            back(folder, "napari", tmp_path / "back.zip")
    with pytest.raises(Refused, match="does not exist"):
        back(folder, "napari", tmp_path / "none.zip")
    with pytest.raises(Refused, match="no format: choose from coco, cvat"):
        back(folder, "cavt", tmp_path / "back.zip")


def test_links_out_of_a_returned_folder_are_not_followed(query, tmp_path):
    folder, _ = query
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "im_0.tif").symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="leads out of"):
        back(folder, "napari", tmp_path / "back")


WRONG_COCO = [
    {"counts": [1, 10**12], "size": [37, 53]},
    {"counts": [-5, 37 * 53 + 5], "size": [37, 53]},
    {"counts": [37 * 53 + 1], "size": [37, 53]},
    {"counts": "o" * 400, "size": [37, 53]},
    {"counts": "\u00ff5", "size": [37, 53]},
    {"counts": [37 * 53], "size": [53, 37]},
    {"counts": {}, "size": [37, 53]},
    [[1, 2, 3]],
    [[0, 0, 1e300, 0, 0, 1e300]],
    [["a", "b", "c", "d", "e", "f"]],
    [[[1], [2], [3], [4], [5], [6]]],
    [7],
    [],
    "x",
]


@pytest.mark.parametrize("shape", WRONG_COCO, ids=range(len(WRONG_COCO)))
def test_hostile_annotations_reject_their_image_alone(query, tmp_path, shape, capsys):
    folder, _ = query
    images = [{"id": 1, "file_name": "a/im_0.png"}, {"id": 2, "file_name": "im_2.bmp"}]
    good = {"image_id": 2, "category_id": 3, "segmentation": [[1, 0, 4, 0, 4, 1, 1, 1]]}
    bad = {"image_id": 1, "category_id": 3, "segmentation": shape}
    found = {"images": images, "categories": [{"id": 3, "name": "fat"}], "annotations": [bad, good]}
    (tmp_path / "x.json").write_text(json.dumps(found))
    assert back(folder, "coco", tmp_path / "x.json") == 1
    assert same(labels(folder), {"im_2": np.array([[0, 3, 3, 3, 0, 0, 0, 0, 0]], np.uint8)})
    assert "x.json/im_0.png: " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["coco", "labelstudio", "qupath"])
@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, "{", "NaN", "[NaN]", '{"a": Infinity}', "9" * 5000, "\ud800".encode("utf-8", "surrogatepass")]
    + ["[]", "{}", "3", '{"features": 3}', '[{"annotations": 3, "data": []}]', '{"images": [{}], "categories": 1}'],
)
def test_hostile_json_is_one_line(query, tmp_path, kind, text, capsys):
    folder, _ = query
    path = tmp_path / "im_0.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        back(folder, kind, path)
    except Refused as refused:
        assert str(path) in str(refused) and "\n" not in str(refused)
    assert not labels(folder)


RECTANGLE = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]


@pytest.mark.parametrize(
    "geometry, said",
    [
        ({"type": "Polygon", "coordinates": [[[0, 0], [1e999, 0], [0, 4]]]}, "far outside"),
        ({"type": "Polygon", "coordinates": [[x + 900, y] for x, y in RECTANGLE]}, "no list of x and y"),
        ({"type": "Polygon", "coordinates": [[[x + 900, y] for x, y in RECTANGLE]]}, "lies outside of its image"),
        ({"type": "Polygon", "coordinates": []}, "no list of rings"),
        ({"type": "LineString", "coordinates": RECTANGLE}, "has no area"),
        ({"type": "Polygon"}, "without a geometry"),
        (None, "without a geometry"),
    ],
)
def test_hostile_geometry_is_one_line(query, tmp_path, geometry, said, capsys):
    folder, masks = query
    of = {"classification": {"name": "gland"}}
    good = {"geometry": {"type": "Polygon", "coordinates": [RECTANGLE]}, "properties": of}
    above = {"geometry": {"type": "Polygon", "coordinates": [[[1, 1], [2, 1], [2, 2], [1, 2]]]}}
    above |= {"properties": {"classification": {"names": ["fat"]}}}
    path = tmp_path / "im_0.geojson"
    text = json.dumps({"features": [above, good, {"geometry": geometry, "properties": of}]})
    path.write_text(text.replace("Infinity", "1e999"))
    assert back(folder, "qupath", path) == 1 and said in capsys.readouterr().out and not labels(folder)
    path.write_text(json.dumps({"features": [above, good]}))
    assert back(folder, "qupath", path) == 0
    expected = np.zeros_like(masks["im_0"])
    expected[:4, :4], expected[1, 1] = 1, 3
    assert same(labels(folder), {"im_0": expected})


@pytest.mark.parametrize(
    "rle, said",
    [
        (lambda good: good[:-3], "ends too early"),
        (lambda good: [255] * 4 + good[4:], "is not of 37 x 53"),
        (lambda good: [*good[:-1], 300], "no list of bytes"),
        (lambda good: [*good[:-1], "a"], "no list of bytes"),
        (lambda good: "a" * 99, "no list of bytes"),
        (lambda good: [0] * 10**6, "longer one than its image"),
        (lambda good: good[:4] + [0x3F] + [0xFF] * 300, "is not of|beyond"),
    ],
)
def test_hostile_strokes_are_one_line(rle, said):
    good = labelstudio.encoded(np.arange(37 * 53).reshape(37, 53) % 3 == 0)
    with pytest.raises(BadData, match=said):
        labelstudio.decoded(rle(good), 37, 53)


def test_an_export_is_whole_and_overwrites_nothing(query, tmp_path):
    folder, _ = query
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(Refused, match="is there already"):
        main([str(folder), "--to", "napari", "-o", str(tmp_path / "out")])
    image = next((folder / "images").iterdir())
    image.write_bytes(image.read_bytes() + b"x")
    with pytest.raises(Refused, match="is not the image that was asked for"):
        main([str(folder), "--to", "napari"])
    assert not (folder / "napari").exists() and not (folder / "napari.part").exists()


def test_a_manifest_that_leads_elsewhere_is_refused(query):
    folder, _ = query
    text = (folder / "manifest.json").read_text()
    for wrong in (text.replace("images/im_0.bmp", "../../etc/passwd"), text.replace('"im_0"', '"../im_0"'), "[]", "{"):
        (folder / "manifest.json").write_text(wrong)
        with pytest.raises(Refused, match="is not as the run wrote it"):
            handoff.open_request(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(Refused, match="holds no manifest.json"):
        handoff.open_request(folder)


def test_a_query_without_first_masks_is_handed_over_too(tmp_path, capsys):
    request_of(tmp_path / "start", CLASSES, predicted=False)
    for kind in FORMATS:
        main([str(tmp_path / "start"), "--to", kind])
    assert not (tmp_path / "start" / "cvat" / "annotations.zip").exists()
    assert back(tmp_path / "start", "napari", tmp_path / "start" / "napari" / "labels") == 0
    assert back(tmp_path / "start", "qupath", tmp_path / "start" / "qupath" / "annotations") == 0
    assert not labels(tmp_path / "start") and "Nothing is drawn on im_0, " in capsys.readouterr().out


def test_a_class_that_cvat_cannot_name_is_refused(tmp_path):
    request_of(tmp_path / "q", ["background", "a:b"])
    with pytest.raises(Refused, match="The class a:b cannot be told to CVAT"):
        main([str(tmp_path / "q"), "--to", "cvat"])


def test_objects_have_the_colours_of_voc():
    assert [cvat.voc_colour(n) for n in (0, 1, 2, 3, 8, 255)] == [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (64, 0, 0), (224, 224, 192)
    ]  # fmt: skip
