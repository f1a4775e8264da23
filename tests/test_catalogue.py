"""The catalogue lists every published strategy with its source, and the table in docs/ is what it prints."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.catalogue import catalogue, markdown, show
from experiments.errors import Refused

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = {
    "heuristic": """random entropy expected_entropy least_confidence margin bald variance vote_variance ams
        alpha_mix tta vote edge_entropy mask_discrepancy coreset kmeans simple_diversity hybrid two_stage progressive
        contextual_diversity badge crc class_stratified typiclust probcover learning_loss vaal ceal random_balanced
        foreground_random herding strided bvsb""",
    "batch": "top balanced stochastic power diverse diverse_groups",
    "initial": "random first given annotated stratified specular kmeans typiclust none herding strided",
}
FOLDERS = {"heuristic": "heuristics", "batch": "heuristics/batches", "initial": "heuristics"}
PLAIN = {
    "annotated",
    "first",
    "given",
    "none",
    "random",
    "random_balanced",
    "stratified",
    "balanced",
    "top",
}  # nobody's invention


TABLE = (ROOT / "docs/components.md").read_text("utf-8").partition("--markdown -->\n")[2].partition("\n<!-- end")[0]


def tracked():
    """The component files that git tracks; nothing without git, or in an archive of the project."""
    try:
        line = ["git", "ls-files", "heuristics"]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True).stdout.split()
    except OSError:
        return []


def projects(entries, files):
    """The strategies without those of one's own: of these files, if there are none what the table in docs/ names."""
    named = re.findall(r"^\| `(\w+)`", TABLE, re.MULTILINE)
    files = files or [f"{folder}/{name}.py" for folder in FOLDERS.values() for name in named]
    return {e: [c for c in entries[e] if f"{folder}/{c['name']}.py" in files] for e, folder in FOLDERS.items()}


@pytest.fixture(scope="module")
def entries():
    return catalogue()


@pytest.mark.parametrize("entry", PUBLISHED)
def test_every_published_strategy_is_there(entries, entry):
    assert set(PUBLISHED[entry].split()) <= {component["name"] for component in entries[entry]}


def test_every_strategy_says_what_it_does_and_where_it_is_from(entries):
    for components in projects(entries, tracked()).values():
        for component in components:
            assert component["description"].endswith(".")
            assert component["paper"] or component["name"] in PLAIN, component["name"]
            for name, setting in component["settings"].items():
                assert setting["why"], f"{component['name']}.{name} has no why"


def test_the_readme_has_the_table_of_the_catalogue(entries):
    ours = projects(entries, tracked())
    assert TABLE == markdown(ours), "python -m experiments.catalogue --markdown prints the new table"


@pytest.mark.parametrize("files", [tracked(), []], ids=["with git", "without git"])
def test_a_file_of_ones_own_changes_no_test_of_the_readme(entries, files):
    mine = {"name": "mine", "description": "no full stop", "authors": "", "paper": "", "settings": {}}
    more = {entry: [*components, mine] for entry, components in entries.items()}
    assert projects(more, files) == projects(entries, files)
    assert "`mine`" in markdown(more) and markdown(projects(more, files)) == TABLE


@pytest.mark.parametrize("optimised", [[], ["-OO"]], ids=["plain", "OO"])
def test_the_command_prints_json(entries, optimised):
    """Also where Python keeps no docstrings."""
    line = [sys.executable, *optimised, "-m", "experiments.catalogue", "--json"]
    printed = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == json.loads(json.dumps(entries))


def test_one_component_can_be_asked_for(entries, capsys):
    show(catalogue(["bald"]))
    (bald,) = (component for component in entries["heuristic"] if component["name"] == "bald")
    assert catalogue(["bald"]) == {"heuristic": [bald]}
    printed = capsys.readouterr().out
    assert printed.startswith(f"heuristic=\n  bald  {bald['description']}\n") and "entropy  " not in printed
    show(catalogue(["kmeans"]))
    assert capsys.readouterr().out.endswith("initial=\n  kmeans  as heuristic=kmeans\n\n")
    with pytest.raises(Refused, match="There is no component 'bld'. Did you mean bald?"):
        catalogue(["bald", "bld"])


def test_columns_are_at_least_two_blanks_apart(entries, capsys):
    show(entries)
    printed = capsys.readouterr().out
    for components in entries.values():
        for component in components:
            name, description = component["name"], component["description"]
            assert re.search(rf"^  {name}  +(as \w+={name}|{re.escape(description)})$", printed, re.MULTILINE)
            for key, setting in component["settings"].items():
                start = re.escape(f"{name}.{key}={setting['default']!r}")
                assert re.search(rf" {start}  +{re.escape(setting['why'])}$", printed, re.MULTILINE), start


def test_head_may_close_the_pipe():
    line = f"{shlex.quote(sys.executable)} -u -m experiments.catalogue | head -n 1"
    done = subprocess.run(line, cwd=ROOT, shell=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("heuristic=\n", "")
