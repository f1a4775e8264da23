"""What suits a device: how much at once, in which precision, compiled or not."""

import os
from contextlib import contextmanager, nullcontext
from shutil import which

import torch

from experiments.errors import Refused

# pixels in a step of a U-Net: more do not make a CPU faster; of an H100 four times as many took 3 % less time an image
# (16 channels, bfloat16, 20 passes of 416 x 416), a sixth as many 2 % more
AT_ONCE = {"cpu": 2**16, "cuda": 2**22}
PRECISIONS = ("auto", "float32", "bfloat16")
# how allocators say it that have no exception of their own: torch's on a CPU, C++, CUDA's libraries, MPS, mmap, oneDNN
NO_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory", "Cannot allocate memory")
NO_MEMORY += ("ALLOC_FAILED", "could not create a memory object", "could not create a primitive")


def at_once(pixels, device):
    """How many images or passes of so many pixels suit the device in one step."""
    return max(1, AT_ONCE.get(device.type, 2**20) // pixels)


def ran_out_of_memory(error):
    """Whether this error says that a device or the machine has no memory left."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in NO_MEMORY))


def autocast(device, precision):
    """A context that computes in bfloat16 where `precision_on` says so."""
    if precision_on(device, precision) == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def precision_on(device, precision):
    """The precision that is meant: "auto" is bfloat16 on a device that is fast at it, float32 elsewhere."""
    if precision == "auto":
        return "bfloat16" if fast_at_bfloat16(device) else "float32"
    return precision


def fast_at_bfloat16(device):
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def compiled_for(device, function):
    """torch.compile of a function or module; on a GPU its kernels are captured in CUDA graphs, too."""
    return torch.compile(function, mode="reduce-overhead" if device.type == "cuda" else "default")


def packs(device):
    """Whether torch has oneDNN's convolutions with weights laid out beforehand, as torch.compile uses them on x86."""
    known = hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    return device.type == "cpu" and known and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def check_compiling(setting):
    """Raise Refused where torch.compile has no compiler for what it writes."""
    if not any(map(which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise Refused(f"{setting}=True takes a C++ compiler, and none is on the PATH: install g++ or leave it out.")


LOWER = {  # what takes less memory, by the word for what is done
    "training": "trainer.batch, the crop or the model's width",
    "testing": "evaluation.batch or the model's width",
    "scoring": "prediction.batch, prediction.mc_chunk, pool_size or the model's width",
    "reading": "the images' size (resize) or their number",
}


@contextmanager
def memory_explained(stage):
    """Raise Refused, naming the settings to lower, where memory runs out; `stage()` says what is being done."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not ran_out_of_memory(error):
            raise
        doing = stage()
        lower = next((settings for word, settings in LOWER.items() if word in doing), LOWER["training"])
        fix = f"free some and the same command continues, or lower {lower} under another label=..."
        raise Refused(f"Memory ran out ({doing}): {fix}") from error
