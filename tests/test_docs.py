"""What exists is documented, and what is documented runs."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.windows import Window
from shapely import Point, box
from typer.main import get_command
from typer.testing import CliRunner

from uhrseg.card import ModelCard
from uhrseg.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")

# What keeps a documented command small, or lets it run a second time, when the tests run it.
EXTRA = {
    "benchmark": ("--quick",),
    "train": ("--fast-dev-run",),
    "predict": ("--overwrite",),
    "inspect": ("--overwrite",),
}


def commands(group: Any, prefix: str = "uhrseg") -> Iterator[tuple[str, Any]]:
    """Every command of the program as ("uhrseg models show", command)."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


COMMANDS = dict(commands(get_command(app)))


def section(name: str) -> str:
    """The part of docs/cli.md under the heading `name`."""
    found = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", CLI, re.S | re.M)
    assert found, f"docs/cli.md has no heading '## {name}'"
    return found[1]


def console_commands(document: Path) -> list[str]:
    """Commands of the ```console blocks that start with uhrseg, with or without a '$ ' prompt."""
    text = document.read_text(encoding="utf-8") if document.exists() else ""
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.S | re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.removeprefix("$ ").startswith("uhrseg ")]


DOCUMENTED = [
    (document.name, command)
    for document in (ROOT / "docs" / "cli.md", ROOT / "README.md", ROOT / "examples" / "my_data.md")
    for command in console_commands(document)
]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_flag_is_documented(name: str) -> None:
    words = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", section(name)))
    flags = {flag for parameter in COMMANDS[name].params for flag in parameter.opts if flag.startswith("-")}
    assert flags - {"--help"} <= words


@pytest.mark.parametrize("name", COMMANDS)
def test_the_documentation_names_no_flag_that_does_not_exist(name: str) -> None:
    words = set(re.findall(r"^\| `(--?[a-z-]+)", section(name), re.M))
    words |= set(re.findall(r"(?<=[, `])--[a-z-]+(?=[ `])", "\n".join(re.findall(r"^\| `.*?\|", section(name), re.M))))
    flags = {flag for parameter in COMMANDS[name].params for flag in parameter.opts}
    assert words <= flags


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(app, [*name.split()[1:], "--help"])
    assert result.exit_code == 0
    assert f"$ {name}" in result.stdout
    described = [p for p in COMMANDS[name].params if not getattr(p, "help", None)]
    assert not described, f"without help: {described}"


def test_documents_hold_examples() -> None:
    assert {command.split()[1] for _, command in DOCUMENTED} >= {"predict", "train", "models", "inspect"}


@pytest.mark.parametrize(("document", "command"), DOCUMENTED)
def test_documented_commands_run(
    document: str, command: str, playgrounds: Playgrounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(playgrounds(document))
    words = shlex.split(command)[1:]
    extra = [word for word in EXTRA.get(words[0], ()) if word not in words]
    result = CliRunner().invoke(app, [*words, *extra])
    assert result.exit_code == 0, result.stderr


Playgrounds = Callable[[str], Path]


@pytest.fixture(scope="module")
def playgrounds(tmp_path_factory: pytest.TempPathFactory, parcel: Path) -> Playgrounds:
    """One folder per document, in which its commands run in order: small copies of what they name."""

    @cache
    def folder_of(document: str) -> Path:
        folder = tmp_path_factory.mktemp(document.partition(".")[0])
        shutil.copytree(ROOT / "recipes", folder / "recipes")
        (folder / "examples").mkdir()
        for split in ("train", "val"):
            (folder / "data" / split).mkdir(parents=True)
            write_crop(
                parcel, folder / "data" / split / f"{split}_dtm.tif", folder / "data" / split / f"{split}_mask.tif"
            )
        write_crop(parcel, folder / "parcel.tif")
        write_labels(parcel, folder)
        write_crop(parcel, folder / "examples" / "parcel.tif")
        write_own_data(parcel, folder)
        return folder

    return folder_of


def write_labels(parcel: Path, folder: Path) -> None:
    """labels.gpkg: one mound on the crop; legend.toml: the classes of the shipped model."""
    with rasterio.open(parcel) as source:
        x, y = source.xy(120, 180)
        crs = source.crs
    mound = {"class": ["mound"], "geometry": [Point(x, y).buffer(20)]}
    geopandas.GeoDataFrame(mound, crs=crs).to_file(folder / "labels.gpkg")
    card = (ROOT / "uhrseg" / "weights" / "swinv2-relay" / "card.toml").read_text(encoding="utf-8")
    (folder / "legend.toml").write_text(card, encoding="utf-8")


def write_own_data(parcel: Path, folder: Path) -> None:
    """my_data.toml as it is shipped, and what it names: a raster, and mounds and an area in EPSG:4326."""
    shutil.copy(ROOT / "recipes" / "my_data.toml", folder)
    (folder / "my_data").mkdir()
    write_crop(parcel, folder / "my_data" / "parcel.tif")
    with rasterio.open(folder / "my_data" / "parcel.tif") as source:
        left, bottom, right, top = source.bounds
        crs = source.crs
    mounds = [Point(x, y).buffer(8) for x in range(int(left) + 30, int(right), 50) for y in (bottom + 60, top - 60)]
    for name, shapes in {"mounds": mounds, "area": [box(left, bottom, right - 60, top)]}.items():
        layer = geopandas.GeoDataFrame(geometry=shapes, crs=crs).to_crs(4326)
        layer.to_file(folder / "my_data" / f"{name}.gpkg")


def test_the_walk_through_ends_in_a_model_of_the_drawn_class(playgrounds: Playgrounds) -> None:
    """After the commands of examples/my_data.md: blocks to look at, and a model that names mounds."""
    folder = playgrounds("my_data.md")
    if not (folder / "found.gpkg").exists():
        pytest.skip("runs after the documented commands of examples/my_data.md")
    blocks = geopandas.read_file(folder / "runs" / "my_data" / "blocks.geojson")
    mounds = geopandas.read_file(folder / "my_data" / "mounds.gpkg")
    for _, part in blocks.groupby("split"):
        assert mounds.intersects(part.union_all()).any()
    assert set(blocks["split"]) == {"train", "val"}
    card = ModelCard.read(folder / "runs" / "my_data" / "model")
    assert card.legend.names == ["background", "mound"] and card.training["validation"]["accuracy"] > 0
    found = geopandas.read_file(folder / "found.gpkg")
    assert found.crs == rasterio.open(folder / "my_data" / "parcel.tif").crs and set(found["class"]) <= {"mound"}


def write_crop(parcel: Path, path: Path, mask: Path | None = None) -> None:
    """300 x 260 px of the parcel, and labels whose classes 0 to 4 lie in columns."""
    with rasterio.open(parcel) as source:
        window = Window(100, 50, 300, 260)
        profile = source.profile | {"width": 300, "height": 260, "transform": source.window_transform(window)}
        values = source.read(1, window=window)
    with rasterio.open(path, "w", **profile) as target:
        target.write(values, 1)
    if mask:
        labels = np.broadcast_to(np.arange(300) // 60, (260, 300)).astype(np.uint8)
        with rasterio.open(mask, "w", **profile | {"dtype": "uint8", "nodata": 255}) as target:
            target.write(labels, 1)
