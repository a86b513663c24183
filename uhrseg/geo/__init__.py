"""Rasters, windows, labels and polygons: numpy, odc-geo and rasterio, no torch."""
