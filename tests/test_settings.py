"""Settings are data: no file and no word runs code, and each stays in the range that stands beside it."""

import json
import os
import pickle
import subprocess
import sys
import threading

import pytest
from conftest import ROOT

from experiments import components
from experiments.components import FOLDERS, allowed, check_settings, defaults, load, names, settings
from experiments.components.address import of_option, without_credentials
from experiments.errors import Refused

OBJECT = {"py/reduce": [{"py/function": "posix.system"}, {"py/tuple": ["touch ran"]}]}


class Touch:
    def __reduce__(self):
        return os.system, ("touch ran",)


EXPLOITS = {
    "evil.json": json.dumps({"tags": OBJECT}).encode(),
    "deep.json": json.dumps({"trainer": {"loss": OBJECT}}).encode(),
    "evil.pickle": pickle.dumps(Touch()),
    "evil.yaml": b"tags: !!python/object/apply:os.system ['touch ran']\n",
    "smoke": pickle.dumps(Touch()),  # a file in the way of a preset's name
}


def test_nothing_that_is_handed_in_runs_code(tmp_path):
    """In a cold process: each file as a preset, as Sacred's own configuration, and a typed value."""
    for name, data in EXPLOITS.items():
        (tmp_path / name).write_bytes(data)
    script = (
        "import sys, active\n"
        "def attempt(call, *words):\n"
        "    try: call(*words)\n"
        "    except (SystemExit, Exception) as error: print(type(error).__name__, error, file=sys.stderr)\n"
        f"for name in {list(EXPLOITS)}:\n"
        "    attempt(active.ex.run_commandline, ['active.py', 'print_config', 'with', name])\n"
        "    attempt(active.ex.add_config, name)\n"
        "    attempt(active.ex.add_named_config, 'n' + name, name)\n"
        f"attempt(active.ex.run_commandline, ['active.py', 'print_config', 'with', 'tags={OBJECT!r}'])\n".replace(
            f"'tags={OBJECT!r}'", repr(f"tags={OBJECT!r}")
        )
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0 and not (tmp_path / "ran").exists(), done.stderr
    assert "Traceback" not in done.stderr and "evil.yaml, line 1, column 7" in done.stderr
    assert "heuristic = 'bald'" in done.stdout  # `with smoke` is the preset


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("a.yaml", "", "line 1, column 1: nothing where `setting: value`"),
        ("a.json", "", "line 1, column 1: Expecting value"),
        ("a.yaml", "- run\n", "line 1, column 1: a list"),
        ("a.json", "[1]", "line 1, column 1: a list"),
        ("a.yaml", "run: 1\nheuristic: [bald\n", "line 3, column 1"),
        ("a.json", '{"run": 1,\n "seed": }', "line 2, column 10"),
        ("a.json", "{'run': 1}", "line 1, column 2"),
        ("a.yaml", "run: 1\ntrainer:\n  lr: 1\n  lr: 2\n", "line 4, column 3: lr is set twice"),
        ("a.json", '{"trainer": {"lr": 1,\n\t"lr": 2}}', "line 2, column 2: lr is set twice"),
        ("a.yaml", "a: " + "[" * 5000, "nested too deep"),
        ("a.json", '{"a": ' + "[" * 50 + "]" * 50 + "}", "column 12: this is nested too deep"),
        ("a.json", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "column 12: this is nested too deep"),
        ("a.yaml", "a: &x [1]\nb: *x\n", "line 2, column 4: an alias"),
        ("a.yaml", "yes: 1\n", "line 1, column 1: a key that is no"),
        ("a.yaml", "run: 1\n--- \nrun: 2\n", "line 2, column 1"),
        ("a.yaml", "run: !!int many\n", "line 1, column 6"),
        ("a.yaml", "run: 1\ntags: \x07\n", "line 2, column 7"),
        ("a.yaml", b"run: 1\ntags: \xff\n", "line 2, column 7: this is no UTF-8"),
        ("a.yaml", "tags: '" + "x" * settings.LARGEST + "'", "larger than"),
        ("a.py", "run = 1", "end in .yaml, .yml or .json"),
        ("a.pickle", pickle.dumps({"run": 1}), "end in .yaml, .yml or .json"),
    ],
)
def test_a_settings_file_that_is_none(tmp_path, name, data, said):
    file = tmp_path / name
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(Refused) as refused:
        settings.read(file)
    line = str(refused.value)
    assert line.startswith(str(file)) and said in line and "\n" not in line and len(line) < 300 + len(str(file))


def test_settings_files_hold_plain_values(tmp_path):
    (tmp_path / "a.yaml").write_text("trainer: {lr: 1e-3, weight_decay: 1.e-5}\nrun: 3\ntags: 1e-3x\nnoted: [bald]\n")
    (tmp_path / "a.json").write_text('\ufeff{"trainer": {"lr":\t1e-3}, "tags": "\\u00e9"}')
    found = {"trainer": {"lr": 0.001, "weight_decay": 1e-5}, "run": 3, "tags": "1e-3x", "noted": ["bald"]}
    assert settings.read(tmp_path / "a.yaml") == found
    assert settings.read(tmp_path / "a.json") == {"trainer": {"lr": 0.001}, "tags": "é"}
    os.mkfifo(tmp_path / "endless.yaml")
    with pytest.raises(Refused, match="is no file"):
        settings.read(tmp_path / "endless.yaml")


def sections(experiment):
    for part in experiment.always:
        yield part.path, part
    for entry in FOLDERS:
        for name in names(entry):
            yield name, load(entry, name).ingredient


def test_every_number_has_a_range_and_every_default_lies_in_it(experiment):
    checked = 0
    for path, part in [("", experiment), *sections(experiment)]:
        known, ranges = defaults(part), allowed(part)
        if not ranges:
            continue  # a file of one's own need not state any
        assert ranges.keys() <= known.keys(), path
        for key, value in known.items():
            number = type(value) in (int, float)
            assert not number or isinstance(ranges.get(key), settings.Range | range), f"{path}.{key} states no range"
            settings.check(f"{path}.{key}", value, value, ranges.get(key), key in experiment.fractions)
            checked += number
    assert checked > 70


def outside(limit):
    if isinstance(limit, range):
        return [limit.start - 1, limit.start + 1]
    wrong = [float("nan"), float("inf")]
    wrong += [limit.least - 1] * (limit.least > -1e300 and not (limit.zero and limit.least == 1))
    wrong += [-1] * bool(limit.zero) + [limit.most + 1] * (limit.most < 1e300)
    return wrong + [limit.above] * (limit.above > -1e300) + [limit.below] * (limit.below < 1e300)


def test_numbers_out_of_range_and_other_words_are_refused_with_what_is_right(experiment):
    tried = 0
    for path, part in sections(experiment):
        known = defaults(part)
        for key, limit in allowed(part).items():
            numbers = isinstance(limit, settings.Range | range)
            for wrong in outside(limit) if numbers else ["nonsense"]:
                whole = type(known[key]) is int and float(wrong).is_integer() if numbers else False
                value = int(wrong) if whole else wrong
                value = [value] if isinstance(known[key], list) else value
                with pytest.raises(Refused) as refused:
                    settings.check(f"{path}.{key}", value, known[key], limit)
                assert f"{path}.{key}" in str(refused.value) and "\n" not in str(refused.value)
                tried += 1
    assert tried > 150
    unet = load("model", "unet")
    with pytest.raises(Refused, match="unet.p must be at least 0 and below 1, not 1.0"):
        check_settings(unet, p=1.0)
    with pytest.raises(Refused, match="trainer.epochs must be at most 2147483647, not 10000000000"):
        settings.check("trainer.epochs", 10**10, 1, settings.Range(least=1))


@pytest.mark.parametrize(
    "url, kept",
    [
        ("", ""),
        ("mongodb://h/s?tls=true&tlsCertificateKeyFilePassword=X", "mongodb://h/s"),
        ("mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:X", "mongodb://h"),
        ("mongodb+srv://me:X@a.b.c/runs?w=1&proxyPassword=X@y", "mongodb+srv://me:***@a.b.c/runs"),
        ("mongodb://me:X@h1:1,[::1]:2/runs", "mongodb://me:***@h1:1,[::1]:2/runs"),
        ("me:X@127.0.0.1:1", "me:***@127.0.0.1:1"),
        ("127.0.0.1:27017/runs?password=X", "127.0.0.1:27017/runs"),
        ("mongodb://:X@h/s", "mongodb://:***@h/s"),
        ("mongodb://%2Ftmp%2Fm-27017.sock/s", "mongodb://%2Ftmp%2Fm-27017.sock/s"),
        ("mongodb://me:X/s", "mongodb://***"),  # where an @ was forgotten the port would be the password
        ("mongodb://me:X?y@h/s", "mongodb://***"),
        ("mongodb://h/s&password=X", "mongodb://***"),
        ("mongodb://me:X@", "mongodb://***"),
        ("X", "X"),
    ],
)
def test_of_an_address_only_where_it_leads_is_kept(url, kept):
    assert without_credentials(url) == kept
    assert url in ("", "X") or "X" not in kept


@pytest.mark.parametrize("way", ["setting", "option", "file"])
def test_secrets_of_an_address_reach_no_record(experiment, tmp_path, monkeypatch, capsys, way, phantom_root):
    from conftest import settings as tiny

    monkeypatch.chdir(tmp_path)
    url = "mongodb://me:X7secret@127.0.0.1:1/s?appName=X7secret&authMechanismProperties=AWS_SESSION_TOKEN:X7secret"
    words = [f"{k}={v}" for k, v in tiny(phantom_root, "results", cycles=0, runs_dir="runs").items()]
    outside = tmp_path.with_name(f"{tmp_path.name}.yaml")
    outside.write_text(f"mongo_url: {url}\n")
    given = {"setting": ([], [f"mongo_url={url}"]), "option": (["-m", url], []), "file": ([], [str(outside)])}
    flags, more = given[way]
    run = experiment.run_commandline(["active.py", *flags, "with", "smoke", *words, *more])
    assert run.config["mongo_url"] == "mongodb://me:***@127.0.0.1:1/s"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"me:***@127.0.0.1:1/s" in path.read_bytes() for path in written)
    assert not [path for path in written if b"X7secret" in path.read_bytes()]
    assert "X7secret" not in "".join(capsys.readouterr()) + run.captured_out


def test_options_of_sacred_name_an_address():
    assert of_option("runs") == "mongodb://127.0.0.1:27017/runs"
    assert of_option("h:1") == "mongodb://h:1/sacred" and of_option("h:1:runs") == "mongodb://h:1/runs"


def test_home_is_written_out_in_every_path(experiment, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    updates = {name: f"~/{name}" for name in ("results_dir", "runs_dir", "tensorboard_dir", "phantom.root")}
    updates |= {"initial": "kmeans", "kmeans.weights": "~/w.safetensors", "tags": "~"}
    (tmp_path / "w.safetensors").touch()
    (tmp_path / "mine.yaml").write_text("run: 4\n")
    config = experiment.run("print_config", config_updates=updates, named_configs=["~/mine.yaml"]).config
    assert {config[name] for name in ("results_dir", "runs_dir", "tensorboard_dir")} == {
        str(tmp_path / name) for name in ("results_dir", "runs_dir", "tensorboard_dir")
    }
    assert config["phantom"]["root"] == str(tmp_path / "phantom.root") and config["tags"] == "~" and config["run"] == 4
    assert config["kmeans"]["weights"] == str(tmp_path / "w.safetensors")


def test_a_second_run_in_the_same_process_is_refused(experiment, monkeypatch):
    inside, go = threading.Event(), threading.Event()

    def wait(config, parts, command):
        inside.set()
        assert go.wait(60)

    monkeypatch.setattr(experiment, "check", wait)
    first = threading.Thread(target=experiment.run, args=("print_config",))
    first.start()
    assert inside.wait(60)
    try:
        with pytest.raises(Refused, match="Another run is going on in this process"):
            experiment.run("print_config", {"heuristic": "entropy"})
    finally:
        go.set()
        first.join()
    assert experiment.run("print_config", {"heuristic": "entropy"}).config["heuristic"] == "entropy"
    assert components.names("heuristic")
