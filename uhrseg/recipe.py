"""A training run as one flat, complete TOML file, checked on its first line.

Every key has a sentence below it. Unknown keys are refused with the nearest valid name, nothing is inherited, and
``recipe.write`` puts the resolved recipe (defaults included) into the run folder.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from uhrseg.card import BandSpec, ClassSpec, WindowSpec
from uhrseg.errors import InputError
from uhrseg.legend import Legend, LegendClass
from uhrseg.overrides import apply_override, first_fault
from uhrseg.presets import PRESETS

__all__ = ["BlocksTable", "DataTable", "LossTable", "ModelTable", "Recipe", "TrainTable", "WindowTable"]

NO_CLASS = ("ignore", "skip")
"""What a label value can be instead of a class."""

SINGLE_SCALE = ("single", "registers")
"""Strategies whose model sees no context window."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class BlocksTable(_Table):
    """Validation blocks cut out of the training rasters, where there are no rasters to spare (``data.val`` empty)."""

    size_m: float = Field(gt=0, description="Side of a block in metres (in pixels where a raster has no CRS).")
    buffer_m: float = Field(
        0.0, ge=0, description="Strip around validation blocks that is neither trained nor scored; up to half a block."
    )
    val_share: float = Field(0.2, gt=0, lt=1, description="Share of the labels, and of each class, held out.")
    seed: int = Field(0, ge=0, description="Chooses the blocks; not the run's seed, so that runs are comparable.")


class DataTable(_Table):
    """Which rasters and labels to train on, and what the channels and classes are."""

    dataset: Literal["folder", "archaeoscape", "urur", "gleason", "cityscapes"] = Field(
        "folder",
        description="'folder' is your own rasters; a published data set knows its files, bands and classes "
        "(docs/datasets.md), so that a recipe gives only what it changes.",
    )
    root: str = Field(description="Folder of the data; a relative path starts at the current folder.")
    train: tuple[str, ...] = Field(
        min_length=1, description="Globs, inside root, of the rasters to train on; '!...' leaves out what it matches."
    )
    val: tuple[str, ...] = Field((), description="Globs, inside root, of the rasters to validate on; may be empty.")
    test: tuple[str, ...] = Field((), description="Globs, inside root, of the rasters to report on; may be empty.")
    more: tuple[str, ...] = Field(
        (), description="Files with further bands of a raster (a DTM, say) on the same grid, found like labels."
    )
    labels: str = Field(
        description="Labels of a raster, seen from its folder: '{stem}' is the raster's file name without suffix, "
        "'{name}' the same without what follows its last underscore, '{parent}' its folder's name, '{root}' the data's "
        "folder, '{split}' train, val or test; a raster of class ids or a vector file."
    )
    label_column: str | tuple[str, ...] | None = Field(
        None, description="Vector labels: the column with the class id or name; of several, the first that exists."
    )
    label_class: str | None = Field(
        None, description="Vector labels without a column: the name of the class that every polygon is."
    )
    label_values: dict[str, str] = Field(
        default_factory=dict,
        description="Class name of each value of the column that is no class name, or of each value (or '#rrggbb' of a "
        "palette) of raster labels; 'ignore': no label; 'skip': the polygon is left out.",
    )
    aoi: str | None = Field(
        None, description="Vector file of the labelled area, found like labels; outside is neither trained nor scored."
    )
    aoi_column: str | tuple[str, ...] | None = Field(
        None, description="Column of aoi with the raster's name without suffix; none: all polygons are for all rasters."
    )
    blocks: BlocksTable | None = Field(None, description="How to hold out blocks for validation when val is empty.")
    gsd_m: float | None = Field(None, gt=0, description="Ground sampling distance of the rasters in metres.")
    band: tuple[BandSpec, ...] = Field(min_length=1, description="The input channels, in order.")
    class_: tuple[ClassSpec, ...] = Field(alias="class", min_length=2, description="The classes, ids 0, 1, 2, ...")
    background: int | None = Field(None, description="Id of the class that is no feature; none: every class is one.")
    ignore: int = Field(255, ge=0, le=255, description="Label value that is neither trained on nor scored.")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        """A published data set fills in what the recipe leaves out."""
        preset = PRESETS.get(values.get("dataset", "")) if isinstance(values, dict) else None
        return values if preset is None else preset | values

    @property
    def legend(self) -> Legend:
        """The classes as a `Legend`."""
        return Legend(tuple(LegendClass(c.id, c.name, c.color) for c in self.class_), self.background, self.ignore)

    @model_validator(mode="after")
    def _legend_is_sound(self) -> DataTable:
        if any(band.kind == "crop_mean" for band in self.band):
            raise ValueError("kind = 'crop_mean' is for imported checkpoints: train on kind = 'relief'")
        names = self.legend.names
        for name in [*filter(None, [self.label_class]), *(v for v in self.label_values.values() if v not in NO_CLASS)]:
            if name not in names:
                raise ValueError(f"no class is called {name!r}: the classes are {', '.join(names)}")
        if self.label_class and (self.label_column or self.label_values):
            raise ValueError("label_class makes every polygon one class: give it or a label_column, not both")
        return self

    @property
    def validates(self) -> bool:
        """Whether there is anything to validate on: rasters, or blocks of the training rasters."""
        return bool(self.val) or self.blocks is not None

    @model_validator(mode="after")
    def _one_split(self) -> DataTable:
        if self.val and self.blocks:
            raise ValueError("val names rasters and blocks cuts some from the others: give one of the two")
        if self.blocks and self.blocks.buffer_m > self.blocks.size_m / 2:
            raise ValueError("blocks.buffer_m is more than half of blocks.size_m: choose larger blocks")
        return self


class ModelTable(_Table):
    """The network; absent sizes are the trunk's own."""

    trunk: str = Field(description="Name of the trunk, a key of `uhrseg models list`, e.g. 'swinv2_s'.")
    strategy: str = Field(
        "relays",
        description="'relays' (two scales), 'registers' or 'single' (one scale); to compare with: 'downsampling', "
        "'decision_fusion', 'token_concat'.",
    )
    relays: int = Field(4, ge=1, description="Number of relay tokens (paper: 4).")
    order: Literal["sequential", "parallel"] = Field(
        "sequential", description="Context before local in every block (paper, Eq. 4-5), or both at once."
    )
    share_projector: bool = Field(True, description="Whether local and context windows share the patch projection.")
    share_blocks: bool | None = Field(None, description="ViT: whether both scales share the transformer blocks.")
    head: str = Field(
        "linear", description="Segmentation head: 'linear', 'upernet', 'unet' or another (docs/models.md)."
    )
    pretrained: bool | str = Field(False, description="true: timm's weights of the trunk; a path: weights from there.")
    embed_dim: int | None = Field(None, gt=0, description="Channels of the first stage.")
    depth: int | None = Field(None, gt=0, description="Blocks of a plain ViT (paper, Table 7: 6 instead of 12).")
    depths: tuple[int, ...] | None = Field(None, description="Blocks per stage.")
    heads: tuple[int, ...] | int | None = Field(None, description="Attention heads, per stage for hierarchical trunks.")
    window: int | None = Field(None, gt=0, description="Side of an attention window, in tokens.")
    global_tokens: int | None = Field(
        None, ge=0, description="GLAM's global tokens per window (paper: 10; 0: plain Swin)."
    )
    position: str | None = Field(
        None, description="How GLAM's global tokens know their window: 'coordinates', or 'table' as published."
    )
    faithful: bool | None = Field(
        None, description="true: what the authors' code does, its known defects included (docs/models.md)."
    )
    patch_size: int | None = Field(None, gt=0, description="Side of a patch in pixels.")
    variant: str | None = Field(None, description="Size of a baseline: pvtv2 b0 to b5, gcvit xxtiny to base.")
    encoder: str | None = Field(None, description="Encoder of unet: a name of segmentation-models-pytorch.")
    drop_path: float | None = Field(None, ge=0, lt=1, description="Stochastic depth rate.")
    head_channels: int | None = Field(None, gt=0, description="Channels inside the head, where it has any.")
    detail_channels: int | None = Field(
        None, ge=0, description="Channels of the upernet head's full-resolution skip from the image; 0: no skip."
    )
    auxiliary: bool | None = Field(
        None, description="upernet_mmseg: whether an FCN head on the last stage but one is trained too, as published."
    )

    @property
    def architecture(self) -> dict[str, Any]:
        """Keyword arguments of `uhrseg.models.build` that a card keeps: all but bands, classes, size, pretrained."""
        return self.model_dump(exclude_none=True, exclude={"pretrained"}, mode="json")


class WindowTable(WindowSpec):
    """The window pair; the factor is the paper's by default and of no effect for strategies with one scale."""

    context_factor: int | None = Field(
        4, ge=2, description="The context window covers this many times the side of the local one."
    )


class TrainTable(_Table):
    """The optimisation (paper, section 4.1) and the augmentation."""

    epochs: int = Field(50, ge=1, description="Number of epochs.")
    steps_per_epoch: int = Field(100, ge=1, description="Optimiser steps in one epoch.")
    batch_size: int = Field(64, ge=1, description="Samples of one forward pass on one device.")
    accumulate: int = Field(1, ge=1, description="Forward passes whose gradients make one optimiser step.")
    lr: float = Field(1e-4, gt=0, description="Learning rate of AdamW after the warm-up.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Fraction of all steps in which the rate rises linearly.")
    schedule: Literal["plateau", "cosine"] = Field(
        "plateau",
        description="After the warm-up: times 0.2 when the validation score stalls for 4 validations, or cosine to 0.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Arithmetic of the forward pass; auto: bf16 where the processor has it."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where to train.")
    workers: int = Field(1, ge=0, description="Processes that make samples; 0: the training process itself.")
    in_memory: bool = Field(
        False, description="Whether data of more than 64 megapixels are held in memory too: faster samples."
    )
    clip_norm: float = Field(0.0, ge=0, description="Largest norm of the gradient; 0: not clipped.")
    activation_checkpointing: bool = Field(
        False, description="Whether blocks are computed again in the backward pass: less memory, a third slower."
    )
    compile: bool = Field(False, description="Whether torch.compile makes the network faster (minutes at the start).")
    keep: Literal["best", "last"] | None = Field(
        None,
        description="Weights in model/: of the best validation mIoU or the last. Default: best with a val split.",
    )
    val_every: int = Field(1, ge=0, description="Epochs between two validations; 0: only at the end.")
    checkpoint_every: int = Field(200, ge=1, description="Steps between two checkpoints.")
    prior_bias: bool = Field(
        False, description="Whether the untrained classifier predicts the classes' shares of the training pixels."
    )
    scale_probability: float = Field(0.5, ge=0, le=1, description="Share of samples resized by 0.5 to 2.")
    rotate_probability: float = Field(0.5, ge=0, le=1, description="Share of samples turned by -90 to 90 degrees.")
    flips: bool = Field(False, description="Whether samples are flipped and turned by quarters (the eight of D4).")
    jitter: float = Field(
        0.0, ge=0, lt=1, description="Radiometric jitter: gain 1 +- this, offset +- this many standard deviations."
    )
    balanced_centres: float = Field(
        0.0, ge=0, le=1, description="Share of samples centred on a pixel of a feature class, classes drawn alike."
    )

    @model_validator(mode="after")
    def _plateau_needs_scores(self) -> TrainTable:
        if self.schedule == "plateau" and self.val_every == 0:
            raise ValueError("schedule = 'plateau' follows the validation score: set val_every >= 1 or use 'cosine'")
        return self


class LossTable(_Table):
    """Weights of the terms of the loss (paper, section 3.2; the local term has weight 1)."""

    global_weight: float = Field(0.1, ge=0, description="Weight of the global term.")
    consistency_weight: float = Field(0.1, ge=0, description="Weight of the consistency term.")
    class_weights: tuple[float, ...] | None = Field(None, description="One weight per class; none: all alike.")
    dice_weight: float = Field(0.0, ge=0, description="Weight of a soft Dice term on the local logits.")
    auxiliary_weight: float = Field(
        0.4, ge=0, description="Weight of the auxiliary head's cross-entropy, with model.auxiliary (GLAM's code: 0.4)."
    )


class Recipe(_Table):
    """A complete training run; `Recipe.read` and `recipe.write` are its two verbs."""

    name: str = Field(min_length=1, description="Name of the trained model, written into its card.")
    seed: int = Field(42, ge=0, description="Everything random is a function of this, the epoch and the sample.")
    description: str = Field("", description="What the model is and is not, for its card.")
    license: str = Field("unknown", description="Licence of the trained weights, for their card.")
    citation: str = Field("", description="What to cite, for the card.")
    data: DataTable
    model: ModelTable
    window: WindowTable = WindowTable()
    train: TrainTable = TrainTable()
    loss: LossTable = LossTable()

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        weights = self.loss.class_weights
        if weights is not None and len(weights) != len(self.data.class_):
            raise ValueError(f"loss.class_weights has {len(weights)} values for {len(self.data.class_)} classes")
        if self.train.schedule == "plateau" and not self.data.validates:
            raise ValueError("train.schedule = 'plateau' needs rasters in data.val, or data.blocks, or use 'cosine'")
        if self.train.keep == "best" and not self.data.validates:
            raise ValueError("train.keep = 'best' needs a validation split: name rasters in data.val, or keep 'last'")
        return self

    @property
    def keeps_best(self) -> bool:
        """Whether ``model/`` takes the weights of the best validation; else those of the last step."""
        return self.data.validates and self.train.keep != "last"

    @property
    def context_factor(self) -> int | None:
        """The window table's factor, or None for a strategy that sees one scale."""
        return None if self.model.strategy in SINGLE_SCALE else self.window.context_factor

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe in `path`, with ``"table.key=value"`` overrides (values in TOML, or a bare word) on top.

        Raises `InputError` for a missing file, bad TOML, an unknown key (with the nearest valid name) or a bad value.
        """
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the recipe {path}: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path} is not valid TOML: {error}") from error
        for override in overrides:
            apply_override(data, override)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(f"{path}: {first_fault(error, cls)}") from error

    def write(self, path: str | Path) -> Path:
        """Write the resolved recipe, defaults included, and return its path."""
        data = self.model_dump(by_alias=True, exclude_none=True, mode="json")
        Path(path).write_text(tomli_w.dumps(data, multiline_strings=True), encoding="utf-8")
        return Path(path)
