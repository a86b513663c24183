"""`uhrseg models`: weights and architectures are two tables."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Uhrseg
from uhrseg.engine.fit import shipped_models
from uhrseg.models import MODELS


def test_the_list_holds_what_ships_and_what_can_be_trained(uhrseg: Uhrseg) -> None:
    listed = json.loads(uhrseg("models", "list", "--json").stdout)
    assert {weights["name"] for weights in listed["weights"]} == set(shipped_models())
    assert listed["architectures"] == list(MODELS)
    assert all(weights["license"] and weights["classes"] and weights["bands"] for weights in listed["weights"])


def test_the_list_for_people_has_two_tables(uhrseg: Uhrseg) -> None:
    weights, _, architectures = uhrseg("models", "list").stdout.partition("Architectures")
    assert weights.startswith("Weights")
    for name in shipped_models():
        assert name in weights
    for name in MODELS:
        assert name in architectures


def test_show_prints_the_card(uhrseg: Uhrseg, model: Path) -> None:
    result = uhrseg("models", "show", model)
    assert result.exit_code == 0, result.stderr
    for words in ("steps", "CC0-1.0", "Counts thresholds.", "dtm", "2 m", "32 px", "mound", "(background)"):
        assert words in result.stdout


def test_show_json_is_the_card(uhrseg: Uhrseg, model: Path) -> None:
    card = json.loads(uhrseg("models", "show", model, "--json").stdout)
    assert card["name"] == "steps"
    assert [c["name"] for c in card["class"]] == ["ground", "bank", "mound"]


def test_show_refuses_an_architecture_and_an_unknown_name(uhrseg: Uhrseg) -> None:
    for name in ("swinv2_t", "nonsense"):
        result = uhrseg("models", "show", name)
        assert result.exit_code == 2 and name in result.stderr
