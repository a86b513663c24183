"""One picture of a result: the raster, its classes, the outlines of its polygons."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import pyproj
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

from uhrseg.errors import InputError, RunError
from uhrseg.geo.labels import geometry_layers
from uhrseg.geo.scene import ground_sampling_distance
from uhrseg.geo.style import legend_from_tags
from uhrseg.legend import Legend, LegendClass

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["View", "background", "hillshade", "quicklook", "save_figure", "scale_bar_length"]

_NO_DATA_GREY = 0.87
_OVERLAY = 0.45
"""Opacity of the classes over the raster."""

_MAX_OUTLINES = 20_000
"""Polygons drawn at most; at 1600 px more of them are one dark patch."""

_LEGEND_COLUMNS = 6

_COLORS = ("#e41a1c", "#377eb8", "#4daf4a", "#984ea3", "#ff7f00", "#a65628", "#f781bf", "#ffd92f")
"""For class maps that bring neither legend nor colour table: ColorBrewer's Set1 (Brewer 2003)."""


@dataclass(frozen=True)
class View:
    """A raster decimated for the screen: band values (C, Y, X), where they are valid (Y, X), and the full grid."""

    values: NDArray[np.float32]
    valid: NDArray[np.bool_]
    grid: GeoBox
    byte: bool

    @property
    def step(self) -> tuple[float, float]:
        """Raster pixels per pixel of the view, (y, x)."""
        return self.grid.height / self.valid.shape[0], self.grid.width / self.valid.shape[1]


def quicklook(
    raster_path: str | Path,
    labels_path: str | Path | None,
    legend: Legend | None,
    png_path: str | Path,
    polygons_path: str | Path | None = None,
    max_side: int = 1600,
) -> Path:
    """Draw a raster with classes and polygon outlines over it into a PNG, and return its path.

    The background is a hillshade for a single band (of more than 8 bits: an elevation model), else the first three
    bands, each stretched over its 2nd to 98th percentile. Pixels without a value are light grey. `legend` None:
    the one that the class map carries, else its colour table. The picture's rows are the raster's rows (turned
    upside down where it is south-up). Everything is read at `max_side` pixels, so memory does not grow with the raster.
    Raises `InputError` when a file cannot be read or the class map is not on the raster's grid.
    """
    view = _read(raster_path, max_side)
    picture = background(view)
    if labels_path is not None:
        classes, own = _read_classes(labels_path, view)
        legend = legend or own
        picture = _with_classes(picture, classes, legend)
    entries = _entries(legend) if labels_path or polygons_path else []
    figure, axes = _canvas(view, max_side, len(entries))
    height, width = view.grid.shape
    axes.imshow(picture, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    if view.grid.transform.e > 0:
        axes.invert_yaxis()  # south-up
    note = "" if polygons_path is None else _draw_outlines(axes, polygons_path, view.grid, legend)
    axes.set_title(f"{Path(raster_path).name}{note}", loc="left", fontsize=11)
    _draw_scale_bar(axes, view.grid)
    _draw_legend(figure, entries)
    return save_figure(figure, Path(png_path))


def hillshade(elevation: NDArray[np.float32], spacing: tuple[float, float]) -> NDArray[np.float32]:
    """Light (Y, X) from the upper left (azimuth 315, elevation 35 degrees) on a surface, 0 to 1; NaN stays NaN.

    `spacing` is that of the pixels (y, x), in the unit of `elevation`. Lambertian, as in Horn (1981).
    """
    down, right = np.gradient(elevation, *spacing) if min(elevation.shape) > 1 else np.zeros((2, *elevation.shape))
    azimuth, height = np.radians(315), np.radians(35)
    east, north, up = np.sin(azimuth) * np.cos(height), np.cos(azimuth) * np.cos(height), np.sin(height)
    light = (up - east * right + north * down) / np.sqrt(1 + right**2 + down**2)
    return np.where(np.isnan(elevation), np.nan, light.clip(0, 1)).astype(np.float32)


def scale_bar_length(width_m: float) -> float:
    """A round length (1, 2 or 5 times a power of ten) of at most a quarter of `width_m` metres."""
    power = 10.0 ** np.floor(np.log10(width_m / 4))
    return float(max(n * power for n in (1, 2, 5) if n * power <= width_m / 4))


def _open(path: str | Path) -> rasterio.DatasetReader:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(path)
    except RasterioIOError as error:
        raise InputError(f"{path} cannot be opened as a raster: {error}") from error


def _grid(source: rasterio.DatasetReader) -> GeoBox:
    return GeoBox(source.shape, source.transform, source.crs.to_wkt() if source.crs else None)


def _read(path: str | Path, max_side: int) -> View:
    with _open(path) as source:
        shrink = min(1.0, max_side / max(source.shape))
        shape = tuple(max(1, round(n * shrink)) for n in source.shape)
        bands = [1, 2, 3] if source.count >= 3 else [1]
        image = source.read(bands, out_shape=(len(bands), *shape), masked=True, resampling=Resampling.average)
        values = image.astype(np.float32).filled(np.nan)
        return View(values, np.isfinite(values).all(axis=0), _grid(source), source.dtypes[0] == "uint8")


def _read_classes(path: str | Path, view: View) -> tuple[NDArray[np.uint8], Legend]:
    """A class map at the view's size, and the legend it brings."""
    with _open(path) as source:
        grid = _grid(source)
        if grid.shape != view.grid.shape or not grid.transform.almost_equals(view.grid.transform, 1e-6):
            raise InputError(
                f"{path} is {grid.width} x {grid.height} at {tuple(grid.transform)[:6]}, but the raster is "
                f"{view.grid.width} x {view.grid.height} at {tuple(view.grid.transform)[:6]}: draw classes over the "
                "raster they were made from"
            )
        if source.dtypes[0] != "uint8":
            raise InputError(f"{path} holds {source.dtypes[0]}, but a class map is uint8")
        classes = source.read(1, out_shape=view.valid.shape, resampling=Resampling.nearest)
        legend = legend_from_tags(source.tags()) or _legend_of_colors(source, classes)
    return classes, legend


def _legend_of_colors(source: rasterio.DatasetReader, classes: NDArray[np.uint8]) -> Legend:
    """Classes up to the largest value, coloured by the file's colour table if it has one; 0 is the background."""
    count = int(classes[classes < 255].max(initial=0)) + 1
    try:
        colors = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b, _ in (source.colormap(1)[i] for i in range(count))]
    except ValueError:  # no colour table
        colors = [_COLORS[i % len(_COLORS)] for i in range(-1, count - 1)]
    return Legend(tuple(LegendClass(i, f"class {i}", c) for i, c in enumerate(colors)), background=0)


def background(view: View) -> NDArray[np.float32]:
    """The raster as red, green and blue (Y, X, 3), 0 to 1."""
    values = view.values
    if len(values) == 1 and not view.byte:
        gsd = ground_sampling_distance(view.grid) or (1.0, 1.0)
        surface = values[0] if view.grid.transform.e <= 0 else values[0, ::-1]  # as it will be seen: light from above
        shade = hillshade(surface, (gsd[0] * view.step[0], gsd[1] * view.step[1]))
        values = (shade if view.grid.transform.e <= 0 else shade[::-1])[np.newaxis]
    stretched = np.stack([_stretch(band) for band in values], axis=-1)
    rgb = np.broadcast_to(stretched, (*view.valid.shape, 3))
    return np.where(view.valid[..., np.newaxis], np.nan_to_num(rgb, nan=_NO_DATA_GREY), _NO_DATA_GREY)


def _stretch(band: NDArray[np.float32]) -> NDArray[np.float32]:
    """2nd to 98th percentile to 0..1."""
    found = band[np.isfinite(band)]
    low, high = np.percentile(found, [2, 98]) if found.size else (0.0, 1.0)
    return ((band - low) / max(high - low, 1e-6)).clip(0, 1)


def _with_classes(picture: NDArray[np.float32], classes: NDArray[np.uint8], legend: Legend) -> NDArray[np.float32]:
    """Every class but the background over the picture."""
    table, opacity = np.zeros((256, 3), np.float32), np.zeros((256, 1), np.float32)
    for c in legend.classes:
        table[c.id] = np.array(c.rgb) / 255
        opacity[c.id] = 0 if c.id == legend.background else _OVERLAY
    alpha = opacity[classes]
    return picture * (1 - alpha) + table[classes] * alpha


def _entries(legend: Legend | None) -> list[LegendClass]:
    """The classes that are drawn."""
    return [] if legend is None else [c for c in legend.classes if c.id != legend.background]


def _canvas(view: View, max_side: int, entries: int) -> tuple[Figure, Axes]:
    """A figure whose longer picture side is `max_side` pixels, with room for a title above and a legend below."""
    from matplotlib.figure import Figure

    enlarge = max_side / max(view.valid.shape)
    height, width = (max(n * enlarge / 100, 1.0) for n in view.valid.shape)  # inches at 100 dpi
    title, legend, margin = 0.35, 0.15 + 0.25 * -(-entries // _LEGEND_COLUMNS), 0.1
    total_h, total_w = height + title + legend, max(width + 2 * margin, 4.0)
    figure = Figure(figsize=(total_w, total_h), dpi=100)
    axes = figure.add_axes((margin / total_w, legend / total_h, width / total_w, height / total_h))
    axes.set_axis_off()
    return figure, axes


def _draw_outlines(axes: Axes, path: str | Path, grid: GeoBox, legend: Legend | None) -> str:
    """Outlines in the raster's pixel coordinates; returns a note for the title."""
    from matplotlib.collections import LineCollection

    layers = geometry_layers(Path(path))
    if not layers:
        raise InputError(f"{path} holds no geometries: name a file of polygons")
    layer = layers[0]
    total = pyogrio.read_info(path, layer=layer, force_feature_count=True)["features"]
    table = pyogrio.read_dataframe(path, layer=layer, max_features=_MAX_OUTLINES)
    if table.crs is not None and grid.crs is not None:
        table = table.to_crs(pyproj.CRS.from_wkt(grid.crs.to_wkt()))
    parts = table.explode(ignore_index=True)
    rings, owner = shapely.get_rings(parts.geometry.to_numpy(), return_index=True)
    color = {c.name: c.color for c in legend.classes} if legend else {}
    names = parts["class"].tolist() if "class" in parts else [None] * len(parts)
    lines = [_to_pixels(shapely.get_coordinates(ring), grid.transform) for ring in rings]
    axes.add_collection(LineCollection(lines, colors=[color.get(names[i], "black") for i in owner], linewidths=1.1))
    return f": {total} polygons" + (f", {_MAX_OUTLINES} of them outlined" if total > _MAX_OUTLINES else "")


def _to_pixels(points: NDArray[np.float64], transform: Affine) -> NDArray[np.float64]:
    matrix = np.array(~transform).reshape(3, 3)
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def _draw_scale_bar(axes: Axes, grid: GeoBox) -> None:
    """A bar of a round length in the lower left corner; none without a CRS."""
    gsd = ground_sampling_distance(grid)
    if gsd is None:
        return
    length = scale_bar_length(grid.width * gsd[1])
    label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    share = length / gsd[1] / grid.width
    bar: dict[str, Any] = {"transform": axes.transAxes, "solid_capstyle": "butt", "clip_on": False}
    axes.plot([0.02, 0.02 + share], [0.03, 0.03], color="white", linewidth=7, **bar)
    axes.plot([0.02, 0.02 + share], [0.03, 0.03], color="black", linewidth=3, **bar)
    axes.annotate(
        label, (0.02 + share / 2, 0.03), (0, 6), "axes fraction", "offset points", ha="center", va="bottom",
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _draw_legend(figure: Figure, entries: list[LegendClass]) -> None:
    """The classes below the picture."""
    from matplotlib.patches import Patch

    if entries:
        patches = [Patch(color=c.color, label=c.name) for c in entries]
        columns = min(len(entries), _LEGEND_COLUMNS)
        figure.legend(handles=patches, loc="lower center", ncols=columns, frameon=False, borderaxespad=0.1)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG, all of it or nothing; raises `RunError` when it cannot be written."""
    draft = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(draft, format="png")
        os.replace(draft, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return path
