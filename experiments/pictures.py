"""Pictures of what was asked for: each query's image with its mask's outline, and the map that made it wanted."""

import io

from matplotlib.figure import Figure


def queries(images, masks, maps, titles):
    """PNG bytes: one column a query; images (H, W, channels) and masks (H, W) uint8, maps (H, W) or None."""
    rows = 1 + any(m is not None for m in maps)
    figure = Figure(figsize=(2.4 * len(images), 2.2 * rows), dpi=80, layout="constrained")
    axes = figure.subplots(rows, len(images), squeeze=False)
    for column, (image, mask, map, title) in enumerate(zip(images, masks, maps, titles, strict=True)):
        axes[0, column].imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray")
        if mask.min() != mask.max():
            axes[0, column].contour(mask > 0, levels=[0.5], colors="white", linewidths=2.5)
            axes[0, column].contour(mask > 0, levels=[0.5], colors="black", linewidths=1)
        axes[0, column].set_title(title, fontsize=8, parse_math=False)
        if map is not None:
            axes[1, column].imshow(map, cmap="magma")
    for axis in axes.flat:
        axis.set_axis_off()
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
