"""Class maps of another grid or CRS on the pixels of a GeoBox."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.warp import reproject

from uhrseg.errors import InputError
from uhrseg.geo.source import open_dataset
from uhrseg.legend import NODATA, Legend

__all__ = ["nearest_labels"]


def nearest_labels(source: str | Path, geobox: GeoBox, legend: Legend) -> NDArray[np.uint8]:
    """Class ids (Y, X) uint8 of a class map in any CRS, nearest neighbour; ``legend.ignore`` where it has none.

    Only what lies under `geobox` is read (https://gdal.org/en/stable/programs/gdalwarp.html). Raises `InputError` for a
    map without a CRS or with values that are no class.
    """
    found = np.full(geobox.shape, NODATA, np.uint8)
    with open_dataset(str(source)) as dataset:
        if dataset.crs is None or geobox.crs is None:
            raise InputError(f"{source} is on another grid and has no CRS to warp by: give it one (gdal_edit -a_srs)")
        if dataset.dtypes[0] != "uint8" or (dataset.nodata is not None and dataset.nodata in range(len(legend))):
            raise InputError(
                f"{source} ({dataset.dtypes[0]}, nodata {dataset.nodata}) cannot be warped: store the class ids as "
                "uint8 with a nodata value that is no class (gdal_translate -ot Byte -a_nodata 255)"
            )
        reproject(
            rasterio.band(dataset, 1),
            found,
            src_nodata=NODATA if dataset.nodata is None else dataset.nodata,
            dst_transform=geobox.transform,
            dst_crs=geobox.crs.to_wkt(),
            dst_nodata=NODATA,
            resampling=Resampling.nearest,
        )
    unknown = sorted(set(np.unique(found).tolist()) - {*range(len(legend)), legend.ignore, NODATA})
    if unknown:
        raise InputError(
            f"{source} holds the value {unknown[0]}, which is no class of the legend (0 to {len(legend) - 1}, ignore "
            f"{legend.ignore}): correct the map or pass --legend"
        )
    return np.where(found == NODATA, np.uint8(legend.ignore), found)
