"""Pretrained weights: a file of them read without trust, known by its hash."""

import warnings
from hashlib import file_digest

import torch

from experiments.errors import Refused
from experiments.store.reading import MAX_WEIGHTS, regular

# what reading bytes that are no weights may end in
DAMAGED = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError)


def digest(path, setting):
    """sha256 of a file of weights. Raises Refused naming the `setting` where there is no such file."""
    try:
        with open(regular(path, MAX_WEIGHTS), "rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refused(f"{setting}={path} cannot be read ({error.strerror or error}): name another file.") from error


def read(path, setting):
    """{name: tensor} of a file of weights, in its order: .safetensors, or torch's without anything but tensors."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        regular(path, MAX_WEIGHTS)
        if str(path).endswith(".safetensors"):
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle, for which the user can do nothing
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (*DAMAGED, UnpicklingError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise Refused(f"{setting}={path} holds no weights ({reason}): name another file.") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    if not found or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise Refused(f"{setting}={path} holds no weights ({{name: tensor}} is expected): name another file.")
    return found


def differences(ours, theirs):
    """The first three differences in the shapes of two lists of (name, tensor), in words; "" without any."""
    pairs = zip(ours, theirs, strict=False)
    found = [f"{a} {tuple(x.shape)} for {b} {tuple(y.shape)}" for (a, x), (b, y) in pairs if x.shape != y.shape]
    found += [f"{len(ours)} tensors for {len(theirs)}"] if len(ours) > len(theirs) else []
    return ", ".join(found[:3])
