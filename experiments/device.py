"""Look at what a run would be computed on: `python -m experiments.device`.

The device that is taken, whether it computes what the CPU does, how fast it is, what to change if something is off, and
the versions and sources that a run would have in its ledger. One screen; exit code 1 if the device computes wrongly.
"""

import argparse
import json
import os
import shutil
import sys
from copy import deepcopy
from time import perf_counter

import torch

from experiments.components import ROOT, configure, load, source_files
from experiments.errors.process import one_line_errors

SIZE, BATCH, PASSES = 128, 8, 4  # of the images that are timed: their side in pixels, how many, stochastic passes
CLOSE = 1e-2  # of the largest value: TF32, which NVIDIA cards take for convolutions, is some 1e-3 apart
SECONDS = 1.0  # that a timing takes at least


def main(words):
    """Run the command; returns the exit code. Raises Refused where the device cannot be used."""
    options = parse(words)
    found = look(options.device, options.threads)
    print(json.dumps(found, indent=1) if options.json else screen(found))
    return int(not found["correct"])


def look(device="auto", threads=0):
    """What this machine makes of a U-Net, as JSON values."""
    from experiments.records.provenance import made_with
    from experiments.training import trainer  # need torch at once

    chosen = trainer.prepare(device=device, threads=threads, deterministic=False)
    file = load("model", "unet")
    configure(file, {})
    same = {"precision": "auto"}
    made = made_with({"trainer": same, "prediction": same}, [file], chosen)
    model, cpu = built(file, chosen), built(file, torch.device("cpu"))
    apart = compared(cpu, model, chosen)
    speed = {"train": timed(lambda: step(model, images(chosen))), "score": timed(lambda: scored(model, chosen))}
    found = {
        "place": str(chosen),
        **made,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "difference": apart,
        "correct": apart["forward"] < CLOSE and apart["backward"] < CLOSE,
        "images_per_second": {name: BATCH / seconds for name, seconds in speed.items()},
    }
    found["sources"] = hash_of_all()
    return found | {"advice": advice(found, chosen, here())}


def built(file, device):
    """The U-Net of models/unet.py on a device, the same weights on each."""
    from experiments.network.ready import build

    with torch.random.fork_rng(devices=[]):
        model, _ = build(file, 3, 2, (0, "device"), device)
    return model


def images(device, count=BATCH):
    """(count, 3, SIZE, SIZE) in [0, 1], the same on each device."""
    values = torch.arange(count * 3 * SIZE * SIZE, dtype=torch.float64)
    return (values.mul(0.618034) % 1).float().view(count, 3, SIZE, SIZE).to(device)


def step(model, x):
    """One training step without its update: (logits, gradients), dropout left out."""
    model.eval()
    model.zero_grad(set_to_none=True)
    logits = model(x)
    masks = (x.mean(1) > 0.5).long()
    torch.nn.functional.cross_entropy(logits, masks).backward()
    return logits.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def compared(cpu, model, device):
    """How far logits and gradients are from the CPU's in double precision, as shares of the largest value."""
    right, exact = step(deepcopy(cpu).double(), images("cpu", 2).double())
    logits, gradients = step(model, images(device, 2))

    def apart(found, true):
        return float((found.cpu().double() - true).abs().max() / true.abs().max().clamp_min(1e-12))

    backward = apart(torch.cat([g.flatten().cpu() for g in gradients]), torch.cat([g.flatten() for g in exact]))
    return {"forward": apart(logits, right), "backward": backward}


def scored(model, device):
    """The passes of a query over BATCH images."""
    from experiments.acquisition.prediction import pass_keys, predict

    shown = (images(device) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    ids = [str(number) for number in range(BATCH)]
    return predict(model, shown, ids, pass_keys((0, "device", 0), "score", ids, PASSES)).mean


def timed(work):
    """Seconds of a call: the fastest of those that fit into SECONDS, after a first one."""
    best, began = float("inf"), None
    while best == float("inf") or perf_counter() - began < SECONDS:
        start = perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if torch.backends.mps.is_available():
            torch.mps.synchronize()
        if began is None:
            began = perf_counter()
        else:
            best = min(best, perf_counter() - start)
    return best


def hash_of_all():
    """sha256 over all of the project's Python files and presets; a run's ledger hashes those that take part in it."""
    from experiments.records.provenance import hash_files

    return hash_files({path: path.read_bytes() for path in source_files()})


def here():
    """What is on this machine beside torch: {"card": an NVIDIA driver, "cuda", "mps", "compiler", "apple"}."""
    compilers = (os.environ.get("CXX", "c++"), "g++", "clang++")
    return {
        "card": shutil.which("nvidia-smi") is not None or os.path.exists("/proc/driver/nvidia/version"),
        "cuda": torch.version.cuda or "",
        "mps": torch.backends.mps.is_available(),
        "compiler": any(map(shutil.which, compilers)),
        "apple": sys.platform == "darwin" and os.uname().machine == "arm64",
    }


def advice(found, device, there):
    """Lines on what to change, [] where nothing is off. `there` is what `here` says."""
    lines = []
    release = torch.__version__.partition("+")[0]
    cpu = device.type == "cpu"
    if not found["correct"]:
        lines.append(f"{device} does not compute what the CPU does: set device=cpu, and bring its driver up to date.")
    if cpu and there["card"] and not there["cuda"]:
        index = "--index-url <the CUDA index of pytorch.org>"
        lines.append(
            f"An NVIDIA card is here, torch a CPU build: pip install --force-reinstall torch=={release} {index}."
        )
    elif cpu and there["card"]:
        lines.append("There is an NVIDIA card that torch does not see: look at nvidia-smi and CUDA_VISIBLE_DEVICES.")
    if cpu and there["apple"] and not there["mps"]:
        lines.append("This is an Apple chip whose GPU torch does not see: use macOS 14 or later and a Python of arm64.")
    if device.type == "mps":
        lines.append("mps was never tried: PYTORCH_ENABLE_MPS_FALLBACK=1 has the CPU do what it lacks, device=cpu all.")
    if not there["compiler"]:
        lines.append("There is no C++ compiler for trainer.compiled=True and prediction.compiled=True: install g++.")
    if cpu and found["threads"] > found["cores"]:
        lines.append(f"torch has {found['threads']} threads for {found['cores']} cores: set threads={found['cores']}.")
    return lines


def screen(found):
    """The same for people."""
    apart, speed = found["difference"], found["images_per_second"]
    verdict = "as the CPU in double precision" if found["correct"] else "NOT as the CPU"
    threads = f"{found['threads']} threads on {found['cores']} cores"
    lines = {
        "device": f"{found['place']} ({found['device']}), {threads}, {found['precision']}",
        "check": f"{verdict}: {apart['forward']:.0e} forward, {apart['backward']:.0e} backward of the largest value",
        "training": f"{speed['train']:.0f} images a second (unet, {BATCH} of {SIZE} x {SIZE} in a step)",
        "scoring": f"{speed['score']:.0f} images a second by {PASSES} passes each",
        "versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        "sources": f"{found['sources']} ({ROOT})",
    }
    said = [*lines.items(), *(("to change", line) for line in found["advice"] or ["nothing"])]
    return "\n".join(f"{name:<10} {text}" for name, text in said)


def parse(words):
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m experiments.device", description=f"{about}\n\n{more}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", default="auto", help="cpu, cuda:N or mps (auto)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 leaves it to torch")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    return parser.parse_args(words)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
