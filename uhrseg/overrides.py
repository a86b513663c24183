"""Changes to a recipe from the command line, and what is wrong with a recipe in one sentence."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from uhrseg.card import explain
from uhrseg.errors import InputError

__all__ = ["apply_override", "first_fault"]


def apply_override(data: dict[str, Any], text: str) -> None:
    """Put one ``table.key=value`` into `data`, in place."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"cannot apply {text!r}: write an override as table.key=value")
    for part in parts[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise InputError(f"cannot apply {text!r}: {part} is no table")
    data[parts[-1]] = _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    """`text` as a TOML value; what is none is a bare string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def first_fault(error: ValidationError, root: type[BaseModel]) -> str:
    """The first fault of the model `root` in one sentence; an unknown key gets the nearest valid name."""
    first = error.errors()[0]
    if first["type"] != "extra_forbidden":
        return explain(error)
    *tables, key = (str(part) for part in first["loc"] if not isinstance(part, int))
    names = _keys(root, tables)
    near = difflib.get_close_matches(key, names, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(names)}"
    return f"unknown key {'.'.join([*tables, key])!r}: {advice}"


def _keys(model: type[BaseModel], tables: Sequence[str]) -> list[str]:
    """Valid keys of the table found by walking `tables` down from `model`."""
    for table in tables:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        annotation = fields[table].annotation
        inner = next((a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and _is_table(a)), None)
        model = inner or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _is_table(annotation: type) -> bool:
    return issubclass(annotation, BaseModel)
