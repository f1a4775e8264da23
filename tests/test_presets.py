"""Presets: every one is settings that exist; a published system's says the command, its source and whether it ran."""

import shlex

import pytest

from experiments.components.experiment import presets
from experiments.errors import Refused

PUBLISHED = ("al_mgs", "crc_al_camvid", "crc_al_voc", "md_sam_al", "segal_camvid", "stochastic_batches")


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_settings_that_exist(experiment, name, capsys):
    try:
        experiment.run("print_config", named_configs=[name])
    except Refused as refused:
        if "pip install" not in str(refused):
            raise
        pytest.skip(str(refused))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_systems_preset_says_how_it_is_run_and_what_is_known(experiment, name, capsys):
    text = " ".join(line.lstrip("# ") for line in presets()[name].read_text().splitlines() if line.startswith("#"))
    command = text[text.index("python active.py with") :].partition(" run=0")[0]
    named = [word for word in shlex.split(command)[3:] if "=" not in word]
    assert named[0] == name and set(named) <= presets().keys()
    assert "https://" in text and "GPU" in text and "Not run here" in text
