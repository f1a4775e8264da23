"""What a run's numbers depend on beside settings and data: versions, threads, device, precision and source files."""

import ast
import platform
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import torch

from experiments.components import ROOT
from experiments.network import processes
from experiments.network.device import precision_on

PACKAGES = ("torch", "numpy", "baal", "monai", "kornia", "sacred")
PROJECT = ("experiments", "heuristics", "data", "models")  # analysis/ only reads results


def made_with(config, components, device):
    """{versions, threads, ranks of torchrun, device, precision, sources} as JSON values, without a clock, host or path.

    `components` are the modules taking part, `device` is the torch.device at work, already set up.
    """
    cpu = device.type == "cpu"
    precisions = {part: precision_on(device, config[part]["precision"]) for part in ("trainer", "prediction")}
    alike = len(set(precisions.values())) == 1
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        **({"ranks": processes.count()} if processes.count() > 1 else {}),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **({"instructions": torch.backends.cpu.get_cpu_capability()} if cpu else {}),
        "precision": precisions["trainer"]
        if alike
        else "training {trainer}, prediction {prediction}".format(**precisions),
        "sources": hash_sources(components),
    }


def hash_sources(components, start=("active.py",)):
    """sha256 over the names and bytes of active.py, these modules and all of the project that they import.

    A heuristic that takes no part is none of them. Settings files are not either: settings are compared by value.
    `start` may name other files than active.py, or none.
    """
    waiting = [
        *(ROOT / name for name in start),
        *(Path(file) for c in components if (file := getattr(c, "__file__", None))),
    ]
    found = {}
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = path.read_bytes()
            waiting += imported(found[path])
    return hash_files(found)


def hash_files(found):
    """sha256 over the names and bytes of files {path: bytes}."""
    digest = sha256()
    for path in sorted(found):
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        digest.update(f"{name} {len(found[path])}\n".encode() + found[path])
    return digest.hexdigest()


def imported(source):
    """Paths of the project's files that these bytes of Python import, at the top or late, with their packages'."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    paths = set()
    for parts in (name.split(".") for name in names if name.split(".")[0] in PROJECT):
        for n in range(1, len(parts) + 1):
            place = ROOT.joinpath(*parts[:n])
            paths |= {path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()}
    return paths
