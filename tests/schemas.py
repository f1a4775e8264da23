"""Two operators of torchvision, whose wheel is built for CUDA: beside a CPU build of torch its compiled part cannot be
loaded, and they are missing when it registers their shapes. No network here calls them, so that their schemas suffice.
"""

from importlib.util import find_spec

import torch

if find_spec("torchvision") and not hasattr(torch.ops.torchvision, "nms"):
    KEPT = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        KEPT.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
