"""Draw where a model's relay tokens look in a window of a raster."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from torch import Tensor

from uhrseg.card import ModelCard
from uhrseg.engine.fit import check_fit, check_windows, load_model, plan_for
from uhrseg.errors import InputError
from uhrseg.geo.area import Area
from uhrseg.geo.bands import Derived, centred, fill
from uhrseg.geo.coarse import Coarse, block_means, build_coarse
from uhrseg.geo.plan import TilePlan, shifted
from uhrseg.geo.scene import Scene, gdal_settings
from uhrseg.models.attention import check_drawable, relay_attention
from uhrseg.models.relay import CONTEXT, LOCAL, Scale
from uhrseg.report.attention import Look, draw_attention
from uhrseg.report.quicklook import View

__all__ = ["draw_relays"]


def draw_relays(
    model: str | Path, source: str | Path, png: str | Path, bounds: Sequence[float] | None = None
) -> tuple[int, int]:
    """Draw into `png` where each relay looks in the window around the middle of `bounds` (of the raster).

    `bounds`: left, bottom, right, top in the raster's CRS. Returns the window's first (row, column).
    Raises `InputError` when model and raster do not fit, the model's relays cannot be drawn, or the window is empty.
    """
    module, card = load_model(model)
    check_windows(module, card)
    check_drawable(module)
    scene = Scene.open(source)
    derived, plan = check_fit(scene, card), plan_for(scene, card)
    corner = _corner(plan, Area.of(scene.geobox, bounds))
    window = card.window
    with (
        gdal_settings(scene.paths),
        tempfile.TemporaryDirectory() as folder,
        build_coarse(derived, window.context_factor, Path(folder), window.context) as coarse,
    ):
        local = _scaled(_local(derived, coarse, plan, corner), card)
        context = None if plan.factor is None else _scaled(_context(derived, coarse, plan, corner), card)
        views = _views(scene, plan, corner)
    maps = relay_attention(module, local, context)
    looks = [Look(name, views[name], maps[name][0].float().numpy()) for name in views]
    token = "relay" if plan.factor else "register"
    title = f"{card.name} on {Path(scene.paths[0]).name}, window at row {corner[0]}, column {corner[1]}"
    draw_attention(looks, plan.factor, token, title, Path(png))
    return corner


def _corner(plan: TilePlan, area: Area) -> tuple[int, int]:
    """First row and column of the window in the middle of an area, on whole cells of the coarse grid."""
    step = plan.factor or 1
    middles = (area.rows.start + area.rows.stop) // 2, (area.cols.start + area.cols.stop) // 2
    row, col = (
        max(0, min(middle - plan.size // 2, side - plan.size)) // step * step
        for middle, side in zip(middles, plan.geobox.shape, strict=True)
    )
    return row, col


def _local(derived: Derived, coarse: Coarse, plan: TilePlan, corner: tuple[int, int]) -> NDArray[np.float32]:
    values, valid = derived.read(_local_box(plan, corner))
    if not valid.any():
        raise InputError(f"the window at row {corner[0]}, column {corner[1]} holds no value: choose another --bounds")
    return centred(fill(values, valid, coarse.padding), valid, derived.crop_mean_channels)


def _context(derived: Derived, coarse: Coarse, plan: TilePlan, corner: tuple[int, int]) -> NDArray[np.float32]:
    row, col = (start // (plan.factor or 1) for start in _context_corner(plan, corner))
    values, valid = coarse.read(shifted(coarse.geobox, row, col, (plan.size, plan.size)))
    return centred(fill(values, valid, coarse.padding), valid, derived.crop_mean_channels)


def _scaled(window: NDArray[np.float32], card: ModelCard) -> Tensor:
    """(C, S, S) -> (1, C, S, S), as the network sees it."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in zip(*((b.mean, b.std) for b in card.input.band), strict=True))
    return ((torch.from_numpy(window) - mean) / std)[None]


def _views(scene: Scene, plan: TilePlan, corner: tuple[int, int]) -> dict[Scale, View]:
    """The raster under each window, as many pixels as the window has."""
    views: dict[Scale, View] = {LOCAL: _view(scene, _local_box(plan, corner), 1)}
    if plan.factor is not None:
        side = plan.size * plan.factor
        views[CONTEXT] = _view(scene, shifted(plan.geobox, *_context_corner(plan, corner), (side, side)), plan.factor)
    return views


def _view(scene: Scene, box: GeoBox, factor: int) -> View:
    values, valid = scene.read(box)
    shown = values[: 3 if len(values) >= 3 else 1]
    means = block_means(shown, valid, factor)
    return View(means, np.array(np.isfinite(means).all(axis=0)), box, scene.read_native(box)[0].dtype == np.uint8)


def _local_box(plan: TilePlan, corner: tuple[int, int]) -> GeoBox:
    return shifted(plan.geobox, *corner, (plan.size, plan.size))


def _context_corner(plan: TilePlan, corner: tuple[int, int]) -> tuple[int, int]:
    margin = ((plan.factor or 1) - 1) * plan.size // 2
    return corner[0] - margin, corner[1] - margin
