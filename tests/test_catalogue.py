"""The catalogue lists every published strategy with its source, and the README's table is what it prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.catalogue import catalogue, markdown

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = {
    "heuristic": """random entropy expected_entropy least_confidence margin bald variance vote_variance ams
        alpha_mix tta vote edge_entropy mask_discrepancy coreset kmeans simple_diversity hybrid two_stage progressive
        contextual_diversity badge crc class_stratified typiclust probcover learning_loss vaal ceal random_balanced
        foreground_random""",
    "batch": "top balanced stochastic power diverse diverse_groups",
    "initial": "random first given stratified specular kmeans typiclust none",
}
PLAIN = {"first", "given", "none", "random", "random_balanced", "stratified", "balanced", "top"}  # nobody's invention


@pytest.fixture(scope="module")
def entries():
    return catalogue()


@pytest.mark.parametrize("entry", PUBLISHED)
def test_every_published_strategy_is_there(entries, entry):
    assert set(PUBLISHED[entry].split()) <= {component["name"] for component in entries[entry]}


def test_every_strategy_says_what_it_does_and_where_it_is_from(entries):
    for entry in PUBLISHED:
        for component in entries[entry]:
            assert component["description"].endswith(".")
            assert component["paper"] or component["name"] in PLAIN, component["name"]
            for name, setting in component["settings"].items():
                assert setting["why"], f"{component['name']}.{name} has no why"


def test_the_readme_has_the_table_of_the_catalogue(entries):
    table = (ROOT / "README.md").read_text().partition("--markdown -->\n")[2].partition("\n<!-- end")[0]
    assert table == markdown(entries), "python -m experiments.catalogue --markdown prints the new table"


def test_the_command_prints_json():
    line = [sys.executable, "-m", "experiments.catalogue", "--json"]
    printed = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == json.loads(json.dumps(catalogue()))
