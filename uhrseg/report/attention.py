"""Attention of relay tokens as heat over the window pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uhrseg.report.quicklook import View, background, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap, Normalize

__all__ = ["Look", "draw_attention"]

_SIDE = 2.9  # inches of one panel
_PAIRS = 2  # relays side by side
_HEAT = "inferno"
_OPACITY = 0.85


@dataclass(frozen=True)
class Look:
    """A window as it is seen: its pixels, and attention (R, H, W) over it in multiples of an even share."""

    name: str
    view: View
    attention: NDArray[np.float32]


def draw_attention(looks: list[Look], factor: int | None, token: str, title: str, png: Path) -> Path:
    """Draw for each `token` its attention over each window into a PNG, and return its path.

    One colour scale for all panels. With a context `factor` the last look is the context, in which the outline of the
    local window is drawn. Raises `RunError` when the file cannot be written.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    relays, width = len(looks[0].attention), len(looks)
    columns = min(relays, _PAIRS if width > 1 else 2 * _PAIRS)
    lines = -(-relays // columns)
    values = np.concatenate([look.attention.ravel() for look in looks])
    norm = Normalize(0.0, float(np.percentile(values, 99.5)))
    heat = ScalarMappable(norm, _colors())
    figure = Figure(figsize=(_SIDE * columns * width, (_SIDE + 0.4) * lines + 1.2), dpi=100, layout="constrained")
    grid = figure.subplots(lines, columns * width, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for relay in range(relays):
        line, column = divmod(relay, columns)
        for i, look in enumerate(looks):
            axes = grid[line, column * width + i]
            _panel(axes, look, relay, norm)
            axes.set_title(f"{token} {relay + 1}: {look.name}", fontsize=10)
            if factor is not None and i == width - 1:
                _outline(axes, look.view.valid.shape, factor)
    figure.suptitle(title, fontsize=11)
    bar = figure.colorbar(heat, ax=grid.ravel().tolist(), location="bottom", shrink=0.45, aspect=45, extend="max")
    bar.set_label("attention, in multiples of an even share", fontsize=9)
    return save_figure(figure, png)


def _colors() -> ListedColormap:
    """Clear where there is little attention, so that the ground shows."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    colors = colormaps[_HEAT](np.linspace(0.25, 1, 256))
    colors[:, 3] = np.linspace(0, 1, 256) ** 0.8 * _OPACITY
    return ListedColormap(colors)


def _panel(axes: Axes, look: Look, relay: int, norm: Normalize) -> None:
    height, width = look.view.valid.shape
    extent = (0, width, height, 0)
    grey = background(look.view).mean(axis=-1)
    axes.imshow(grey, extent=extent, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.imshow(look.attention[relay], extent=extent, cmap=_colors(), norm=norm, interpolation="bilinear")
    if look.view.grid.transform.e > 0:
        axes.invert_yaxis()  # south-up


def _outline(axes: Axes, shape: tuple[int, ...], factor: int) -> None:
    """The local window in the middle of the context."""
    from matplotlib.patches import Rectangle

    height, width = shape
    corner = (width / 2 * (1 - 1 / factor), height / 2 * (1 - 1 / factor))
    axes.add_patch(Rectangle(corner, width / factor, height / factor, fill=False, edgecolor="black", linewidth=3))
    axes.add_patch(Rectangle(corner, width / factor, height / factor, fill=False, edgecolor="white", linewidth=1.4))
