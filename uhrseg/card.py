"""The model card: everything a trained model needs besides its weights, checked when it is read.

A model folder holds ``model.safetensors`` and ``card.toml``. The words follow the STAC Machine Learning Model
extension (https://github.com/stac-extensions/mlm) where it has one for the thing.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from uhrseg.errors import InputError
from uhrseg.legend import Legend, LegendClass

__all__ = [
    "BandSpec",
    "ClassSpec",
    "InputSpec",
    "ModelCard",
    "WeightsSpec",
    "WindowSpec",
    "explain",
    "read_legend",
    "sha256_of",
]

CARD_FILE = "card.toml"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class BandSpec(_Frozen):
    """One input channel of the model."""

    name: str = Field(description="Name of the channel, e.g. 'red' or 'relief_15m'.")
    kind: Literal["raw", "relief", "crop_mean"] = Field(
        "raw",
        description="'raw' takes the raster's values; 'relief' the value minus its local mean; 'crop_mean' the value "
        "minus the mean of its window, as published networks were trained (for imported checkpoints only).",
    )
    source: str | None = Field(None, description="Raster band it is derived from; default: its own name.")
    radius_m: float | None = Field(None, gt=0, description="Relief only: half side of the mean's square, metres.")
    mean: float = Field(0.0, description="Training mean of the derived band, subtracted; nan: not known.")
    std: float = Field(1.0, gt=0, description="Training standard deviation of the derived band, divided by.")

    @model_validator(mode="after")
    def _radius_belongs_to_relief(self) -> BandSpec:
        if (self.kind == "relief") != (self.radius_m is not None):
            raise ValueError(f"band {self.name!r}: kind = 'relief' needs radius_m, and other kinds take none")
        if self.kind == "crop_mean" and self.mean != 0:
            raise ValueError(f"band {self.name!r}: kind = 'crop_mean' takes its mean from each window: leave mean out")
        return self

    @property
    def raster_band(self) -> str:
        """The raster band this channel is derived from."""
        return self.source or self.name


class InputSpec(_Frozen):
    """What the model was trained to see."""

    gsd_m: float | None = Field(None, gt=0, description="Ground sampling distance in metres; none: any.")
    band: tuple[BandSpec, ...] = Field(min_length=1, description="The input channels, in order.")

    @property
    def raster_bands(self) -> tuple[str, ...]:
        """Names of the raster bands needed, each once, in order of first use."""
        return tuple(dict.fromkeys(b.raster_band for b in self.band))


class WindowSpec(_Frozen):
    """The window pair."""

    size: int = Field(256, gt=0, description="Side of the local window, and of the context window, in pixels.")
    context_factor: int | None = Field(
        None, ge=2, description="The context window covers this many times the side; none: single scale."
    )
    overlap: float = Field(0.25, ge=0, le=0.5, description="Share of a window's side shared with the next one.")
    context: Literal["average", "decimate"] = Field(
        "average", description="How context pixels are made: mean of the block, or its first pixel."
    )


class ClassSpec(_Frozen):
    """One class of the legend."""

    id: int = Field(ge=0, le=254, description="Value in class maps, and channel of the logits.")
    name: str = Field(min_length=1, description="Name of the class.")
    color: str = Field(description="Colour as '#rrggbb'.")


class WeightsSpec(_Frozen):
    """The file of weights."""

    file: str = Field("model.safetensors", description="File name inside the model folder.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of that file.")


class ModelCard(_Frozen):
    """A trained model's card; ``ModelCard.read(folder)`` and ``card.write(folder)`` are its two verbs.

    ``architecture`` holds the keyword arguments of `uhrseg.models.build`. Raises `InputError`, naming the
    file, the field and the rule, for a missing or malformed card.
    """

    name: str
    version: str = "1"
    license: str = "unknown"
    description: str = ""
    citation: str = ""
    architecture: dict[str, Any]
    input: InputSpec
    window: WindowSpec
    class_: tuple[ClassSpec, ...] = Field(alias="class", min_length=1)
    background: int | None = None
    ignore: int = 255
    weights: WeightsSpec
    training: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _legend_is_sound(self) -> ModelCard:
        _ = self.legend
        return self

    @property
    def legend(self) -> Legend:
        """The classes as a `Legend`."""
        classes = tuple(LegendClass(c.id, c.name, c.color) for c in self.class_)
        return Legend(classes, self.background, self.ignore)

    @classmethod
    def read(cls, folder: str | Path) -> ModelCard:
        """Read and check ``folder/card.toml``."""
        path = Path(folder) / CARD_FILE
        if not path.is_file():
            raise InputError(f"{folder} is not a model folder: it has no {CARD_FILE}")
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path} is not valid TOML: {error}") from error
        except ValidationError as error:
            raise InputError(f"{path}: {explain(error)}") from error

    def write(self, folder: str | Path) -> Path:
        """Write ``folder/card.toml`` and return its path."""
        path = Path(folder) / CARD_FILE
        data = self.model_dump(by_alias=True, exclude_none=True, mode="json")
        path.write_text(tomli_w.dumps(data, multiline_strings=True), encoding="utf-8")
        return path


class _LegendFile(BaseModel):
    """What a legend is made of; a card and a recipe hold it among other things."""

    class_: tuple[ClassSpec, ...] = Field(alias="class", min_length=1)
    background: int | None = None
    ignore: int = 255


def read_legend(path: str | Path) -> Legend:
    """The legend in a TOML file: a model's ``card.toml``, a recipe, or ``[[class]]`` tables with ``background``.

    Raises `InputError` for a file that cannot be read or holds no classes.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        found = _LegendFile.model_validate(data if "class" in data else data.get("data", {}))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the legend {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise InputError(
            f"{path} holds no legend ({explain(error)}): give [[class]] tables with id, name and color"
        ) from error
    return Legend(tuple(LegendClass(c.id, c.name, c.color) for c in found.class_), found.background, found.ignore)


def explain(error: ValidationError) -> str:
    """The first fault of a pydantic error as one sentence: where, what rule, what was given."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"{where}: {first['msg']} (given: {first['input']!r})"[:500]


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
