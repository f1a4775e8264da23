"""What AskMask is compared with: baal's ModelWrapper in its modes, and the published baselines' loop stated anew.

`baselines` does in our own words what the published GlaS baselines (active-learning-segmentation-baselines) do: PIL
transforms image after image without workers, the passes of an image follow one another at batch 1, all logits of the
pool are kept and scored by numpy and scipy; torch's own dropout, contiguous memory.
"""

import logging
import warnings
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageEnhance

MODES = {  # of baal; as its users find it, without copies of the image for each pass, without the stack of the pool
    "baal": {"copies": True, "stack": True},
    "baal, no copies": {"copies": False, "stack": True},
    "baal, generator": {"copies": False, "stack": False},
}
STEPS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def baal():
    """baal's modules, imported without what they say on the way, and quiet from then on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import structlog
        from baal import modelwrapper
        from baal.active import heuristics
        from baal.bayesian import dropout
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    return SimpleNamespace(modelwrapper=modelwrapper, heuristics=heuristics, dropout=dropout)


def always_dropping(model):
    """A copy of a plain model whose dropout is always on, as baal makes it of torch's F.dropout."""
    return baal().dropout.patch_module(model, inplace=False)


def tensors(images):
    """Images (H, W, 3) uint8 as baal wants a data set: float tensors in RAM, each with a target."""
    return [(to_tensor(image), 0) for image in images]


def baal_scores(model, dataset, passes, device, copies, stack):
    """(N,) BALD, the mean over pixels, by baal's wrapper and heuristic, batch 1: the fastest on a CPU."""
    modules = baal()
    gpu = device.type == "cuda"
    settings = modules.modelwrapper.TrainingArgs(batch_size=1, use_cuda=gpu, workers=0, replicate_in_memory=copies)
    wrapper, bald = modules.modelwrapper.ModelWrapper(model, settings), modules.heuristics.BALD(reduction="mean")
    if stack:
        return bald.get_uncertainties(wrapper.predict_on_dataset(dataset, passes, verbose=False))
    return bald.get_uncertainties_generator(wrapper.predict_on_dataset_generator(dataset, passes, verbose=False))


# ---- the published baselines' loop


def baselines_scores(model, images, passes, device):
    """(N,) BALD of PIL images, the mean over pixels."""
    model.eval()
    kept = []
    for image in images:
        x = to_tensor(image)[None].to(device)
        with torch.no_grad():
            kept.append(torch.stack([model(x) for _ in range(passes)], -1).cpu().numpy())
    return np.array([bald(logits).mean() for logits in kept])


def bald(logits):
    """(1, H, W) of logits (1, C, H, W, passes)."""
    from scipy.special import entr, softmax

    p = softmax(logits, 1)
    return entr(p.mean(-1)).sum(1) - entr(p).sum(1).mean(-1)


def baselines_fit(model, pairs, val, epochs, draws, batch, crop, device, seed=0):
    """Train on PIL pairs; each epoch validates on the pairs `val`, dropout on, and the best weights stay."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=40, gamma=0.1)
    best, kept = np.inf, None
    for _ in range(epochs):
        model.train()
        order, total = rng.permutation(draws * len(pairs)) % len(pairs), 0.0
        for start in range(0, len(order), batch):
            items = [training_item(*pairs[i], crop, rng) for i in order[start : start + batch]]
            x, masks = (torch.stack(part).to(device) for part in zip(*items, strict=True))
            loss = linear(model(x), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        schedule.step()
        if val:
            model.eval()
            with torch.no_grad():
                losses = [
                    linear(model(to_tensor(image)[None].to(device)), foreground(mask)[None].to(device)).item()
                    for image, mask in val
                ]
            if np.mean(losses) <= best:
                best, kept = np.mean(losses), deepcopy(model.state_dict())
    if kept:
        model.load_state_dict(kept)


def training_item(image, mask, crop, rng):
    """A crop as tensors: turned by a multiple of 90 degrees, cut, mirrored, its colours jittered."""
    angle = 90 * int(rng.integers(4))
    image, mask = image.rotate(angle), mask.rotate(angle)
    left, top = (int(rng.integers(side - crop + 1)) for side in image.size)
    window = (left, top, left + crop, top + crop)
    image, mask = image.crop(window), mask.crop(window)
    if rng.random() < 0.5:
        image, mask = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (image, mask))
    return to_tensor(jitter(image, rng)), foreground(mask)


def jitter(image, rng):
    """Brightness, contrast and saturation within a half, hue within a twentieth of the circle, in any order."""
    for step in rng.permutation(4):
        if step < 3:
            image = STEPS[step](image).enhance(rng.uniform(0.5, 1.5))
        else:
            hue, saturation, value = image.convert("HSV").split()
            turned = np.array(hue) + np.uint8(int(rng.uniform(-0.05, 0.05) * 255) % 256)  # wraps around
            image = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
    return image


def baselines_test(model, pairs, passes, device):
    """Mean foreground Dice of the argmax of the passes' mean logits."""
    model.eval()
    found = []
    for image, mask in pairs:
        x = to_tensor(image)[None].to(device)
        with torch.no_grad():
            logits = torch.stack([model(x) for _ in range(passes)], -1).mean(-1)
        labels, truth = logits.argmax(1)[0].cpu().numpy(), np.array(mask)
        (_, wrong), (missed, both) = np.bincount((2 * truth + labels).ravel(), minlength=4).reshape(2, 2)
        found.append((2 * both + 1e-8) / (2 * both + wrong + missed + 1e-8))
    return float(np.mean(found))


def to_tensor(image):
    """(H, W, 3) uint8 or a PIL image -> (3, H, W) in [0, 1], contiguous, as torchvision's."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


def foreground(mask):
    return torch.from_numpy(np.array(mask) != 0).long()


def linear(logits, masks):
    """kornia's Dice loss: it sums over the classes before it divides."""
    p = logits.softmax(1)
    truth = torch.nn.functional.one_hot(masks, logits.shape[1]).permute(0, 3, 1, 2).to(p.dtype)
    both, sizes = (p * truth).sum((1, 2, 3)), (p + truth).sum((1, 2, 3))
    return (1 - 2 * both / (sizes + 1e-8)).mean()


def pictures(pairs):
    """Pairs of arrays as pairs of PIL images."""
    return [(Image.fromarray(image), Image.fromarray(mask)) for image, mask in pairs]
