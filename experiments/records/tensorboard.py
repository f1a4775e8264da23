"""Optional event files for TensorBoard, `tensorboard_dir=events`, by tensorboardX: https://github.com/lanpa/tensorboardX

Each metric by labelled images, and the pictures of what was asked for at the same step.
"""

import re
from pathlib import Path
from threading import RLock

import numpy as np
from PIL import Image
from sacred.observers import RunObserver

from experiments.errors import Refused
from experiments.records.guarded import guarded
from experiments.records.ledger import read


class TensorBoard(RunObserver):
    """Writes into <tensorboard_dir>/<label>_<run>; a continued run logs every step again and replaces its last start.

    Raises Refused where tensorboardX is not installed.
    """

    priority = 10

    def __init__(self, events, folder):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise Refused("tensorboard_dir needs one more package: pip install tensorboardX==2.6.5") from None
        self.folder, self.open = folder, lambda: SummaryWriter(str(Path(events) / folder.name), purge_step=0)
        self.place, self.turn, self.begun, self.said = f"tensorboard_dir={events}", RLock(), False, False

    @guarded
    def started_event(self, **event):
        self.writer = self.open()
        self.begun = True

    @guarded
    def log_metrics(self, metrics_by_name, info):
        for name, metric in metrics_by_name.items():
            for step, value in zip(metric["steps"], metric["values"], strict=True):
                self.writer.add_scalar(name.replace(".", "/"), value, step)
        self.writer.flush()

    @guarded
    def artifact_event(self, name, filename, metadata=None, content_type=None):
        cycle = re.fullmatch(r"query_(\d+)\.png", name)
        if cycle:
            evaluated = [e for e in read(self.folder) if e["event"] == "evaluated"]
            picture = np.asarray(Image.open(filename, formats=["PNG"]).convert("RGB"))
            self.writer.add_image("query", picture, evaluated[int(cycle[1])]["images"], dataformats="HWC")

    @guarded
    def completed_event(self, **event):
        self.writer.close()

    interrupted_event = failed_event = completed_event
