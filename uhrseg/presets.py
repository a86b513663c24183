"""The published data sets: what a recipe's ``[data]`` table says when it only names one of them.

A preset is plain data in the words of `uhrseg.recipe.DataTable`; every key can be overridden in a recipe. Layouts,
classes and splits are those of the relay-token paper's experiments (section 4.1 and appendix); docs/datasets.md says
where the published code differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["PRESETS"]


def _classes(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"id": k, "name": name, "color": color} for k, (name, color) in enumerate(pairs)]


def _values(ids: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Label value (as text) -> class name."""
    return {str(value): name for name, values in ids.items() for value in values}


_RGB = [{"name": "red"}, {"name": "green"}, {"name": "blue"}]

_TRAIN_PARCELS = (
    "01_olinda", "02_irene", "03_diomira", "04_isidora", "05_tamara", "06_dorothea", "07_anastasia", "08_isaura",
    "09_zora", "10_gold_road", "11_silver_road", "12_ginger_road", "13_saffron_road", "14_lavender_road",
    "15_thyme_road", "16_cinnamon_road",
)  # fmt: skip
_VAL_PARCELS = ("17_fusang", "18_yaochi", "19_penglai")
_TEST_PARCELS = ("20_hali", "21_carcosa", "22_ulthar", "23_kadath")


def _parcels(names: Sequence[str]) -> list[str]:
    return [f"data/rasters/rgb/{name}.tif" for name in names]


ARCHAEOSCAPE: dict[str, Any] = {
    "train": _parcels(_TRAIN_PARCELS),
    "val": _parcels(_VAL_PARCELS),
    "test": _parcels(_TEST_PARCELS),
    "more": ["{root}/data/rasters/dtm/{stem}.tif"],
    "labels": "{root}/data/features.gpkg",
    "label_column": ["type_cls6_str", "label_easy5", "type"],
    "label_values": {
        "hydrology": "water",
        "temple": "temple_site",
        "void": "ignore",
        "mound_on_mound": "skip",
    },
    "aoi": "{root}/data/parcels.gpkg",
    "aoi_column": ["index", "sblock", "aoi_name"],
    "gsd_m": 0.5,
    # Heights count relative to their surroundings. The paper subtracts the crop's mean; a crop is 128 m wide.
    "band": [*_RGB, {"name": "relief_64m", "kind": "relief", "source": "dtm", "radius_m": 64.0}],
    "class": _classes(
        ("mound", "#dc9600"), ("water", "#1478dc"), ("temple_site", "#c800c8"), ("background", "#ffffff")
    ),
    "background": 3,
}

_URUR = (
    ("others", "#000000"),
    ("building", "#e6e6e6"),
    ("greenhouse", "#646464"),
    ("woodland", "#c8e6a0"),
    ("farmland", "#5fa307"),
    ("bareland", "#ffff64"),
    ("water", "#96c8fa"),
    ("road", "#f06450"),
)
URUR: dict[str, Any] = {
    "train": ["train/image/**/*.tif"],
    "val": ["val/image/**/*.tif"],
    "test": ["test/image/**/*.tif"],
    "labels": "{root}/{split}/label/{stem}.png",
    "label_values": {color: name for name, color in _URUR} | {"#ffffff": "ignore"},
    "band": _RGB,
    "class": _classes(*_URUR),
}

_LOW_CORES = [f"Train Imgs/slide00[1-6]_core{core}.jpg" for core in ("00[0-9]", "01[0-4]")]
GLEASON: dict[str, Any] = {
    "train": ["Train Imgs/slide00[1-6]_core*.jpg", *(f"!{cores}" for cores in _LOW_CORES)],
    "val": _LOW_CORES,
    "test": ["Train Imgs/slide007_core*.jpg"],
    "labels": "{root}/Maps_majority/{stem}_classimg_nonconvex.png",
    "label_values": _values({"benign": (0, 1, 2, 6), "grade_3": (3,), "grade_4": (4,), "grade_5": (5,)}),
    "band": _RGB,
    "class": _classes(("benign", "#d9d9d9"), ("grade_3", "#4daf4a"), ("grade_4", "#377eb8"), ("grade_5", "#e41a1c")),
}

_CITYSCAPES = {  # name: (labelId, colour), in the order of the train ids
    "road": (7, "#804080"), "sidewalk": (8, "#f423e8"), "building": (11, "#464646"), "wall": (12, "#66669c"),
    "fence": (13, "#be9999"), "pole": (17, "#999999"), "traffic_light": (19, "#faaa1e"),
    "traffic_sign": (20, "#dcdc00"), "vegetation": (21, "#6b8e23"), "terrain": (22, "#98fb98"), "sky": (23, "#4682b4"),
    "person": (24, "#dc143c"), "rider": (25, "#ff0000"), "car": (26, "#00008e"), "truck": (27, "#000046"),
    "bus": (28, "#003c64"), "train": (31, "#005064"), "motorcycle": (32, "#0000e6"), "bicycle": (33, "#770b20"),
}  # fmt: skip
CITYSCAPES: dict[str, Any] = {
    "train": ["leftImg8bit/train/*/*_leftImg8bit.png"],
    "val": ["leftImg8bit/val/*/*_leftImg8bit.png"],  # the labels of the official test split are not public
    "labels": "{root}/gtFine/{split}/{parent}/{name}_gtFine_labelIds.png",
    "label_values": {str(k): "ignore" for k in range(34)} | {str(k): name for name, (k, _) in _CITYSCAPES.items()},
    "band": _RGB,
    "class": _classes(*((name, color) for name, (_, color) in _CITYSCAPES.items())),
}

PRESETS: dict[str, dict[str, Any]] = {
    "archaeoscape": ARCHAEOSCAPE,
    "urur": URUR,
    "gleason": GLEASON,
    "cityscapes": CITYSCAPES,
}
"""Name of the data set -> defaults of its ``[data]`` table."""
