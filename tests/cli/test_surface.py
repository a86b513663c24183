"""The names scripts depend on: adding one is a deliberate act, changing one breaks somebody."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any, get_args

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from uhrseg import __version__
from uhrseg.cli import predict as predict_module
from uhrseg.cli.main import app

TALK = {"--debug", "--help", "--quiet", "--verbose", "-q", "-v"}
READ = {"--allow-network", "--bidx", "--nodata", "-b"}
SURFACE = {
    "predict": TALK
    | READ
    | {"--batch-size", "--chunk", "--classes", "--device", "--dry-run", "--json", "--min-area", "--model", "--output"}
    | {"--aoi", "--bounds", "--res", "--resume", "--simplify"}
    | {"--compile", "--overlap", "--overwrite", "--precision", "--probabilities", "--scheduler", "--taper"}
    | {"--workers", "-o"},
    "train": TALK | {"--fast-dev-run", "--output", "--resume", "--set", "-o"},
    "data check": TALK | {"--json", "--set"},
    "data prepare": TALK,
    "models list": TALK | {"--json"},
    "models show": TALK | {"--json"},
    "models verify": TALK,
    "models attention": TALK | {"--bounds", "--output", "--overwrite", "-o"},
    "models export": TALK | {"--json", "--output", "--overwrite", "-o"},
    "models import": TALK
    | {"--arch", "--classes", "--faithful", "--json", "--order", "--output", "--overwrite", "--set", "-o"},
    "evaluate": TALK | {"--json", "--label-column", "--legend", "--res"},
    "benchmark": TALK
    | {"--data", "--models", "--output", "--quick", "--recipe", "--seeds", "--set", "--size", "--table", "--train"}
    | {"-o"},
    "inspect": TALK | READ | {"--json", "--labels", "--model", "--overwrite", "--png", "--polygons"},
}
HEAVY = ("dask", "geopandas", "matplotlib", "numpy", "pandas", "pydantic", "rasterio", "timm", "torch", "xarray")


def flags(command: Any) -> set[str]:
    context = command.make_context("uhrseg", ["--help-is-not-asked"], resilient_parsing=True)
    return {flag for parameter in command.get_params(context) for flag in parameter.opts if flag.startswith("-")}


def surface(group: Any, prefix: str = "") -> dict[str, set[str]]:
    found = {}
    for name, command in group.commands.items():
        nested = hasattr(command, "commands")
        found.update(surface(command, f"{name} ") if nested else {prefix + name: flags(command)})
    return found


def test_the_set_of_commands_and_flags_is_frozen() -> None:
    assert surface(get_command(app)) == SURFACE


@pytest.mark.parametrize("statement", ["import uhrseg", "import uhrseg.cli.main"])
def test_nothing_heavy_is_imported_before_a_command_needs_it(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_m_uhrseg_is_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "uhrseg", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"uhrseg {__version__}\n"


def test_no_command_prints_the_help_and_is_a_usage_error() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "predict" in result.output


def test_choices_and_defaults_are_those_of_the_library() -> None:
    from uhrseg.engine.device import Precision
    from uhrseg.engine.predict import predict
    from uhrseg.geo.plan import TAPERS

    ours = inspect.signature(predict_module.predict_command, eval_str=True).parameters
    theirs = inspect.signature(predict).parameters
    for name in (
        "chunk",
        "workers",
        "batch_size",
        "device",
        "precision",
        "overlap",
        "nodata",
        "allow_network",
        "taper",
    ):
        assert ours[name].default == theirs[name].default, name
    taper, precision = (get_args(get_args(ours[name].annotation)[0]) for name in ("taper", "precision"))
    assert set(taper) == set(TAPERS)
    assert set(precision) == set(get_args(Precision))
