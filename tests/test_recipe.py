from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.synthetic import recipe_for
from uhrseg.errors import InputError
from uhrseg.recipe import DataTable, LossTable, ModelTable, Recipe, TrainTable, WindowTable

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_of_the_project_loads(path: Path) -> None:
    assert Recipe.read(path).name


@pytest.mark.parametrize("table", [Recipe, DataTable, ModelTable, WindowTable, TrainTable, LossTable])
def test_every_key_has_a_sentence(table: type[BaseModel]) -> None:
    tables = {"data", "model", "window", "train", "loss"}
    silent = [n for n, f in table.model_fields.items() if n not in tables and not (f.description or "").endswith(".")]
    assert not silent


def test_a_written_recipe_reads_back_the_same_with_its_defaults(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path)
    written = recipe.write(tmp_path / "resolved.toml")
    assert Recipe.read(written) == recipe
    assert "clip_norm = 0.0" in written.read_text()


def test_overrides_take_toml_values_and_bare_words(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, "train.lr=0.5", "model.strategy=single", 'data.val=["v.tif"]', "seed=7")
    assert (recipe.train.lr, recipe.model.strategy, recipe.data.val, recipe.seed) == (0.5, "single", ("v.tif",), 7)


@pytest.mark.parametrize("strategy, factor", [("relays", 4), ("single", None), ("registers", None)])
def test_one_scale_has_no_context(tmp_path: Path, strategy: str, factor: int | None) -> None:
    assert recipe_for(tmp_path, f"model.strategy={strategy}").context_factor == factor


@pytest.mark.parametrize(
    "override, said",
    [
        ("train.batchsize=3", "'train.batchsize': did you mean 'batch_size'"),
        ("nam=x", "'nam': did you mean 'name'"),
        ("loss.zzz=1", "valid keys: global_weight"),
        ("window.sise=64", "did you mean 'size'"),
        ("train.lr=fast", "train.lr"),
        ("train.lr=-1", "greater than 0"),
        ("train", "table.key=value"),
        ("name.x=1", "name is no table"),
        ("loss.class_weights=[1.0]", "1 values for 3 classes"),
        ("train.schedule=plateau", "val_every >= 1"),
        ("data.background=9", "no class id"),
        ("data.dataset=urural", "data.dataset"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(InputError, match=".*") as refusal:
        recipe_for(tmp_path, override)
    assert said in str(refusal.value)


def test_an_unknown_key_inside_a_list_of_tables_names_its_neighbours(tmp_path: Path) -> None:
    bands: Any = 'data.band=[{ name = "dtm", knid = "raw" }]'
    with pytest.raises(InputError, match="'data.band.knid': did you mean 'kind'"):
        recipe_for(tmp_path, bands)


def test_a_plateau_without_validation_rasters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs rasters in data.val"):
        recipe_for(tmp_path, "train.schedule=plateau", "train.val_every=1")


def test_missing_and_malformed_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the recipe"):
        Recipe.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(InputError, match="not valid TOML"):
        Recipe.read(tmp_path / "bad.toml")
