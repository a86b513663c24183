"""Input channels derived from a scene's bands: raw values, or relief.

Relief is the value minus its local mean, so that it depends neither on absolute height nor on the crop: it is a
function of place alone. The mean is taken over a square of half side ``radius_m`` and skips nodata.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from uhrseg.card import BandSpec
from uhrseg.errors import InputError
from uhrseg.geo.plan import pixel_offset, shifted
from uhrseg.geo.scene import Readable, Scene, ground_sampling_distance

__all__ = ["Derived", "centred", "fill", "local_mean"]

_STEPS = 4096.0
"""Fixed-point steps per unit in local means: a quarter of a millimetre for heights in metres."""

_LARGEST = 1e9
"""Largest magnitude whose box sums still fit 64-bit integers: 1e9 * 4096 * (1400 px)^2 < 2^63."""

_LOCAL_MEAN_BYTES = 48
"""Bytes a pixel at work in `local_mean`, at most: six arrays of 64-bit numbers."""


class Derived:
    """The bands `specs` of a scene, as the model's card lists them; a `Readable`.

    Raises `InputError` when the scene's bands do not match the card's raster bands in number, when relief is asked of a
    scene without a CRS (its radius is in metres), or when the radius is smaller than a pixel.
    """

    def __init__(self, scene: Readable, specs: Sequence[BandSpec]) -> None:
        self.scene = scene
        self.specs = tuple(specs)
        self.geobox = scene.geobox
        self.bands = tuple(s.name for s in specs)
        names = list(dict.fromkeys(s.raster_band for s in specs))
        if len(names) != len(scene.bands):
            raise InputError(
                f"the model expects {len(names)} band(s), {', '.join(names)}; the scene has {len(scene.bands)}, "
                f"{', '.join(scene.bands)}: choose them in that order with --bidx"
            )
        self._sources = [names.index(s.raster_band) for s in specs]
        self._radii = [_radius_pixels(self.geobox, s) for s in specs]
        dy, dx = zip(*self._radii, strict=True)
        self._halo = max(dy), max(dx)

    @property
    def is_zero_mean(self) -> tuple[bool, ...]:
        """Per channel, whether padding is 0 (relief) rather than the scene's mean (raw)."""
        return tuple(s.kind == "relief" for s in self.specs)

    @property
    def crop_mean_channels(self) -> tuple[int, ...]:
        """The channels from which each window's own mean is taken (`centred`)."""
        return tuple(i for i, s in enumerate(self.specs) if s.kind == "crop_mean")

    def read(self, geobox: GeoBox) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Derived pixels of `geobox`: array (C, Y, X) and valid (Y, X); the same wherever the box is cut."""
        (dy, dx), (height, width) = self._halo, geobox.shape
        raw, seen = self.scene.read(shifted(geobox, -dy, -dx, (height + 2 * dy, width + 2 * dx)))
        inner = np.s_[dy : dy + height, dx : dx + width]
        valid = seen[inner]
        array = np.empty((len(self.specs), height, width), dtype=np.float32)
        for channel, (source, radii) in enumerate(zip(self._sources, self._radii, strict=True)):
            value = raw[source][inner]
            if radii == (0, 0):
                array[channel] = value
            else:
                near = np.s_[dy - radii[0] : dy + radii[0] + height, dx - radii[1] : dx + radii[1] + width]
                array[channel] = value - local_mean(raw[source][near], seen[near], radii)
        array *= valid  # invalid pixels are 0, whatever their mean
        return array, valid

    @property
    def halo(self) -> tuple[int, int]:
        """Pixels (y, x) around a box that are read for it."""
        return self._halo

    @property
    def is_raw(self) -> bool:
        """Whether every channel is a band of the scene as it is."""
        return self._halo == (0, 0)

    def read_bytes(self, height: int, width: int) -> tuple[int, int]:
        """Bytes that `read_native` gives for a box of `height` x `width` pixels, and works with meanwhile besides."""
        pixels = height * width
        if isinstance(self.scene, Scene) and self.is_raw:
            given = (len(self.bands) * self.scene.native_dtype.itemsize + 1) * pixels
            return given, (len(self.bands) + 1) * pixels + (0 if self._is_straight else given)
        around = (height + 2 * self._halo[0]) * (width + 2 * self._halo[1])
        raw = (4 * len(self.scene.bands) + 1) * around
        return (4 * len(self.bands) + 1) * pixels, raw + (0 if self.is_raw else _LOCAL_MEAN_BYTES * around)

    @property
    def _is_straight(self) -> bool:
        return self._sources == list(range(len(self.scene.bands)))

    def read_native(self, geobox: GeoBox) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """As `read`; but bytes and 16-bit integers stay what they are where nothing is derived from them.

        Invalid pixels hold anything then.
        """
        if not isinstance(self.scene, Scene) or not self.is_raw:
            return self.read(geobox)
        raw, valid = self.scene.read_native(geobox)
        return raw if self._is_straight else raw[self._sources], valid


def centred(window: NDArray[Any], valid: NDArray[np.bool_], channels: Sequence[int]) -> NDArray[Any]:
    """A window (C, Y, X) whose `channels` have lost the mean of their valid pixels and are 0 elsewhere, in a copy.

    What the authors' networks were trained on, and why it is for imported checkpoints only: the zero differs between
    neighbouring windows and between the two scales. Without channels the window itself comes back.
    """
    if not channels:
        return window
    result = window.astype(np.float32)  # neighbours share the pixels
    for channel in channels:
        plane = result[channel]
        mean = plane[valid].mean(dtype=np.float64) if valid.any() else 0.0
        result[channel] = np.where(valid, plane - np.float32(mean), 0)
    return result


def _radius_pixels(geobox: GeoBox, spec: BandSpec) -> tuple[int, int]:
    """Half side of the mean's square in whole pixels (y, x); (0, 0) for raw bands."""
    if spec.radius_m is None:
        return 0, 0
    gsd = ground_sampling_distance(geobox)
    if gsd is None:
        raise InputError(
            f"band {spec.name!r} is relief over {spec.radius_m:g} m, but the scene has no CRS and so no metres: "
            "give it one with gdal_edit -a_srs"
        )
    radii = round(spec.radius_m / gsd[0]), round(spec.radius_m / gsd[1])
    if min(radii) < 1:
        raise InputError(
            f"band {spec.name!r} is relief over {spec.radius_m:g} m, less than a pixel of {max(gsd):g} m: "
            "this scene is too coarse for the model"
        )
    return radii


def local_mean(values: NDArray[np.float32], valid: NDArray[np.bool_], radii: tuple[int, int]) -> NDArray[np.float64]:
    """Mean of the valid values in the (2ry+1) x (2rx+1) box around each pixel.

    `values` and `valid` are (Y + 2 ry, X + 2 rx); the result is (Y, X), 0 where the box holds no valid value. Sums
    are exact in fixed point, so that the result does not depend on where the array was cut, to the last bit.
    Raises `InputError` for values beyond 1e9: elevations are not that large, an undeclared nodata value is.
    """
    if np.abs(values, where=valid, out=np.zeros_like(values)).max(initial=0) > _LARGEST:
        raise InputError(
            f"the scene holds values of {np.abs(values[valid]).max():g}, too large for relief: "
            "if that is its nodata value, declare it with --nodata"
        )
    fixed = np.rint(np.where(valid, values, 0) * np.float64(_STEPS)).astype(np.int64)
    total = _box_sum(fixed, radii)
    count = _box_sum(valid.astype(np.int64), radii)
    return total / (np.maximum(count, 1) * _STEPS)


def _box_sum(values: NDArray[np.int64], radii: tuple[int, int]) -> NDArray[np.int64]:
    """Sums over (2ry+1) x (2rx+1) boxes, by differences of running sums; overflow in the running sums cancels."""
    for axis, radius in enumerate(radii):
        size = 2 * radius + 1
        running = np.cumsum(values, axis=axis)
        length = running.shape[axis]
        upper = np.take(running, range(size - 1, length), axis=axis)
        upper[_from(axis, 1)] -= np.take(running, range(length - size), axis=axis)
        values = upper
    return values


def _from(axis: int, start: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(start, None),)


def fill(array: NDArray[np.float32], valid: NDArray[np.bool_], padding: NDArray[np.float32]) -> NDArray[np.float32]:
    """Replace invalid pixels of `array` (C, Y, X) by `padding` (C,), in place, and return it.

    Padding comes after derivation and before scaling: padding metres makes cliffs in relief.
    """
    if not valid.all():
        np.copyto(array, padding[:, None, None], where=~valid)
    return array


def box_within(geobox: GeoBox, part: GeoBox) -> tuple[slice, slice]:
    """Where `part` lies in an array of `geobox`, as (rows, cols)."""
    row, col = pixel_offset(geobox, part)
    return slice(row, row + part.shape[0]), slice(col, col + part.shape[1])
