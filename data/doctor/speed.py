"""How fast the doctor reads, beside Pillow's bare decoding of the same files: `python -m data.doctor.speed [files]`."""

import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from data.doctor.examine import examine
from data.doctor.pairs import paired

SIDE = 64  # pixels of an image
ROUNDS = 3


def main(files):
    """Draw so many PNGs, half of them masks, and print the speeds' ratio for each round, by wall clock and by CPU."""
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), files // 2)
        paths = sorted(Path(folder).rglob("*.png"))
        for _ in range(ROUNDS):
            bare = timed(lambda: [np.array(Image.open(path)) for path in paths])
            read = timed(lambda: examine(paired(folder), ("background", "disc"), folder))
            wall, cpu = (one / other for one, other in zip(bare, read, strict=True))
            print(f"{len(paths)} files: {wall:.2f} of the speed of bare decoding, {cpu:.2f} by CPU time", flush=True)


def draw(folder, pairs):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for role in ("images", "masks"):
        (folder / role).mkdir()
    for n in range(pairs):
        mask = ((y - rng.uniform(16, 48)) ** 2 + (x - rng.uniform(16, 48)) ** 2 < 150).astype(np.uint8)
        image = np.array([[215, 180, 205], [90, 40, 120]])[mask] + rng.normal(0, 12, (SIDE, SIDE, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{n}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{n}.png")


def timed(work):
    wall, cpu = perf_counter(), sum(os.times()[:4])  # that of processes which have ended, too
    work()
    return perf_counter() - wall, sum(os.times()[:4]) - cpu


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
