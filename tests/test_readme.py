"""Every command line that README.md, CONTRIBUTING.md and docs/ print can be typed.

Always: its settings, module or target are known. With ASKMASK_README=1, in a fresh clone and from nothing: it ends well
(about 50 minutes on two cores, for it makes the environment and the printed studies; ASKMASK_README=quick leaves out
the LONG lines, of which each takes about ten minutes).
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from experiments.components import ROOT

COMMAND = re.compile(r"^    ((?:make|python|pip|for|\.|\.venv/bin/\w+) .*)$", re.M)
# what needs a browser, a database, a GPU's index or the gate itself: the first two have tests of their own
DATA = {"with glas ": "GlaS", "axon_myelin_small": "AxonMyelinSEM"}  # what a line needs: its folder there
LONG = ("experiments.study", "analysis.statistics", "axon_myelin_small", "with glas cpu", "experiments.benchmark score")
ELSEWHERE = (
    "make omniboard",
    "mongodb://",
    "my_images",
    "pip install --force-reinstall",
    "make test",
    "make PYTHON",
)


def printed(*files):
    """The command lines of these files, without what is behind a #."""
    found = {}
    for file in files:
        text = re.sub(r"```.*?```", "", (ROOT / file).read_text(), flags=re.S)
        for line in COMMAND.findall(text):
            found.setdefault(re.sub(r"\s+#.*", "", line).strip(), file)
    return found


LINES = printed("README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))


def test_the_files_print_commands():
    assert {"make demo", "make test", ". .venv/bin/activate", "python active.py with heuristic=bald run=3"} <= set(
        LINES
    )
    assert len(LINES) > 12


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make ")])
def test_a_target_exists(line):
    target = line.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), line


@pytest.mark.parametrize("line", [line for line in LINES if "python -m " in line or "python active.py" in line])
def test_a_module_or_setting_exists(line, tmp_path):
    for module in re.findall(r"python -m ([\w.]+)", line):
        assert find_spec(module), line
    for words in re.findall(r"python active\.py ([^;]*)", line):
        words = words.replace("$run", "0").replace('-c "a note" ', "").replace('-c "why" ', "")
        given = words.partition("with ")[2].split()
        typed = [sys.executable, str(ROOT / "active.py"), "print_config", "with", *given]
        done = subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stderr}"


@pytest.mark.skipif(not os.environ.get("ASKMASK_README"), reason="types all of README, set ASKMASK_README=1")
def test_everything_can_be_typed_from_nothing(tmp_path):
    clone, shared = tmp_path / "clone", ROOT.parent / "shared" / "data"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    left_out = ELSEWHERE + LONG * (os.environ["ASKMASK_README"] == "quick")
    typed = [line for line in LINES if not any(word in line for word in left_out)]
    first = ["make demo", "make .venv/ready-dev", ". .venv/bin/activate"]  # the second is what `make test` begins with
    script = ["set +e"]
    for line in [*first, *(line for line in typed if line not in first)]:
        data = next((folder for word, folder in DATA.items() if word in line and "print_config" not in line), "")
        if data and not (shared / data).exists():
            print(f"left out, for {shared / data} is not there: {line}")
            continue
        script += [f"ln -sfn {shared / data} data/{data}"] if data else []
        script += [f"echo 'TYPED {line.replace(chr(39), '')}'", line, 'echo "ENDED $?"']
        script += [f"rm data/{data}"] if data else []
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("VIRTUAL", "PYTHON", "PYTEST"))}
    done = subprocess.run(["bash", "-c", "\n".join(script)], cwd=clone, env=plain, capture_output=True, text=True)
    ended = re.findall(r"TYPED (.*)|ENDED (\d+)", done.stdout)
    failed = [line for (line, _), (_, code) in zip(ended[::2], ended[1::2], strict=True) if code != "0"]
    assert not failed, f"{failed}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
