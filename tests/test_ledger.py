"""What is on the disk survives: torn lines, full disks, killed processes, damaged checkpoints."""

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from conftest import ROOT, command, events, ledger_bytes, settings

from experiments.errors import Refused
from experiments.network.checkpoint import hash_weights
from experiments.records import chain, ledger
from experiments.records.files import append_line, write
from experiments.records.ledger import Ledger, finished, read
from experiments.training import trainer

SETTINGS = {"seed": 0, "unet": {"width": 2}}
MEASURED = {"images": 1, "pixels": 9, "metrics": {"test.dice": 1 / 3}, "per_image": {"dice": [[0.5, 1 / 3]]}}
MEASURED |= {"weights": "0" * 64}


@pytest.fixture
def folder(tmp_path):
    """The folder of a run with three events."""
    with Ledger(tmp_path / "bald_0", SETTINGS, ["abc"]) as book:
        book.append("start", queries=[{"id": "train_1", "score": 0.1}], classes=[], test=["a"])
        book.append("evaluated", 0, pool=3, **MEASURED)
        book.append("queried", 0, queries=[])
    return tmp_path / "bald_0"


def all_of(event):
    """An event that a run holds, with its arrays as JSON has them."""
    return event | {name: {k: v.tolist() for k, v in event[name].items()} for name in ("per_image",) if name in event}


def test_append_reads_back(folder):
    with Ledger(folder, SETTINGS, ["abc"]) as book:
        assert [all_of(event) for event in book.events] == read(folder)
        assert [e["event"] for e in book.events] == ["start", "evaluated", "queried"]
        assert book.find("evaluated")["metrics"]["test.dice"] == 1 / 3
        assert book.find("evaluated", 1) is None
        assert (book.events[0]["settings"], book.events[0]["data"]) == (SETTINGS, ["abc"])
        event = book.append("evaluated", 1, pool=2, pair=(1, 2), **MEASURED)
        assert event["pair"] == [1, 2] and book.find("evaluated", 1) is event and all_of(event) == read(folder)[-1]
        with pytest.raises(ValueError):
            book.append("evaluated", 2, value=float("nan"))
        assert len(read(folder)) == len(book.events) == 4
    assert not finished(folder, 2) and finished(folder, 1)


def test_torn_last_line_is_cut(folder):
    file = folder / "ledger.jsonl"
    whole = file.read_bytes()
    for torn in (b'{"event": "eval', b'{"event": "evaluated", "cycle": 1}', b"\0\0\0"):
        file.write_bytes(whole + torn)
        assert len(read(folder)) == 3
        with Ledger(folder, SETTINGS, ["abc"]) as book:
            assert len(book.events) == 3
        assert file.read_bytes() == whole
    file.write_bytes(b'{"event": "st')
    with Ledger(folder, {"seed": 1}, []) as book:
        assert book.events == [] and file.read_bytes() == b""


def lines_of(folder):
    return (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)


def unsealed(lines):
    """Lines as they were before there were hashes."""
    return [re.sub(rb', "sha256": "\w+"', b"", line) for line in lines]


EVALUATED = {"event": "evaluated", "cycle": 0, "pool": 3, **MEASURED}


def written(**event):
    return json.dumps(event).encode() + b"\n"


@pytest.mark.parametrize("damage, number, reason", [
    (lambda a, b, c: [a, b.replace(b"0.333", b"0.777"), c], 2, "edited"),
    (lambda a, b, c: [a, b, c.replace(b"[]", b'[{"id": "x"}]')], 3, "edited"),
    (lambda a, b, c: [a.replace(b"0.1", b"0.2"), b, c], 1, "edited"),
    (lambda a, b, c: [b, c], 1, "lost"),
    (lambda a, b, c: [a, c], 2, "lost"),
    (lambda a, b, c: [a, c, b], 2, "moved"),
    (lambda a, b, c: [a, b, b, c], 3, "doubled"),
    (lambda a, b, c: [a, b, c, a], 4, "doubled"),
    (lambda a, b, c: [a, *unsealed([b]), c], 2, "hash"),
    (lambda a, b, c: [*unsealed([a]), b, c], 2, "edited"),
    (lambda a, b, c: [a, b[:-80] + b[-80:].upper(), c], 2, "hash|JSON"),
    (lambda a, b, c: [a, b'{"event": "ev\n', c], 2, "no JSON"),
    (lambda a, b, c: [a, b"\0\0\0\0\n", c], 2, "no JSON"),
    (lambda a, b, c: [a, b"\xff\xfe{}\n", c], 2, "UTF-8"),
    (lambda a, b, c: [a, b"7\n", c], 2, "no JSON object"),
    (lambda a, b, c: [a, b"[" * 10**5 + b"\n", c], 2, "nested"),
    (lambda a, b, c: [a, b'{"a": ' * 10**5 + b"\n", c], 2, "nested"),
    (lambda a, b, c: [a, b'{"a": NaN}\n', c], 2, "NaN"),
    (lambda a, b, c: [a, b"1" * 5000 + b"\n", c], 2, "digits"),
])  # fmt: skip
def test_damage_is_refused_with_its_line(folder, damage, number, reason):
    (folder / "ledger.jsonl").write_bytes(b"".join(damage(*lines_of(folder))))
    refused_in_line(folder, number, reason)


@pytest.mark.parametrize("event, reason", [
    ({}, "no event"),
    ({"event": ["evaluated"], "cycle": 0}, "no event"),
    ({"event": "asked", "cycle": 0}, "'asked' is no event"),
    ({**EVALUATED, "cycle": "0"}, "cycle"),
    ({**EVALUATED, "cycle": True}, "cycle"),
    ({**EVALUATED, "cycle": 1}, "evaluated of cycle 1 stands where evaluated of cycle 0"),
    ({**EVALUATED, "images": None}, "images"),
    ({**EVALUATED, "pool": -1}, "pool"),
    ({**EVALUATED, "pixels": 10**30}, "pixels"),
    ({**EVALUATED, "metrics": {"test.dice": "0.5"}}, "numbers"),
    ({**EVALUATED, "per_image": {"dice": [[0.5], [0.5, 1]]}}, "table"),
    ({**EVALUATED, "per_image": {"dice": {"a": 1}}}, "table"),
    ({**EVALUATED, "per_image": {}}, "Dice"),
    ({**EVALUATED, "weights": 7}, "weights"),
    ({"event": "queried", "cycle": 0, "queries": []}, "queried of cycle 0 stands where evaluated"),
    ({"event": "start", "cycle": 0, "settings": {}, "data": [], "queries": [], "classes": [], "test": []}, "start"),
    ({"event": "resumed", "cycle": 0}, "made"),
    ({"event": "resumed", "cycle": 0, "made": {"a": {"b": {}}}}, "nested"),
    ({**EVALUATED, "masks": {}}, "hash"),
])  # fmt: skip
def test_lines_without_hashes_are_looked_at_too(folder, event, reason):
    """As an earlier version wrote them: all that can be told is whether they are events in their order."""
    before, _, after = unsealed(lines_of(folder))
    (folder / "ledger.jsonl").write_bytes(before + written(**event) + after)
    refused_in_line(folder, 2, reason)


@pytest.mark.parametrize("queries", [7, [7], [{"id": 7}], ["train_1"], [{"id": "train_1", "score": "0"}]])
def test_queries_that_are_none_are_refused(folder, queries):
    before = unsealed(lines_of(folder))[:2]
    (folder / "ledger.jsonl").write_bytes(b"".join(before) + written(event="queried", cycle=0, queries=queries))
    refused_in_line(folder, 3, "quer")


def refused_in_line(folder, number, reason):
    before = (folder / "ledger.jsonl").read_bytes()
    for open_ in (read, lambda folder: Ledger(folder, SETTINGS, ["abc"]).__enter__()):
        with pytest.raises(Refused, match=reason) as refused:
            open_(folder)
        said = str(refused.value)
        assert f"ledger.jsonl is damaged in line {number} (" in said and "\n" not in said and len(said) < 500
    assert (folder / "ledger.jsonl").read_bytes() == before


@pytest.mark.parametrize("ids, said", [
    (["train_2"], "line 1 .*'train_1' is no training image"),
    (["train_1"], "line 3 .*'train_1' is asked for twice"),
])  # fmt: skip
def test_ids_that_are_unknown_or_asked_twice_are_refused(tmp_path, ids, said):
    with Ledger(tmp_path, SETTINGS, ["abc"]) as book:
        book.append("start", queries=[{"id": "train_1", "score": None}], classes=[], test=[])
        book.append("evaluated", 0, pool=3, **MEASURED)
        book.append("queried", 0, queries=[{"id": "train_1", "score": None}])
    with pytest.raises(Refused, match=said):
        Ledger(tmp_path, SETTINGS, ["abc"], ids=ids).__enter__()


def test_a_ledger_without_hashes_goes_on_with_them(folder):
    """The first hash covers the lines before it, which no one could tell from edited ones until then."""
    old = b"".join(unsealed(lines_of(folder)))
    (folder / "ledger.jsonl").write_bytes(old)
    with Ledger(folder, SETTINGS, ["abc"]) as book:
        assert len(book.events) == book.chain.unsealed == 3
        book.append("evaluated", 1, pool=1, **MEASURED)
        book.append("queried", 1, queries=[])
    whole = (folder / "ledger.jsonl").read_bytes()
    assert whole.startswith(old) and len(read(folder)) == 5
    before, _, end = whole.splitlines()[3].decode().rpartition(', "sha256": "')
    assert end == hashlib.sha256(old + before.encode()).hexdigest() + '"}'
    (folder / "ledger.jsonl").write_bytes(whole.replace(b'"score": 0.1', b'"score": 0.2'))
    refused_in_line(folder, 4, "a line before it, was edited")


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "endless"])
def test_what_is_no_file_is_refused_at_once(folder, kind):
    file = folder / "ledger.jsonl"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero" if kind == "endless" else file)
    for open_ in (read, lambda folder: Ledger(folder, SETTINGS, ["abc"]).__enter__()):
        with pytest.raises(Refused, match="ledger.jsonl (is no file|cannot be read)"):
            open_(folder)


def test_a_line_too_long_is_neither_read_nor_written(folder, monkeypatch):
    monkeypatch.setattr(chain, "LONGEST", 2000)
    with Ledger(folder, SETTINGS, ["abc"]) as book:
        with pytest.raises(Refused, match="takes no line of"):
            book.append("evaluated", 1, pool=1, long="x" * 2000, **MEASURED)
        assert len(book.events) == 3
    with open(folder / "ledger.jsonl", "ab") as file:
        file.write(b"x" * 2001)
    refused_in_line(folder, 4, "longer")
    monkeypatch.setattr(chain, "LARGEST", 1000)
    with pytest.raises(Refused, match="no file of at most 1000 bytes"):
        read(folder)


@pytest.mark.parametrize("place", ["", "results"])
def test_a_folder_that_cannot_be_is_refused(tmp_path, place):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(Refused, match="cannot be (written|read)"):
        Ledger(tmp_path / "results" / place, SETTINGS, []).__enter__()


@pytest.mark.parametrize("settings, data, named", [
    ({"seed": 1, "unet": {"width": 2}}, ["abc"], "seed 0 -> 1"),
    ({"seed": 0, "unet": {"width": 4}}, ["abc"], "unet.width 2 -> 4"),
    (SETTINGS, ["abd"], "data: other train images"),
])  # fmt: skip
def test_another_run_is_refused(folder, settings, data, named):
    with pytest.raises(Refused, match=named):
        with Ledger(folder, settings, data):
            pass
    with Ledger(folder, {**SETTINGS, "device": "cuda:0", "cycles": 9, "mongo_url": "x"}, ["abc"]) as book:
        assert len(book.events) == 3


def test_lock_within_a_process(folder):
    with Ledger(folder, SETTINGS, ["abc"]):
        with pytest.raises(Refused, match="another run"):
            with Ledger(folder, SETTINGS, ["abc"]):
                pass
    with Ledger(folder, SETTINGS, ["abc"]) as book:
        assert len(book.events) == 3


def test_lock_between_processes_dies_with_its_owner(folder):
    holder = f"""if True:
        from experiments.records.ledger import Ledger
        with Ledger({str(folder)!r}, {SETTINGS!r}, ["abc"]):
            print("held", flush=True)
            input()"""
    line = [sys.executable, "-W", "ignore", "-c", holder]
    process = subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(Refused, match="another run"):
            with Ledger(folder, SETTINGS, ["abc"]):
                pass
    finally:
        process.kill()
        process.communicate()
    with Ledger(folder, SETTINGS, ["abc"]) as book:
        assert len(book.events) == 3


def full(*args):
    raise OSError(28, "No space left on device")


@contextmanager
def small_disk(size):
    """No file of this process may grow beyond `size` bytes in here, so a write really stops halfway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:  # at once, for pytest's own log may be longer
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_write_is_all_or_nothing(tmp_path, monkeypatch, call):
    path = tmp_path / "bald_0.npy"
    write(path, b"old")
    monkeypatch.setattr(ledger.os, call, full)
    with pytest.raises(Refused) as refused:
        write(path, b"new and longer")
    assert str(path) in str(refused.value) and "No space left" in str(refused.value)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write(path, b"new and longer")
    assert path.read_bytes() == b"new and longer" and list(tmp_path.iterdir()) == [path]


def test_write_that_stops_halfway(tmp_path):
    path = tmp_path / "bald_0.npy"
    write(path, b"old")
    with pytest.raises(Refused, match="bald_0.npy cannot be written"), small_disk(10_000):
        write(path, bytes(30_000))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_append_that_cannot_be_synced_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    append_line(path, "one")
    monkeypatch.setattr(ledger.os, "fsync", full)
    with pytest.raises(Refused) as refused:
        append_line(path, "two")
    assert str(path) in str(refused.value) and "No space left" in str(refused.value)
    assert path.read_bytes() == b"one\n"


@pytest.mark.parametrize("length", [100, 30_000])  # within and beyond a file object's buffer
def test_append_that_stops_halfway_is_taken_back(folder, length):
    before = (folder / "ledger.jsonl").read_bytes()
    with Ledger(folder, SETTINGS, ["abc"]) as book:
        with pytest.raises(Refused, match="ledger.jsonl cannot be written"), small_disk(len(before) + 50):
            book.append("evaluated", 1, pool=0, long="x" * length, **MEASURED)
        assert (folder / "ledger.jsonl").read_bytes() == before
        assert len(book.events) == 3
        book.append("evaluated", 1, pool=0, **MEASURED)
    assert len(read(folder)) == 4


def weights():
    return {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor([1, 2]), "c": torch.zeros(())}


def test_weights_round_trip(folder):
    with Ledger(folder, SETTINGS, ["abc"]) as book:
        digest = book.save_weights(0, weights(), "last")
        back = book.load_weights(0, digest)
        assert back.keys() == weights().keys()
        assert all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in weights().items())
        assert digest == hash_weights(back) != hash_weights({**weights(), "c": torch.ones(())})
        assert book.load_weights(0, "0" * 64) is None
        assert book.load_weights(1, digest) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "missing"])
def test_damaged_weights_are_found(folder, damage):
    with Ledger(folder, SETTINGS, ["abc"]) as book:
        digest = book.save_weights(0, weights(), "last")
        damage_file(folder / "checkpoint" / "cycle_000.safetensors", damage)
        assert book.load_weights(0, digest) is None


def damage_file(path, damage):
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
    path.write_bytes({"flip": data, "truncate": data[:-5], "empty": b"", "missing": b""}[damage])
    if damage == "missing":
        path.unlink()


def test_which_weights_are_kept(tmp_path):
    for keep, expected in {"last": [2], "all": [0, 1, 2], "none": []}.items():
        with Ledger(tmp_path / keep, SETTINGS, []) as book:
            for cycle in range(3):
                book.save_weights(cycle, weights(), keep)
                book.drop_weights(cycle, keep)
        found = sorted(path.name for path in (tmp_path / keep / "checkpoint").iterdir())
        assert found == [f"cycle_{cycle:03d}.safetensors" for cycle in expected]


@pytest.mark.parametrize("damage", ["flip", "missing"])
def test_lost_checkpoint_is_trained_again(smoke, undisturbed, longer, tmp_path, damage):
    shutil.copytree(undisturbed, tmp_path / "results")
    damage_file(tmp_path / "results/bald_0/checkpoint/cycle_001.safetensors", damage)
    smoke(cycles=2)
    assert ledger_bytes(tmp_path / "results") == ledger_bytes(longer)


def test_good_checkpoint_is_not_trained_again(smoke, undisturbed, longer, tmp_path, monkeypatch):
    shutil.copytree(undisturbed, tmp_path / "results")
    trained, real = [], trainer.fit
    monkeypatch.setattr(trainer, "fit", lambda *a, **more: trained.append(a[4]) or real(*a, **more))
    smoke(cycles=2)
    assert trained == [(0, "phantom", 2)]
    assert ledger_bytes(tmp_path / "results") == ledger_bytes(longer)


def test_crash_after_every_event(smoke, longer, tmp_path, monkeypatch):
    class Crash(Exception):
        pass

    def append(book, *args, **values):
        real(book, *args, **values)
        raise Crash

    real, crashes = Ledger.append, 0
    monkeypatch.setattr(Ledger, "append", append)
    while crashes < 10:
        try:
            smoke(cycles=2)
            break
        except Crash:
            crashes += 1
            assert longer_prefix(longer, crashes) == ledger_bytes(tmp_path / "results")
    assert crashes == 6
    assert_same(tmp_path / "results", longer)


def longer_prefix(longer, count):
    return b"".join(ledger_bytes(longer).splitlines(keepends=True)[:count])


def assert_same(results, expected):
    assert ledger_bytes(results) == ledger_bytes(expected)
    for name in ("bald_0.npy", "bald_0/dice.npy", "bald_0/budget.npy"):
        assert (results / name).read_bytes() == (expected / name).read_bytes(), name


def test_what_a_crash_left_is_tidied_up(folder):
    """Half a line of timing, files half written, and the checkpoint of a cycle before the last one."""
    with Ledger(folder, SETTINGS, ["abc"]) as book:
        for cycle in (0, 1):
            book.save_weights(cycle, weights(), "last")
        book.time(0, train=1.0)
    with open(folder / "timing.jsonl", "a") as file:
        file.write('{"cycle": 0, "qu')
    left = [folder.with_name("bald_0.npy.part"), folder / "budget.npy.part", folder / "queries" / "cycle_000.csv.part"]
    left += [folder / "checkpoint" / "cycle_001.safetensors.part", folder / "checkpoint" / "cycle_001.safetensors"]
    for path in left:
        path.touch()
    others = folder.with_name("bald_1.npy.part"), folder / "sacred" / "x.json.part"
    others[1].parent.mkdir()
    for path in others:
        path.touch()
    with Ledger(folder, {**SETTINGS, "checkpoint": "all"}, ["abc"]) as book:
        assert [path.exists() for path in left] == [False] * 4 + [True]
        book.time(1, train=2.0)
    assert [json.loads(line)["cycle"] for line in (folder / "timing.jsonl").read_text().splitlines()] == [0, 1]
    with Ledger(folder, {**SETTINGS, "checkpoint": "last"}, ["abc"]):
        assert not left[-1].exists() and (folder / "checkpoint" / "cycle_000.safetensors").exists()
    assert all(path.exists() for path in others)  # of runs and records that may be at work


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_kept_nor_taken(folder, value):
    from safetensors.torch import save_file

    wrong = {**weights(), "a": torch.tensor([1.0, value])}
    with Ledger(folder, SETTINGS, ["abc"]) as book:
        for keep in ("last", "none"):
            with pytest.raises(Refused, match="The weights of cycle 0 are not finite .a.: lower trainer.lr"):
                book.save_weights(0, wrong, keep)
        assert not any((folder / "checkpoint").iterdir())
        save_file(wrong, folder / "checkpoint" / "cycle_000.safetensors")
        with pytest.raises(Refused, match="cycle_000.safetensors are not finite"):
            book.load_weights(0, hash_weights(wrong))


def started(tmp_path, phantom_root):
    """A run in a process of its own that has written its first event."""
    process = command("smoke", cwd=tmp_path, **settings(phantom_root, tmp_path / "results", cycles=2))
    deadline = time.monotonic() + 60
    while not read(tmp_path / "results" / "bald_0"):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"no first event: {process.communicate()}")
        time.sleep(0.02)
    return process


def test_terminated(smoke, longer, phantom_root, tmp_path):
    process = started(tmp_path, phantom_root)
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "Traceback" not in out + err and "the same command continues" in err
    assert longer_prefix(longer, len(read(tmp_path / "results/bald_0"))) == ledger_bytes(tmp_path / "results")
    smoke(cycles=2)
    assert_same(tmp_path / "results", longer)


def test_no_clock_or_place_in_the_ledger(longer):
    text = ledger_bytes(longer).decode()
    assert os.uname().nodename not in text and "/" not in text
    assert all("seconds" not in json.loads(line) for line in text.splitlines())


def test_a_query_leaves_a_table_of_the_pool_with_the_scores_that_it_was_chosen_by(longer):
    import pandas

    found = events(longer)
    for cycle, event in enumerate(e for e in found if e["event"] == "queried"):
        table = pandas.read_csv(longer / "bald_0" / "queries" / f"cycle_{cycle:03d}.csv")
        assert list(table) == ["id", "group", "picked", "score", "entropy", "expected_entropy", "bald", "variance"]
        assert len(table) == found[1 + 2 * cycle]["pool"] and table.id.is_unique
        picked = table.dropna(subset="picked").sort_values("picked")
        assert picked.id.tolist() == [q["id"] for q in event["queries"]]
        assert picked.score.tolist() == [q["score"] for q in event["queries"]]
        assert (table.score - table.bald).abs().max() < 1e-6
