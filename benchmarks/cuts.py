"""Labels of a file cut beforehand against those of the whole file, beyond 2.5 windows from the cut.

    python benchmarks/cuts.py dtm.tif --model swinv2-relay

Rows are cut off at the top: at the multiples of the stride the windows lie on the same pixels as in the whole file,
elsewhere all of them move.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from uhrseg.engine.predict import predict
from uhrseg.legend import NODATA


def cut_off(source: Path, rows: int, path: Path) -> None:
    """The source without its first rows."""
    with rasterio.open(source) as dataset:
        window = Window(0, rows, dataset.width, dataset.height - rows)
        profile = dataset.profile | {"height": window.height, "transform": dataset.window_transform(window)}
        for creation in ("tiled", "blockxsize", "blockysize", "driver"):
            profile.pop(creation, None)
        with rasterio.open(path, "w", driver="GTiff", **profile) as out:
            out.write(dataset.read(window=window))


def compare(whole: NDArray[np.uint8], cut: NDArray[np.uint8], background: int) -> tuple[int, float, float]:
    """Pixels (Y, X) that count, the share of equal labels, and of equal ones where either has a feature."""
    counts = (whole != NODATA) & (cut != NODATA)
    features = counts & ((whole != background) | (cut != background))
    equal = whole == cut
    return int(counts.sum()), float(equal[counts].mean()), float(equal[features].mean())


def main() -> None:
    """Predict the whole file and each cut one, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--model", default="swinv2-relay")
    parser.add_argument("--cuts", type=int, nargs="*", help="rows to cut off [1 and 1/2 strides, and other numbers]")
    options = parser.parse_args()
    prediction = predict(options.source, options.model, precision="fp32")
    plan, background = prediction.plan, prediction.card.background
    whole, reach = prediction.labels.values, 5 * plan.size // 2
    print(f"| rows cut off | in strides | pixels beyond {reach} | equal labels | equal among features |")
    print("|---|---|---|---|---|")
    for rows in options.cuts or [plan.stride, plan.stride // 2, plan.stride // 4, 100, 1]:
        if rows + reach >= whole.shape[0]:
            raise SystemExit(f"{options.source} has {whole.shape[0]} rows: too few to cut off {rows}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cut.tif"
            cut_off(options.source, rows, path)
            labels = predict(path, options.model, precision="fp32").labels.values
        pixels, equal, features = compare(whole[rows + reach :], labels[reach:], background)
        print(f"| {rows} | {rows / plan.stride:.3g} | {pixels} | {equal:.4%} | {features:.4%} |", flush=True)


if __name__ == "__main__":
    main()
