"""Pictures of what was asked for: each queried image above the map that made it wanted."""

import io

from matplotlib.figure import Figure


def queries(images, maps, titles):
    """PNG bytes, one column a query: images (H, W, channels) uint8, maps (H, W) or None."""
    rows = 1 + any(m is not None for m in maps)
    figure = Figure(figsize=(2.4 * len(images), 2.2 * rows), dpi=80, layout="constrained")
    axes = figure.subplots(rows, len(images), squeeze=False)
    brightest = max((m.max() for m in maps if m is not None), default=1)
    for column, (image, map, title) in enumerate(zip(images, maps, titles, strict=True)):
        axes[0, column].imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray")
        axes[0, column].set_title(title, fontsize=8, parse_math=False)
        if map is not None:
            axes[1, column].imshow(map, cmap="magma", vmin=0, vmax=brightest)
    for axis in axes.flat:
        axis.set_axis_off()
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
