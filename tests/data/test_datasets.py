from __future__ import annotations

from pathlib import Path

import pytest

from tests.synthetic import recipe_for, write_discs
from uhrseg.data.datasets import find_rasters
from uhrseg.errors import InputError


def test_each_raster_is_found_once_with_its_labels(tmp_path: Path) -> None:
    write_discs(tmp_path / "train")
    data = recipe_for(tmp_path, 'data.train=["train/*_dtm.tif", "train/a_*.tif"]').data
    data = data.model_copy(update={"train": ("train/*_dtm.tif", "train/a_dtm.tif")})
    found = find_rasters(data, "train")
    assert [(s.raster.name, s.labels.name) for s in found] == [
        ("a_dtm.tif", "a_mask.tif"),
        ("b_dtm.tif", "b_mask.tif"),
    ]


def test_one_vector_file_can_label_every_raster(tmp_path: Path) -> None:
    write_discs(tmp_path)
    (tmp_path / "all.gpkg").touch()
    found = find_rasters(recipe_for(tmp_path, "data.labels=all.gpkg").data, "train")
    assert {s.labels for s in found} == {tmp_path / "all.gpkg"}


@pytest.mark.parametrize(
    "override, split, said",
    [
        ("data.root=/nowhere", "train", "is no folder"),
        ('data.train=["*.jp2"]', "train", "matches '*.jp2'"),
        ("data.labels={stem}.gpkg", "train", "has no labels"),
        ("data.labels={parcel}.tif", "train", "may hold {stem}, {name}, {parent}, {root}, {split} only"),
        ('data.val=["a_dtm.tif"]', "val", "belongs to one split"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, override: str, split: str, said: str) -> None:
    write_discs(tmp_path)
    with pytest.raises(InputError) as refusal:
        find_rasters(recipe_for(tmp_path, override).data, split)  # type: ignore[arg-type]
    assert said in str(refusal.value)
