"""One batch of images of one size through a run's model: masks, areas, uncertainty, what is suspicious."""

from functools import partial

import numpy as np
import torch
from torch.nn.functional import interpolate

from experiments.acquisition.prediction import entropy, pass_keys, predict
from experiments.network.device import at_once
from experiments.network.inference import Network
from experiments.predict.tiles import blended
from experiments.store import foreground

FAR = 1.0  # times the largest distance between labelled images: beyond it an image is unlike all of them


class Segmenter:
    """The model of an Opened run at work; images with a side over `tile` are cut, `familiar` judges the others too."""

    def __init__(self, run, passes, tile, overlap, familiar=None):
        self.run, self.passes, self.tile, self.overlap, self.familiar = run, passes, tile, overlap, familiar
        self.network, self.foreground = Network(run.model), foreground(run.classes)

    def at_once(self, size):
        """How many images of (height, width) are to come together."""
        return 1 if self.cut(size) else at_once(size[0] * size[1], self.run.device)

    def cut(self, size):
        return bool(self.tile) and max(size) > self.tile

    def segment(self, members):
        """Yield (row of the table, mask (H, W) uint8, {map: what makes it}) of (id, sha256, image, as it is seen)."""
        ids = [id for id, *_ in members]
        seen = [torch.from_numpy(image) for *_, image in members]
        cut = self.cut(seen[0].shape[:2])
        means, found = self.tiled(*ids, *seen) if cut else self.whole(ids, torch.stack(seen))
        judged = [("", "")] * len(ids) if found is None else self.familiar.judge(found)
        for (id, digest, image, _), mean, near in zip(members, means, judged, strict=True):
            size = image.shape[:2]
            mask, uncertainty = answer(mean, size)
            maps = {"uncertainty": lambda it=uncertainty: it, "probability": partial(probability, mean, size)}
            row = {"id": id, "sha256": digest, "width": size[1], "height": size[0]}
            yield row | self.seen_in(mask, uncertainty, *near), mask, maps

    def seen_in(self, mask, uncertainty, nearest, distance):
        """The rest of an image's row."""
        counts = np.bincount(mask.ravel(), minlength=len(self.run.classes))
        reasons = ["empty"] * (not counts[self.foreground].sum()) + ["far"] * (distance != "" and distance > FAR)
        row = {"uncertainty": float(uncertainty.mean()), "nearest": nearest, "distance": distance}
        row["suspicious"] = " ".join(reasons)
        return row | {f"pixels of {name}": n for name, n in zip(self.run.classes, counts.tolist(), strict=False)}

    def whole(self, ids, images):
        """(probabilities (B, C, H, W), features (B, D) or None) of images (B, H, W, channels) uint8."""
        images = images.to(self.run.device)
        keys = pass_keys(self.run.place, "test", ids, self.passes) if self.passes else None
        mean = predict(self.network, images, ids, keys, means_alone=True).mean
        return mean, self.familiar and self.familiar.features(images)

    def tiled(self, id, image):
        """The same of one large image (H, W, channels)."""
        features, sides = [], max(len(self.run.classes), 2)

        def part(tile, corner):
            mean, found = self.whole([f"{id}@{corner[0]},{corner[1]}"], tile[None])
            features.append(found)
            return mean[0].cpu().numpy()

        made = blended(part, image, sides, self.tile, self.overlap)
        found = np.mean(np.concatenate(features), axis=0, keepdims=True) if self.familiar else None
        return [torch.from_numpy(made)], found


def answer(mean, size):
    """(mask (H, W) uint8, predictive entropy (H, W) float32 in nats) of probabilities (C, h, w) at the image's `size`.

    One class at a time where they have to be enlarged, for all together may not fit into memory.
    """
    if mean.shape[1:] == size:
        p = mean[None]
        best = p.max(1).indices if p.shape[1] > 2 else p[:, 1] > p[:, 0]
        return best[0].to(torch.uint8).cpu().numpy(), entropy(p)[0].cpu().numpy()
    most = chosen = uncertain = None
    for number, plane in enumerate(mean):
        plane = enlarged(plane, size)
        term = torch.special.entr(plane)
        if most is None:
            most, chosen, uncertain = plane, torch.zeros_like(plane, dtype=torch.uint8), term
            continue
        higher = plane > most
        chosen[higher] = number
        most, uncertain = torch.where(higher, plane, most), uncertain + term
    return chosen.cpu().numpy(), uncertain.cpu().numpy()


def enlarged(plane, size):
    return interpolate(plane[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def probability(mean, size):
    """(C, H, W) float32 probabilities at the image's size."""
    return np.stack([(p if p.shape == size else enlarged(p, size)).cpu().numpy() for p in mean])
