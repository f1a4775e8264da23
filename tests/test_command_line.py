"""What a person types: wrong words are refused in one line, right ones do what they say and nothing twice."""

import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TEST, command, events, ledger_bytes, own_file, settings
from PIL import Image

from data import phantom
from experiments.acquisition import trial
from experiments.components.randomness import generator
from experiments.errors import BadData, Refused
from experiments.steps import begin
from experiments.training import trainer

REFUSALS = [
    (["heuristic=blad"], ["'blad'", "Did you mean bald?"]),
    (["heuristc=bald"], ["heuristc", "Did you mean heuristic?"]),
    (["bald.reducton=max"], ["bald.reducton", "Did you mean bald.reduction?"]),
    (["heuristic=bald", "entropy.x=1"], ["entropy", "heuristic=entropy"]),
    (["unet.widht=4"], ["unet.widht", "Did you mean unet.width?"]),
    (["mc_iters=abc"], ["mc_iters", "int", "'abc'"]),
    (["mc_iters=2.5"], ["mc_iters", "int", "2.5"]),
    (["mc_iters=True"], ["mc_iters", "int", "True"]),
    (["mc_iters=0"], ["mc_iters", "at least 1"]),
    (["cycles=-1"], ["cycles", "at least 0"]),
    (["start=0"], ["start", "at least 1"]),
    (["start=abc"], ["start", "fraction", "'abc'"]),
    (["start=1.5"], ["start", "fraction", "1.5"]),
    (["query=0.0"], ["query", "fraction", "0.0"]),
    (["heuristic=mc"], ["'mc'", "heuristic=vote_variance"]),
    (["heuristic=max"], ["'max'", "heuristic=expected_entropy"]),
    (["heuristic=rand"], ["'rand'", "heuristic=random"]),
    (["initial=bald"], ["initial", "'bald'", "random"]),
    (["heuristic=../active"], ["../active"]),
    (["smok"], ["preset", "'smok'", "Did you mean smoke?"]),
    (["entropy"], ["preset", "'entropy'", "heuristic=entropy"]),
    (["label=a/b"], ["label", "'a/b'"]),
    (["label="], ["label"]),
    (["checkpoint=first"], ["checkpoint", "last, all, none"]),
    (["trainer.loss=dise"], ["trainer.loss", "'dise'", "dice"]),
    (["prediction.batch=-1"], ["prediction.batch", "at least 1, or 0", "-1"]),
    (["prediction.mc_chunk=-2"], ["prediction.mc_chunk", "-2"]),
    (["prediction.precision=float16"], ["prediction.precision", "auto, float32, bfloat16", "'float16'"]),
    (["evaluation.passes=0"], ["evaluation.passes", "evaluation.dropout=False"]),
    (["evaluation.batch=-1"], ["evaluation.batch", "-1"]),
    (["bald.reduction=median"], ["reduction", "'median'", "max"]),
    (["bald.reduction=foregroud"], ["Did you mean foreground? There are mean"]),
    (["trainer.loss=dise"], ["Did you mean dice? It is one of ce"]),
    (["heuristic=blad"], ["Did you mean bald? There are", "more"]),
    (["unet.p=1.0"], ["unet.p must be at least 0 and below 1, not 1.0"]),
    (["unet.width=0"], ["unet.width must be at least 1"]),
    (["trainer.lr=-1"], ["trainer.lr must be at least 0"]),
    (["trainer.lr=1e999"], ["trainer.lr", "inf"]),
    (["seed=-1"], ["seed must be at least 0 and at most 4294967295"]),
    (["seed=10000000000"], ["seed must be", "not 10000000000"]),
    (["run=-1"], ["run must be at least 0"]),
    (["cycles=10000000000"], ["cycles must be at most 2147483647"]),
    (["label=full"], ["label=full", "choose another label"]),
    (["label=Full"], ["label=Full", "choose another label"]),
    (["trainer=3"], ["trainer is a group of settings"]),
    (["bald=3"], ["bald is a group of settings"]),
    (["run.x=3"], ["run is one setting"]),
    (["run=3", "run.x=3"], ["run=... and run.x=... cannot both be"]),
    (["heuristic", "=", "bald"], ["No blanks around ="]),
    (["heuristic=", "bald"], ["No blanks around =: type heuristic=bald"]),
    (["heuristic", "=bald"], ["No blanks around ="]),
    (["heuristic", "bald"], ["heuristic is a setting: type heuristic=..."]),
    (["smoke", "with", "run=3"], ["with stands once"]),
    (["glas", "smoke"], ["smoke sets dataset=phantom after glas", "add dataset=glas"]),
    (["mongo_url=mongodb://u:***@h/s"], ["mongo_url has lost its password"]),
    (["mongodb://u:secret@h/s"], ["type mongo_url= before it"]),
]
# what stands for `python active.py`
SPOKEN = [
    ("heuristic=bald run=3", "Did you forget with? Type `python active.py with heuristic=bald run=3`."),
    ("full run=3", "Did you forget with? Type `python active.py full with run=3`."),
    ("smoke", "Did you forget with? Type `python active.py with smoke`."),
    ("wiht heuristic=bald", "Did you mean with? Type `python active.py with heuristic=bald`."),
    ("mongo_url=mongodb://u:secret@h/s", "Did you forget with? Type `python active.py with ...`."),
    ("--heuristic bald", "There is no flag --heuristic: settings stand after with, type `with heuristic=bald`."),
    ("--run=3 with smoke", "There is no flag --run: settings stand after with, type `with run=3`."),
    ("-q with smoke", "There is no flag -q here."),
    ("with smoke --queue", "There is no flag --queue here."),
    ("with smoke -c", "-c takes a value."),
    ("-b soon with smoke", "--beat-interval takes seconds above 0, not 'soon'."),
    ("-l LOUD with smoke", "--loglevel takes a number or DEBUG, INFO"),
    ("-C tape with smoke", "--capture is one of no, sys, fd, not 'tape'."),
    ("fulll with smoke", "There is no command fulll. Did you mean full?"),
    ("help fulll", "There is no command fulll. Did you mean full?"),
    ("full main with smoke", "One command at a time: full or main."),
    ("with", "Nothing stands after with: type settings, as `python active.py with heuristic=bald run=3`."),
]


@pytest.fixture
def typed(experiment, capsys, monkeypatch, tmp_path):
    """typed(*words): `python active.py with *words` in this process and an empty folder: (code, out, err)."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)

    def run(*words, before=("with",)):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            experiment.run_commandline(["active.py", *before, *words])
        return exit.value.code, *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, handler)


def one_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


@pytest.mark.parametrize("words, said", REFUSALS, ids=[" ".join(words) for words, _ in REFUSALS])
def test_wrong_words_are_one_line_and_leave_nothing(typed, tmp_path, words, said):
    code, out, err = typed(*words)
    assert code == 1
    line = one_line(out + err)
    assert all(word in line for word in said), line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words, said", SPOKEN)
def test_words_in_the_wrong_place_are_answered_with_what_to_type(typed, tmp_path, words, said):
    code, out, err = typed(*words.split(), before=())
    assert code == 1 and one_line(out + err).startswith(said) and "secret" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_typed_word_drops_what_a_preset_sets_of_what_it_replaces(experiment, capsys):
    asked = {"dataset": "glas", "glas.root": "elsewhere"}
    config = experiment.run("print_config", asked, ["smoke"]).config
    said = capsys.readouterr().out
    assert "dataset=glas, so what smoke sets of phantom is left out.\n" in said
    assert config["glas"]["root"] == "elsewhere" and "phantom" not in config and config["unet"]["width"] == 2
    assert experiment.run("print_config", {"dataset": "phantom"}, ["glas", "smoke"]).config["phantom"]["crop"] == 64


def test_a_presets_settings_of_what_takes_no_part_fall_away_typed_ones_do_not(
    experiment, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # where no data/GlaS is
    preset = tmp_path / "mine.yaml"
    preset.write_text("heuristic: entropy\nbald: {corrected: True}\nglas: {crop: 64}\nstochastic: {groups: 5}\n")
    config = experiment.run("print_config", {}, [str(preset)]).config
    said = capsys.readouterr().out
    for entry, section in (("heuristic=entropy", "bald"), ("dataset=phantom", "glas"), ("batch=top", "stochastic")):
        assert f"{entry}, so what {preset} sets of {section} is left out.\n" in said
        assert section not in config
    with pytest.raises(Refused, match="bald takes no part in this run: set heuristic=bald or drop its settings"):
        experiment.run("print_config", {"bald.corrected": False}, [str(preset)])
    with pytest.raises(Refused, match="smoke sets dataset=phantom after glas, whose settings of glas then take no"):
        experiment.run("print_config", {}, ["glas", "smoke"])
    for presets in (["quick", "smoke"], ["smoke", "quick"]):  # which is for any dataset
        config = experiment.run("print_config", {"lite.weights": "none"}, presets).config
        assert (config["dataset"], config["model"]) == ("phantom", "lite") and not {"glas", "unet"} & config.keys()


def test_misspelt_key_in_a_preset_file(typed, tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("heuristic: entropy\ntrainer: {epohcs: 3}\n")
    code, out, err = typed(str(preset))
    assert code == 1 and "Did you mean trainer.epochs?" in one_line(out + err)
    assert list(tmp_path.iterdir()) == [preset]


def test_preset_file_is_used(experiment, phantom_root, tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("heuristic: random\nrun: 5\nunet: {p: 0.2}\n")
    updates = settings(phantom_root, tmp_path / "results", cycles=0, label="yaml")
    run = experiment.run(config_updates=updates, named_configs=["smoke", str(preset)])
    assert (run.config["heuristic"], run.config["run"]) == ("random", 5)
    assert run.config["unet"] == {"width": 2, "p": 0.2}
    assert len(events(tmp_path / "results", "yaml", 5)) == 2


@pytest.mark.parametrize("words, said", [REFUSALS[0], REFUSALS[2], REFUSALS[19]], ids=["name", "key", "preset"])
def test_a_terminal_sees_one_line_soon(tmp_path, words, said):
    began = time.monotonic()
    process = command(*words, cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    seconds = time.monotonic() - began
    assert process.returncode == 1
    line = one_line(out + err)
    assert all(word in line for word in said), line
    assert list(tmp_path.iterdir()) == []
    assert seconds < 60, f"a refusal took {seconds:.1f} s"  # 2 on a quiet machine


def test_missing_dataset_folder(typed, tmp_path):
    code, out, err = typed("dataset=glas", "glas.root=nowhere")
    assert code == 1 and "Traceback" not in out + err
    assert "GlaS is not at nowhere" in one_line(err) and "dataset=phantom" in err
    assert list(tmp_path.iterdir()) == []


def test_start_as_a_share(smoke, tmp_path):
    assert [begin.count(share, 16) for share in (0.1, 1.0, 1, 0.01, 99)] == [2, 16, 1, 1, 16]
    smoke(start=0.1, query=0.5, to="share")
    first, _, queried, _ = events(tmp_path / "share")
    assert len(first["queries"]) == 2 and len(queried["queries"]) == 8
    assert (first["settings"]["start"], first["settings"]["query"]) == (2, 8)


def test_other_settings_are_refused_by_name(smoke, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "results")
    with pytest.raises(Refused) as refused:
        smoke(mc_iters=3, runs_dir=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
    assert "mc_iters 2 -> 3" in str(refused.value) and "label=" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert ledger_bytes(tmp_path / "results") == ledger_bytes(undisturbed)


def test_other_images_are_refused(smoke, undisturbed, phantom_root, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "results")
    shutil.copytree(phantom_root, tmp_path / "Phantom")
    path = tmp_path / "Phantom" / "seed_0" / "testA_1.bmp"
    pixels = np.array(Image.open(path))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    with pytest.raises(Refused, match="another configuration.*data"):
        smoke(root=tmp_path / "Phantom")


def test_finished_run_is_not_run_twice(smoke, undisturbed, tmp_path, monkeypatch):
    shutil.copytree(undisturbed, tmp_path / "results")
    file = tmp_path / "results" / "bald_0" / "ledger.jsonl"
    before = file.stat().st_mtime_ns, file.read_bytes()
    monkeypatch.setattr(trainer, "fit", lambda *args, **more: pytest.fail("it trained again"))
    monkeypatch.setattr(trial, "check", lambda *args, **more: pytest.fail("its model was tried, which takes seconds"))
    run = smoke(runs_dir=str(tmp_path / "runs"))
    assert run.status == "COMPLETED"
    assert run.result == events(undisturbed)[-1]["metrics"]["test.dice"]
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before
    assert not (tmp_path / "runs").exists()


def test_more_cycles_extend_a_run(smoke, undisturbed, longer, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "results")
    smoke(cycles=2)
    assert ledger_bytes(tmp_path / "results") == ledger_bytes(longer)
    assert ledger_bytes(longer).startswith(ledger_bytes(undisturbed))
    assert [e["event"] for e in events(longer)] == ["start", *["evaluated", "queried"] * 2, "evaluated"]
    curve = tmp_path / "results" / "bald_0.npy"
    assert curve.read_bytes() == (longer / "bald_0.npy").read_bytes() and np.load(curve).shape == (3,)


def test_pool_runs_empty(smoke, tmp_path, capsys):
    run = smoke(query=100, cycles=5)
    said = capsys.readouterr().out
    evaluated = [e for e in events(tmp_path / "results") if e["event"] == "evaluated"]
    assert [(e["images"], e["pool"]) for e in evaluated] == [(2, 14), (16, 0)]
    assert run.status == "COMPLETED" and "Every image of the pool is labelled" in said
    before = ledger_bytes(tmp_path / "results")
    assert smoke(query=100, cycles=9).result == run.result
    assert ledger_bytes(tmp_path / "results") == before


def test_two_runs_are_bitwise_equal(smoke, undisturbed, tmp_path):
    smoke()
    assert ledger_bytes(tmp_path / "results") == ledger_bytes(undisturbed)
    assert (tmp_path / "results/bald_0.npy").read_bytes() == (undisturbed / "bald_0.npy").read_bytes()


def test_terminal_run_equals_one_in_process(phantom_root, undisturbed, tmp_path):
    updates = settings(phantom_root, "results")
    process = command("smoke", cwd=tmp_path, **updates)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "cycle 1/1: 4 images labelled, test Dice" in out and "Traceback" not in err
    assert out.splitlines()[-1] == "results/bald_0.npy"
    assert ledger_bytes(tmp_path / "results") == ledger_bytes(undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_strategies_of_one_run_number_begin_alike(smoke, undisturbed, tmp_path):
    books = {"bald": events(undisturbed)}
    for name in ("random", "entropy"):
        smoke(heuristic=name)
        books[name] = events(tmp_path / "results", name)
    smoke(heuristic="entropy", batch="balanced", label="balanced", cycles=0)
    assert events(tmp_path / "results", "balanced")[0]["queries"] == books["bald"][0]["queries"]
    smoke(heuristic="random", run=1, cycles=0)
    other = events(tmp_path / "results", "random", 1)
    start, evaluated = books["bald"][:2]
    for name in ("random", "entropy"):
        assert books[name][0]["queries"] == start["queries"]
        assert books[name][1] == evaluated  # metrics of every image and the weights' sha256 among it
        curves = [np.load(path / f"{n}_0.npy") for path, n in ((undisturbed, "bald"), (tmp_path / "results", name))]
        assert curves[0][:1].tobytes() == curves[1][:1].tobytes()
    assert other[0]["queries"] != start["queries"] and other[1]["weights"] != evaluated["weights"]
    asked = {name: [q["id"] for q in book[2]["queries"]] for name, book in books.items()}
    assert asked["random"] != asked["bald"], "the heuristic made no difference"


MINE = '''"""Least confident pixels, to a power."""

from sacred import Ingredient

ingredient = Ingredient("zz_mine")


@ingredient.config
def settings():
    power = 1.0  # above 1 prefers few very uncertain pixels


@ingredient.capture
def uncertainty(prediction, power):
    return (1 - prediction.mean.amax(1)) ** power
'''


def test_own_heuristic_is_one_file(smoke, tmp_path):
    assert len(MINE.splitlines()) <= 20
    with own_file(ROOT / "heuristics" / "zz_mine.py", MINE):
        run = smoke(**{"heuristic": "zz_mine", "zz_mine.power": 2.0})
        smoke(heuristic="zz_mine", label="weak")
        with pytest.raises(Refused, match="Did you mean zz_mine.power"):
            smoke(**{"heuristic": "zz_mine", "zz_mine.powr": 2.0})
    assert run.config["zz_mine"] == {"power": 2.0}
    strong, weak = (events(tmp_path / "results", label)[2]["queries"] for label in ("zz_mine", "weak"))
    assert all(0 < q["score"] <= 0.25 and q["rank"] == i for i, q in enumerate(strong))
    assert min(q["score"] for q in weak) > max(q["score"] for q in strong)  # u < 1, so u squared is less
    with pytest.raises(Refused, match="no heuristic 'zz_mine'"):
        smoke(heuristic="zz_mine")


def pool_ids(root):
    rng = generator(0, "phantom", "split")
    return set(phantom.load(rng=rng, root=str(root), seed=0, crop=64, folds=5, fold=0, split="patients").train.ids)


def test_masks_are_opened_when_they_were_asked_for(smoke, phantom_root, tmp_path, monkeypatch):
    pool, opened, real = pool_ids(phantom_root), [], Image.open

    def spy(path, *args, **more):
        name = Path(path).stem
        if name.endswith("_anno") and name.removesuffix("_anno") in pool:
            asked = {q["id"] for e in events(tmp_path / "results") for q in e.get("queries", ())}
            opened.append((name.removesuffix("_anno"), asked))
        return real(path, *args, **more)

    monkeypatch.setattr(Image, "open", spy)
    smoke()
    assert len(pool) == 16 and len(opened) == 4
    assert all(id in asked for id, asked in opened)


def test_no_file_is_decoded_twice_in_a_run(smoke, monkeypatch):
    opened, real = Counter(), Image.open

    def spy(path, *args, **more):
        opened[Path(path).name] += isinstance(path, str | Path)
        return real(path, *args, **more)

    monkeypatch.setattr(Image, "open", spy)
    smoke()
    drawn = {name: count for name, count in opened.items() if name.endswith(".bmp")}
    assert len(drawn) == 21 + TEST + 5 + TEST + 4 and set(drawn.values()) == {1}  # images; masks that were asked for


def test_unusable_mask_stops_and_after_repair_goes_on(smoke, experiment, undisturbed, phantom_root, tmp_path):
    book = events(undisturbed)
    started = {q["id"] for q in book[0]["queries"]}
    root, names = tmp_path / "Phantom", pool_ids(phantom_root) - started
    shutil.copytree(phantom_root, root)
    for name in names:
        (root / "seed_0" / f"{name}_anno.bmp").write_bytes(b"not a mask")
    with pytest.raises(BadData) as stopped:
        smoke(root=root)
    asked = [q["id"] for q in book[2]["queries"]]
    assert any(f"{name}_anno.bmp" in str(stopped.value) for name in asked) and "\n" not in str(stopped.value)
    assert experiment.current_run.status == "INTERRUPTED"
    kept = ledger_bytes(tmp_path / "results")
    assert kept == b"".join(ledger_bytes(undisturbed).splitlines(keepends=True)[:3])
    for name in asked:
        shutil.copy(phantom_root / "seed_0" / f"{name}_anno.bmp", root / "seed_0")
    smoke(root=root)
    assert ledger_bytes(tmp_path / "results") == ledger_bytes(undisturbed)


def test_a_submodule_of_torch_is_the_one_that_torch_has():
    """The stand-in that spares a refusal torch's import gives way to it whole."""
    code = "import experiments, torch.profiler, torch.nn.functional as F, torch; print(torch.nn.functional is F)"
    code += "; print(torch.profiler.profiler.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "torch.profiler.profiler"]


def test_a_refusal_imports_no_torch():
    """Which takes seconds: no module of a run needs it when it is imported."""
    code = "import active, experiments, sys; print(type(sys.modules['torch']) is experiments._Later)"
    code += "; print('torch.nn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_several_processes_of_torchrun_are_refused(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Refused, match="torchrun began several processes where one trains a run"):
        smoke()
    assert not (tmp_path / "results").exists()
