"""What a raster is, for ``uhrseg inspect``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from uhrseg.errors import RunError
from uhrseg.geo.scene import Scene

__all__ = ["BandFacts", "RasterFacts", "raster_facts"]

SAMPLE = 1024
"""Longest side, in pixels, of the decimated copy from which the share of valid pixels is estimated."""


@dataclass(frozen=True)
class BandFacts:
    """One band: its name as models know it, data type and nodata value (None: no value)."""

    name: str
    dtype: str
    nodata: float | str | None


@dataclass(frozen=True)
class RasterFacts:
    """A raster in a few words; ``gsd_m`` is (y, x) in metres, ``valid_share`` an estimate from 0 to 1."""

    path: str
    driver: str
    width: int
    height: int
    crs: str | None
    gsd_m: tuple[float, float] | None
    bands: tuple[BandFacts, ...]
    valid_share: float

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain values, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The facts as lines for people."""
        gsd = "unknown (no CRS)" if self.gsd_m is None else f"{self.gsd_m[1]:.4g} x {self.gsd_m[0]:.4g} m"
        return [
            f"{self.path}",
            f"  format      {self.driver}",
            f"  size        {self.width} x {self.height} pixels",
            f"  CRS         {self.crs or 'none'}",
            f"  resolution  {gsd}",
            *(
                f"  band        {b.name}, {b.dtype}, nodata {'none' if b.nodata is None else b.nodata}"
                for b in self.bands
            ),
            f"  valid       {self.valid_share:.1%} of pixels (estimated on a decimated copy)",
        ]


def raster_facts(path: str, scene: Scene) -> RasterFacts:
    """Facts of the raster at `path`, already opened as `scene`.

    Raises `RunError` when GDAL cannot read it.
    """
    source = scene.paths[0]
    try:
        with rasterio.open(source) as dataset:
            picked, nodata = scene.files[0].bidx, scene.files[0].nodata
            bands = tuple(
                BandFacts(name, dataset.dtypes[b - 1], _plain(dataset.nodatavals[b - 1] if nodata is None else nodata))
                for name, b in zip(scene.bands, picked, strict=True)
            )
            return RasterFacts(
                path=path,
                driver=dataset.driver,
                width=scene.geobox.shape[1],
                height=scene.geobox.shape[0],
                crs=str(dataset.crs) if dataset.crs else None,
                gsd_m=scene.gsd_m,
                bands=bands,
                valid_share=_valid_share(dataset, picked, nodata),
            )
    except RasterioError as error:
        raise RunError(f"{source} cannot be read: {error}") from error


def _valid_share(dataset: rasterio.DatasetReader, bands: tuple[int, ...], nodata: float | None) -> float:
    """Share of pixels valid in all `bands`, on a copy decimated to at most `SAMPLE` pixels a side."""
    step = max(1, -(-max(dataset.shape) // SAMPLE))
    shape = (len(bands), *(-(-side // step) for side in dataset.shape))  # (C, Y, X)
    values = dataset.read(bands, out_shape=shape)
    good = dataset.read_masks(bands, out_shape=shape) > 0 if nodata is None else values != nodata
    if values.dtype.kind == "f":
        good &= np.isfinite(values)
    valid = good.all(axis=0)
    return float(valid.mean())


def _plain(nodata: float | None) -> float | str | None:
    """A nodata value that JSON can hold: NaN and infinities as words."""
    return str(nodata) if nodata is not None and not np.isfinite(nodata) else nodata
