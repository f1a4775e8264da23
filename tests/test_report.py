"""The report: one page that asks for nothing from outside, says what was found, and lets no text of the data act."""

import csv
import io
import itertools
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, ledger_bytes
from PIL import Image
from sacred.arg_parser import get_config_updates

from analysis import plots, rank_diagram, reproduce, runs, statistics
from analysis.embedded import WIDTH
from analysis.report import LISTED, PICTURES, main, report
from experiments.acquisition import pictures
from experiments.errors import Refused
from experiments.records.ledger import Ledger, read

EVIL = "<img src=x onerror=alert(1)>"
VOID = {"meta", "img", "br", "link", "input", "hr", "wbr"}
SETTINGS = {
    "dataset": "phantom",
    "heuristic": "bald",
    "batch": "top",
    "initial": "random",
    "model": "unet",
    "start": 2,
    "query": 2,
    "mc_iters": 2,
    "threads": 1,
    "unet": {"width": 2, "p": 0.1},
}


def make(
    folder,
    label,
    run,
    curve,
    ids=("testA_1", "testA_2"),
    classes=("background", "gland"),
    asked=2,
    said=(),
    **settings,
):
    """One run whose test Dice is `curve`, both images alike, written as the real ones are; returns its folder."""
    settings = {**SETTINGS, "label": label, "run": run, "seed": run, **settings}
    place = folder / f"{label}_{run}"
    with Ledger(place, settings, ["a" * 64, None, "b" * 64]) as book:
        queries = [{"id": f"train_{k}", "region": None, "score": 0.5, "rank": k, "passes": 2} for k in range(asked)]
        book.append("start", queries=queries, classes=list(classes), test=list(ids), **dict(said))
        for cycle, dice in enumerate(curve):
            table = [[0.9, dice]] * len(ids)
            values = {"metrics": {"test.dice": dice}, "per_image": {"dice": table, "iou": table}, "weights": "c" * 64}
            values |= {"foreground": 1000 if label == "full" else 10 + 50 * cycle}
            book.append(
                "evaluated", cycle, images=2 + 2 * cycle, pixels=100 + 100 * cycle, boundary=9, pool=9, **values
            )
            book.time(cycle, train=1.0)
            if cycle < len(curve) - 1:
                book.append("queried", cycle, queries=queries, memory={})
                (place / "queries" / f"cycle_{cycle:03d}.csv").write_text("id,score\ntrain_0,0.5\n")
        book.write_arrays()
    return place


def unsealed(text):
    """A ledger without hashes, as earlier versions wrote it: no one can tell that it was edited."""
    return re.sub(r', "sha256": "\w+"', "", text)


def png(maps=True, side=20):
    noise = np.random.default_rng(0)
    image, map = noise.integers(0, 255, (side, side, 3), dtype=np.uint8), noise.random((side, side))
    return pictures.queries([image] * 2, [map if maps else None] * 2, ["train_0", "train_1"])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """random, a method .1 above it and one that is like it, 5 runs each, and the ceiling. Do not write."""
    folder, noise = tmp_path_factory.mktemp("results"), np.random.default_rng(0)
    drawn = {True: png(), False: png(maps=False)}
    for run in range(5):
        base = np.array([0.5, 0.55, 0.6]) + noise.normal(0, 0.02)
        for label, gain in (("random", 0.0), ("entropy", 0.1), ("variance", 0.0)):
            own = noise.normal(gain, 0.005, 3) * [0, 1, 1] if label != "random" else 0
            place = make(folder, label, run, (base + own).tolist(), heuristic=label)
            for cycle in range(2):
                (place / "queries" / f"cycle_{cycle:03d}.png").write_bytes(drawn[label != "random"])
    make(folder, "full", 0, [0.8], initial="first", start=64)
    return folder


@pytest.fixture(scope="module")
def page(study):
    page = Page(report(study)[0])
    check(page)
    return page


@pytest.fixture
def mine(study, tmp_path):
    """A copy of the study to write into."""
    return Path(shutil.copytree(study, tmp_path / "results"))


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, text by element, tables as rows of words."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words, self.tables, self.style, self.unboxed = [], [], [], [], "", 0
        self.feed(text)
        self.close()
        assert self.open == [], "elements that are never closed"
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, pairs):
        self.elements.append((tag, dict(pairs)))
        if tag == "table":
            self.tables.append([])
            self.unboxed += not any(classes == "scroll" for _, classes in self.open)
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append((tag, dict(pairs).get("class")))

    def handle_startendtag(self, tag, pairs):
        self.elements.append((tag, dict(pairs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if any(tag == "style" for tag, _ in self.open):
            self.style += data
            return
        self.words.append(data)
        if any(tag in ("td", "th") for tag, _ in self.open):
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def check(page):
    """What every report promises, whatever the data."""
    assert page.all("html") == [{"lang": "en"}] and len(page.all("h1")) == len(page.all("main")) == 1
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "data", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/webp;base64,")) or tag == "a", (tag, name, value[:80])
        assert all("url(" not in (v or "") or "url(#" in v for k, v in attributes.items() if k != "src")
    assert "@import" not in page.style and "url(" not in page.style
    assert all(len(image["alt"]) > 10 and image["width"] for image in page.all("img"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.tables and page.unboxed == 0
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))


def test_verdicts_come_first_and_are_those_of_the_statistics(study):
    text, tables = report(study, margin=0.02)
    page = Page(text)
    check(page)
    expected = statistics.compare(runs.load(study), margin=0.02).set_index("label")
    assert dict(expected["verdict"]) == {"random": "baseline", "entropy": "better", "variance": "equivalent"}
    header, *rows = page.tables[0]
    assert header[:2] == ["method", "verdict"] and len(rows) == 3 and header[-2] == "FG-Eff"
    efficiency = statistics.fg_efficiency(runs.load(study))
    for label, verdict, pairs, area, difference, *_, rate, final in rows:
        assert rate == f"{efficiency[label]:.2f}" and float(rate) > 0
        row = expected.loc[label]
        assert row["verdict"] in verdict and pairs == "5"
        assert area == f"{row['aubc']:.3f} ± {row['sd_ddof1']:.3f}" and final == f"{row['final']:.3f}"
        if label != "random":
            shown = [float(x) for x in re.findall(r"[+-][\d.]+", difference.replace("−", "-"))]
            assert shown == pytest.approx(row[["difference", "low", "high"]].tolist(), abs=6e-4)
    assert "entropy is better; variance is equivalent (within ±0.02)." in page.text
    assert "started with the same first Dice, bit for bit" in page.text
    assert "test Dice 0.800, runs: 1" in page.text
    assert tables["verdicts_1.csv"].set_index("label")["aubc"].equals(expected["aubc"])


def test_undecided_says_how_many_runs_are_missing(study, page):
    row = next(row for row in page.tables[0] if row[0] == "variance")
    expected = statistics.compare(runs.load(study)).set_index("label").loc["variance"]
    assert "undecided" in row[1] and row[6] == f"{expected['more_runs']:.0f}" and int(row[6]) > 0
    assert "No margin was stated" in page.text


def test_curves_penalties_and_classes(study, page):
    svg = page.all("svg")
    assert len(svg) == 1 and "viewbox" in svg[0]
    assert {"entropy (5 runs)", "all training labels", "mean test Dice"} <= set(map(str.strip, page.words))
    colours = {c for _, a in page.elements for c in re.findall("#[0-9a-f]{6}", a.get("style") or "")}
    assert "#000000" not in colours and {"#d55e00", "#737373"} <= colours
    assert sum("stroke: currentColor" in (a.get("style") or "") for _, a in page.elements) > 4
    budgets, penalties, classes = page.tables[1:4]
    frame = runs.load(study)
    at_six = frame[(frame["label"] == "entropy") & (frame["images"] == 6)]["test.dice"]
    assert ["entropy", "6", "5", f"{at_six.mean():.3f} ± {at_six.std():.3f}"] in budgets
    matrix = statistics.penalty_matrix(frame)
    assert penalties[0][1:] == list(matrix.columns) == ["entropy", "random", "variance"]
    assert (
        penalties[1][1:] == ["–", *(f"{v:.2f}" for v in matrix.loc["entropy"].iloc[1:])] and penalties[1][2] == "0.67"
    )
    assert penalties[-1] == ["column mean", *(f"{v:.2f}" for v in matrix.sum() / 2)]
    heat = [td["style"] for td in page.all("td") if td.get("class") == "heat"]
    assert heat[:2] == ["--share: 0.67", "--share: 0.67"] and len(heat) == 9  # the diagonal has none
    assert ["entropy", "gland", *[f"{at_six.mean():.3f} ± {at_six.std():.3f}"] * 2] in classes
    assert ["full", "gland", "0.800", "0.800"] in classes


def test_nothing_in_the_data_acts(tmp_path):
    for label, run in itertools.product(("random", EVIL.replace("x", "$x^"), "_'\"&amp;"), range(2)):
        ids, classes = (f'"><script>alert({run})</script>', "{{ 7919 * 7907 }}"), ("background", EVIL)
        place = make(tmp_path, label, run, [0.5, 0.6 + run / 50], ids=ids, classes=classes, unet={"width": EVIL})
        image = np.zeros((8, 8, 3), np.uint8)
        (place / "queries" / "cycle_000.png").write_bytes(pictures.queries([image], [None], ["x"]))
    ledger = tmp_path / "random_0" / "ledger.jsonl"
    ledger.write_text(unsealed(ledger.read_text()).replace("train_0", "\\\"'><svg onload=alert(3)>\\ud800"))
    page = Page(report(tmp_path)[0].encode(errors="replace").decode())
    check(page)
    assert EVIL in page.text and EVIL.replace("x", "$x^") in page.text and "_'\"&amp;" in page.text
    assert "'><svg onload=alert(3)>" in page.text and "62615533" not in page.text


@pytest.mark.parametrize("labels, count, missing", [
    (["bald", "entropy"], 3, "no method 'random'"),
    (["random", "bald"], 1, "Two runs are needed"),
    (["random"], 2, "Two runs are needed"),
    (["full"], 1, "No run here has test.dice"),
])  # fmt: skip
def test_what_is_missing_for_a_verdict_is_said(tmp_path, labels, count, missing):
    for label, run in itertools.product(labels, range(count)):
        make(tmp_path, label, run, [0.5, 0.6])
    page = Page(report(tmp_path)[0])
    check(page)
    assert "Nothing can be said about better or worse yet." in page.text and missing in page.text
    assert "verdict" not in page.tables[0][0]
    assert labels == ["full"] or [labels[0], str(count), "0.550", "0.600"] in [
        [*row[:2], row[2].partition(" ")[0], row[3]] for row in page.tables[0]
    ]


def test_arrays_of_a_published_baseline_are_a_report_too(tmp_path):
    for run in range(3):
        np.save(tmp_path / f"rand_{run}.npy", np.array([0.5, 0.6, 0.7]) + run / 100)
        np.save(tmp_path / f"mc_{run}.npy", np.array([0.5, 0.7, 0.8]) + run / 100)
    with pytest.raises(Refused, match="without its run"):
        report(tmp_path)
    page = Page(report(tmp_path, baseline="rand", published=True, start=4, query=2)[0])
    check(page)
    files = packed(tmp_path, tmp_path, "--published", "4", "2")
    assert {f"{label}_{run}.npy" for label in ("rand", "mc") for run in range(3)} < files.keys()


def test_two_datasets_are_compared_each_on_its_own(tmp_path):
    for dataset, gain in (("phantom", 0.1), ("glas", -0.1)):
        for run in range(3):
            make(tmp_path / dataset, "random", run, [0.5, 0.6 + run / 50], dataset=dataset)
            make(tmp_path / dataset, "bald", run, [0.5, 0.6 + run / 50 + gain + run / 500], dataset=dataset)
    page = Page(report(tmp_path)[0])
    check(page)
    assert "glas: what was found" in page.text and len(page.all("svg")) == 2
    assert page.text.index("bald is worse") < page.text.rindex("phantom: what was found") < page.text.index("is better")


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_the_page(page, scheme):
    """A contrast of 4.5 or more: WCAG 2.2, https://www.w3.org/TR/WCAG22/#contrast-minimum"""
    colours = dict(re.findall(r"--(\w+): #(\w+)", re.findall(r":root \{.*?\}", page.style)[scheme]))

    def luminance(colour):
        digits = "".join(2 * c for c in colour) if len(colour) == 3 else colour
        values = np.array([int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)])
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722] + 0.05

    for words, behind in itertools.product(("text", "soft", "good", "bad", "link"), ("page", "box")):
        ratio = luminance(colours[words]) / luminance(colours[behind])
        assert max(ratio, 1 / ratio) >= 4.5, (words, behind)


def test_gallery_is_bounded_and_says_what_is_left_out(page):
    assert len(page.all("img")) == 6 and "6 of 30 query pictures are here" in page.text
    alts = [image["alt"] for image in page.all("img")]
    assert all("train_0, train_1" in alt for alt in alts)
    listed = [table for table in page.tables if table[0][0] == "image"]
    assert len(listed) == 6 and listed[0][1:] == [["train_0", "0.5", "1", "2"], ["train_1", "0.5", "2", "2"]]


def test_large_studies_stay_small(tmp_path):
    noise = np.random.default_rng(0)
    drawn = io.BytesIO()
    Image.fromarray(noise.integers(0, 255, (352, 1536, 3), dtype=np.uint8)).save(drawn, "PNG", compress_level=1)
    for k in range(9):
        place = make(tmp_path, f"m{k}", 0, [0.5] * 4, asked=20)
        for cycle in range(3):
            (place / "queries" / f"cycle_{cycle:03d}.png").write_bytes(drawn.getvalue())
    text, _ = report(tmp_path)
    page = Page(text)
    assert len(page.all("img")) == PICTURES == 24 and "24 of 27 query pictures" in page.text
    assert "There was no room for m8." in page.text
    assert len(text.encode()) < 10e6 and all(int(image["width"]) <= WIDTH for image in page.all("img"))
    assert max(len(table) for table in page.tables if table[0][0] == "image") == LISTED + 1
    assert "And 12 more, in the ledger." in page.text


def test_pictures_that_are_none_are_said_to_be(mine):
    queries = [mine / f"{label}_0" / "queries" / "cycle_000.png" for label in ("random", "entropy", "variance")]
    queries[0].write_bytes(b"no picture at all")
    Image.new("RGB", (8, 8)).save(queries[1], "JPEG")
    huge = io.BytesIO()
    Image.new("1", (40_000, 4_000)).save(huge, "PNG")
    queries[2].write_bytes(huge.getvalue())
    page = Page(report(mine)[0])
    check(page)
    assert page.text.count("cannot be read as PNG") == 3 and len(page.all("img")) == 3


def test_links_do_not_lead_out_of_the_folder(mine, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    Image.new("RGB", (77, 33)).save(secret / "secret.png")
    np.save(secret / "array.npy", np.arange(3))
    for name, target in (("queries/cycle_000.png", "secret.png"), ("extra.npy", "array.npy")):
        path = mine / "entropy_0" / name
        path.unlink(missing_ok=True)
        path.symlink_to(secret / target)
    (mine / "elsewhere").symlink_to(secret)
    files = packed(mine, tmp_path)
    shown = Page(files["report.html"].decode()).all("img")
    assert len(shown) == 5 and all(image["width"] != "77" for image in shown)
    assert not [name for name in files if "extra" in name or "elsewhere" in name]


def packed(study, folder, *more):
    """{name: bytes} of the zip that the command line makes."""
    main([str(study), "-o", str(folder / "report.html"), "--zip", str(folder / "study.zip"), *more])
    with zipfile.ZipFile(folder / "study.zip") as file:
        assert file.testzip() is None and file.namelist() == sorted(file.namelist())
        return {name: file.read(name) for name in file.namelist()}


def test_zip_holds_the_study_without_its_images(mine, tmp_path, capsys):
    (mine / "entropy_0" / "checkpoint" / "cycle_002.safetensors").write_bytes(b"weights")
    files = packed(mine, tmp_path)
    assert capsys.readouterr().out.split() == [str(tmp_path / "report.html"), str(tmp_path / "study.zip")]
    names = {"ledger.jsonl", "timing.jsonl", "dice.npy", "budget.npy", "queries/cycle_000.csv", "queries/cycle_001.csv"}
    assert {name.partition("/")[2] for name in files if name.startswith("entropy_0/")} == names
    assert {"entropy_0.npy", "full_0.npy", "curves.csv", "verdicts_1.csv", "report.html"} <= files.keys()
    assert {Path(name).suffix for name in files} == {".jsonl", ".npy", ".csv", ".html"}
    assert not any(name.startswith(("/", "..")) or "\\" in name or ".." in name for name in files)
    assert files["report.html"] == (tmp_path / "report.html").read_bytes()
    assert len(pd.read_csv(io.BytesIO(files["curves.csv"]))) == 46
    first = (tmp_path / "study.zip").read_bytes()
    assert packed(mine, tmp_path) == files and (tmp_path / "study.zip").read_bytes() == first
    with zipfile.ZipFile(tmp_path / "study.zip") as file:
        file.extractall(tmp_path / "unpacked")
    pd.testing.assert_frame_equal(runs.load(tmp_path / "unpacked"), runs.load(mine))


def test_settings_that_differ_and_those_that_do_not(study, page):
    books = [read(path.parent) for path in sorted(study.rglob("ledger.jsonl"))]
    methods, differing, common = reproduce.settings(books)
    assert methods == ["entropy", "full", "random", "variance"]
    assert differing["heuristic"] == ["entropy", "full", "random", "variance"]
    assert differing["run"] == ["0, 1, 2, 3, 4", "0", "0, 1, 2, 3, 4", "0, 1, 2, 3, 4"]
    assert differing["cycles"] == ["2", "0", "2", "2"] and differing.keys().isdisjoint(common)
    assert common == {"batch": "top", "dataset": "phantom", "model": "unet"} | {
        "mc_iters": "2", "query": "2", "threads": "1", "unet.p": "0.1", "unet.width": "2"
    }  # fmt: skip
    assert ["unet.width", "2"] in next(table for table in page.tables if table[0] == ["setting", "value"])
    assert ["phantom", "train", "16", "a" * 64] in page.tables[-1] and "AskMask0.1.0" in page.text
    assert "These ledgers do not say" in page.text


def test_what_runs_were_made_with_and_under_what_they_went_on(tmp_path):
    first = {"versions": {"torch": "2.13.0", "baal": EVIL}, "threads": 2, "device": "cpu", "sources": "f" * 64}
    for run in range(3):
        make(tmp_path, "bald", run, [0.5, 0.6], said={"made": first})
    place = make(tmp_path, "bald", 3, [0.5, 0.6], said={"made": first})
    make(tmp_path, "bald", 4, [0.5, 0.6])
    make(tmp_path, "bald", 5, [0.5, 0.6], said={"made": {"versions": "nonsense"}})
    lines = (place / "ledger.jsonl").read_text().splitlines(True)
    event = {"event": "resumed", "cycle": 0, "made": {**first, "threads": 8, "sources": "e" * 64}}
    (place / "ledger.jsonl").write_text(unsealed("".join([*lines[:2], json.dumps(event) + "\n", *lines[2:]])))
    books = [read(path.parent) for path in sorted(tmp_path.rglob("ledger.jsonl"))]
    assert reproduce.resumed(books) == ["bald 3, from cycle 0: threads 2 → 8, sources ffffffffffff → eeeeeeeeeeee"]
    [(what, names), (nothing, others)] = reproduce.made(books)
    assert what == {"torch": "2.13.0", "baal": EVIL, "device": "cpu", "threads": "2", "sources": "f" * 12}
    assert (names, nothing, others) == (["bald 0", "bald 1", "bald 2", "bald 3"], {}, ["bald 4", "bald 5"])
    page = Page(report(tmp_path)[0])
    check(page)
    assert reproduce.resumed(books)[0] in page.text and EVIL in page.text and "bald 4, bald 5" in page.text


def test_what_is_left_out_is_said_on_the_page(mine, capsys):
    (mine / "random_0" / "budget.npy").write_bytes(b"none")
    page = Page(report(mine)[0])
    check(page)
    assert "Left out of everything below: " + capsys.readouterr().out.strip() in page.text
    assert next(row for row in page.tables[0] if row[0] == "entropy")[2] == "4 (1 unpaired)"


def test_contents_lead_to_every_part(page):
    places = {attributes["id"] for tag, attributes in page.elements if tag == "h2"}
    assert {a["href"] for a in page.all("a")} == {f"#{place}" for place in places} == {
        "#study-1", "#queries", "#settings", "#reproduce"
    }  # fmt: skip


def test_full_is_shown_as_full(study, page):
    frame = report(study)[1]["curves.csv"]
    assert set(frame.loc[frame["label"] == "full", "heuristic"]) == {"full"}
    header, *rows = next(table for table in page.tables if table[0][0] == "setting")
    column = header.index("full")
    assert {row[0]: row[column] for row in rows if row[0] in ("heuristic", "cycles")} == {
        "heuristic": "full", "cycles": "0"
    }  # fmt: skip


def test_no_cell_of_the_zip_is_a_formula_and_no_name_leads_out(mine, tmp_path, capsys):
    place = mine / "entropy_0" / "queries"
    (place / "cycle_000.csv").write_text('id,group,score\n=HYPERLINK(1),"@x,y",-0.5\n')
    (place / "cycle_\\..\\evil.csv").write_text("id\n")
    make(mine / "a\\b", "random", 9, [0.5, 0.6, 0.7])
    make(mine, "=1+1", 0, [0.5, 0.6, 0.7])
    files = packed(mine, tmp_path)
    assert not any("\\" in name for name in files) and capsys.readouterr().out.count("is not packed") == 8
    table = pd.read_csv(io.BytesIO(files["entropy_0/queries/cycle_000.csv"]))
    assert table.to_numpy().tolist() == [["'=HYPERLINK(1)", "'@x,y", -0.5]]
    assert "'=1+1" in set(pd.read_csv(io.BytesIO(files["curves.csv"]))["label"])
    for name in (name for name in files if name.endswith(".csv")):
        cells = itertools.chain(*csv.reader(io.StringIO(files[name].decode())))
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r")) or re.match("-[^0-9]", cell)]


@pytest.mark.parametrize(
    "value", ["bald", "two words", "7", "True", 'it\'s "$x"; rm', "", " é😀\n", 3, 0.25, [1, "a"], False]
)
def test_settings_survive_the_command_line(value):
    words = shlex.split(f"python active.py with {shlex.join([f'x={reproduce.literal(value)}'])}")[3:]
    updates, presets = get_config_updates(words)
    assert updates == {"x": value} and presets == []


def test_the_command_of_a_real_run_makes_it_again(undisturbed, experiment, phantom_root, tmp_path):
    page = Page(report(undisturbed)[0])
    check(page)
    line = reproduce.command(read(undisturbed / "bald_0"))
    assert line in page.text and line.startswith("python active.py with dataset=phantom heuristic=bald run=0 ")
    updates, presets = get_config_updates(shlex.split(line)[3:])
    elsewhere = {"phantom.root": str(phantom_root), "results_dir": str(tmp_path), "runs_dir": ""}
    assert presets == [] and "trainer" in updates and "seed" not in updates and "label" not in updates
    experiment.run(config_updates=updates | elsewhere)
    assert ledger_bytes(tmp_path) == ledger_bytes(undisturbed)


def test_the_ceiling_is_made_again_by_its_own_command(study):
    line = reproduce.command(read(study / "full_0"))
    assert line.startswith("python active.py full with dataset=phantom heuristic=bald run=0 ")
    assert not re.search(r"\b(label|initial|start|cycles|seed)=", line)


@pytest.mark.parametrize("damage", ["missing", "empty", "unwritable", "damaged", "baseline"])
def test_errors_are_one_line(mine, tmp_path, damage):
    source, output = mine, tmp_path / "report.html"
    if damage == "missing":
        source = tmp_path / "nothing"
    if damage == "empty":
        source = tmp_path / "empty"
        source.mkdir()
    if damage == "unwritable":
        output = tmp_path / "no folder" / "report.html"
    if damage == "damaged":
        for path in mine.rglob("ledger.jsonl"):
            path.write_text(json.dumps({"event": "start"}) + "\n")
    words = ["--baseline", "radnom"] if damage == "baseline" else []
    with pytest.raises(SystemExit) as exit:
        main([str(source), "-o", str(output), *words])
    assert isinstance(exit.value.code, str) and "\n" not in exit.value.code and not output.exists()
    if damage == "baseline":
        assert "only entropy, random, variance. Did you mean random?" in exit.value.code


def test_a_run_before_its_first_test_is_no_study(tmp_path):
    with Ledger(tmp_path / "bald_0", {**SETTINGS, "label": "bald", "run": 0}, []) as book:
        book.append("start", queries=[], classes=["a", "b"], test=[])
    with pytest.raises(Refused, match="before its first test"):
        report(tmp_path)


def test_labels_saved_stand_beside_a_verdict_and_nowhere_else(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.004, (6, 3))
    for run in range(6):
        make(tmp_path, "random", run, [0.5, 0.6, 0.7])
        make(tmp_path, "bald", run, np.array([0.5, 0.7, 0.72]) + noise[run] * [0, 1, 1])
        make(tmp_path, "other", run, np.array([0.5, 0.6, 0.7]) + noise[run][::-1] * [0, 1, 1])
    page, tables = report(tmp_path)
    saved = tables["verdicts_1.csv"].set_index("label")
    assert saved.loc["bald", "verdict"] == "better" and 1.5 < saved.loc["bald", "saved"] < 2.5
    assert page.count("images saved (") == 1 and saved.loc["bald", "saved_text"] in page


def test_a_study_that_grew_until_it_was_decided_is_judged_by_its_design(tmp_path):
    """The p of a single test, which says too much then, is nowhere."""
    for run, more in enumerate([0.03, 0.01, 0.05, 0.02]):  # p = .049
        make(tmp_path, "random", run, [0.5, 0.6])
        make(tmp_path, "bald", run, [0.5, 0.6 + more])
    _, tables = report(tmp_path)
    assert tables["verdicts_1.csv"].set_index("label").loc["bald", "verdict"] == "better"
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "0.yaml").write_text("until: decided\nmost: 30\nrun: [0, 1, 2]\n")
    page, tables = report(tmp_path)
    grown = tables["verdicts_1.csv"].set_index("label").loc["bald"]
    assert grown["verdict"] == "undecided" and grown["more_runs"] == 26 and np.isnan(grown["p_holm"])
    assert "p values of single tests" in page


def test_comparisons_of_a_study_stand_apart(tmp_path):
    """By the settings that their folders are named for; runs of one name in two folders are no clash then."""
    for lr in ("0.1", "0.01"):
        for label in ("random", "bald"):
            for run in range(3):
                make(tmp_path / f"dataset=phantom,trainer.lr={lr}", label, run, [0.5, 0.6 + float(lr)])
    page, tables = report(tmp_path)
    assert {"verdicts_1.csv", "verdicts_2.csv"} < tables.keys()
    assert "phantom, trainer.lr=0.1: what was found" in page and "All datasets" in page


def test_methods_are_ranked_from_six_datasets_on(tmp_path):
    for number in range(6):
        for label, more in (("random", 0), ("bald", 0.02), ("other", 0.01)):
            for run in range(3):
                curve = [0.5, 0.6 + more + 0.001 * run * (number + 1)]
                make(tmp_path / str(number), label, run, curve, dataset=f"set_{number}")
        if number >= 4:
            page, _ = report(tmp_path)
            assert ("Mean ranks over" in page) == ("Critical-difference diagram" in page) == (number == 5)
    assert "bald 1.00, other 2.00, random 3.00" in page and "critical difference 1.35" in page
    table = next(rows for rows in Page(page).tables if rows[-1][0] == "over all")
    assert table[0] == ["dataset", "bald", "other"] and [row[0] for row in table[1:-1]] == [
        f"set_{n}" for n in range(6)
    ]
    assert all(row[1].startswith("▲ better +0.0") for row in table[1:-1])
    assert table[-1][1] == "▲ better better on 6 of 6" and table[-1][2].startswith("undecided better on 6 of 6")


def test_long_names_leave_room_for_what_is_drawn():
    """Of the ranks, whose axis they would else push together, and in a legend, which they would else run out of."""
    name = "class_stratified,class_stratified.beta=2"
    figure = rank_diagram.draw(pd.Series({"random": 3.0, name: 1.0, "bald": 2.0}), 1.35)
    figure.draw_without_rendering()
    assert figure.axes[0].get_window_extent().width > 2 * figure.dpi
    rows = [
        {"label": label, "run": 0, "cycle": k, "images": k, "test.dice": 0.5} for label in ("a", name) for k in (1, 2)
    ]
    figure = plots.curves(pd.DataFrame(rows), size=(5.4, 3.9))
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1


def test_a_page_follows_a_study(tmp_path):
    """A process that watches writes the page anew when a run gets further; a browser is told to load it again."""
    results, page = tmp_path / "results", tmp_path / "page.html"
    make(results, "random", 0, [0.5, 0.6])
    line = [sys.executable, "-W", "ignore", "-m", "analysis.report", str(results), "-o", str(page), "--watch", "1"]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            seen(page, "random")
            assert '<meta http-equiv="refresh" content="1">' in page.read_text()
            make(results, "bald", 0, [0.5, 0.6])
            seen(page, "bald")
            process.terminate()
            assert process.wait(20) == -signal.SIGTERM
        finally:
            process.kill()  # whatever happened: the pipe is waited for
    assert "refresh" not in report(results)[0]


def seen(page, word):
    deadline = time.monotonic() + 60
    while not (page.exists() and word in page.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
