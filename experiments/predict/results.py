"""What a prediction leaves: a mask an image, maps on request, and a table that says which images are done."""

import csv
import io
import json
from pathlib import Path

import tifffile

from experiments.acquisition.pictures import mask_png
from experiments.errors import Refused
from experiments.errors.process import unusable
from experiments.records.cells import harmless, meant
from experiments.records.files import append_line, write
from experiments.store.reading import read_text

FORMATS = ("png", "tif")
HEAD = ["id", "file", "sha256", "width", "height", "uncertainty", "nearest", "distance", "suspicious"]


class Results:
    """The folder of a prediction. Raises Refused where it holds another one, unless it is to be begun anew."""

    def __init__(self, folder, made, classes, kind, force):
        self.folder, self.classes, self.kind = Path(folder), list(classes), kind
        self.table, about = self.folder / "predictions.csv", self.folder / "prediction.json"
        self.head = [*HEAD, *(f"pixels of {name}" for name in self.classes)]
        made = json.dumps(made, indent=1)
        try:
            (self.folder / "masks").mkdir(parents=True, exist_ok=True)
            found = read_text(about) if about.exists() else None
            if found is None and not force and any((self.folder / "masks").iterdir()):
                raise Refused(f"{self.folder / 'masks'} holds files of something else: choose another -o, or --force.")
        except OSError as error:
            raise unusable(self.folder, error, "written") from error
        if found not in (None, made) and not force:
            other = "holds a prediction of other weights or settings"
            raise Refused(f"{self.folder} {other}: choose another -o, or --force.")
        if force or found is None:
            self.table.unlink(missing_ok=True)
            write(about, made.encode())
        self.rows = self._read()

    def _read(self):
        """{id: row} of the images that are done; begins the table where there is none."""
        if not self.table.exists():
            append_line(self.table, line(self.head))
            return {}
        text = read_text(self.table)
        if not text.endswith("\n"):  # what a crash left of a line
            text = text[: text.rfind("\n") + 1]
            write(self.table, text.encode())
        rows = {}
        for cells in csv.DictReader(io.StringIO(text)):
            row = {name: meant(cell or "") for name, cell in cells.items() if name}
            if self.mask_of(row["id"]).exists():
                rows[row["id"]] = row
        return rows

    def mask_of(self, id):
        return self.folder / "masks" / f"{id}.{self.kind}"

    def done(self, id, sha256):
        """Whether this very image has its mask already."""
        return self.rows.get(id, {}).get("sha256") == sha256

    def keep(self, id, mask, maps):
        """Write a mask (H, W) uint8 and the maps {name: float32 array} of an image."""
        for name, array in maps.items():
            path = self.folder / name / f"{id}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, tiff(array))
        path = self.mask_of(id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, tiff(mask) if self.kind == "tif" else mask_png(mask))

    def note(self, row):
        """Add an image's line to the table: from now on it is done."""
        append_line(self.table, line([row.get(name, "") for name in self.head]))
        self.rows[row["id"]] = row


def line(cells):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="").writerow(map(harmless, cells))
    return text.getvalue()


def tiff(array):
    """TIFF bytes of (H, W) or (classes, H, W), deflated, as QuPath, ImageJ and napari open them."""
    out = io.BytesIO()
    axes = "YX" if array.ndim == 2 else "CYX"
    tifffile.imwrite(out, array, imagej=False, photometric="minisblack", compression="zlib", metadata={"axes": axes})
    return out.getvalue()
