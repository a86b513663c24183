"""Classes, their names and their colours."""

from __future__ import annotations

import re
from dataclasses import dataclass

from uhrseg.errors import InputError

__all__ = ["NODATA", "Legend", "LegendClass"]

NODATA = 255
"""Value of a class map where no class was predicted (also the default ignore value of labels)."""

_HEX = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class LegendClass:
    """One class: ``id`` (its value in class maps), ``name``, ``color`` as ``"#rrggbb"``."""

    id: int
    name: str
    color: str

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""
        return int(self.color[1:3], 16), int(self.color[3:5], 16), int(self.color[5:7], 16)


@dataclass(frozen=True)
class Legend:
    """The classes of a model or of labels; channel k of a model's logits is ``classes[k]``.

    ``background`` is the id of the class that is not a feature (None: every class is), ``ignore`` the label
    value that is neither trained on nor scored. Ids are 0..C-1 in order, at most 255 of them.
    Raises `InputError` for ids out of order, double names or a colour that is not ``#rrggbb``.
    """

    classes: tuple[LegendClass, ...]
    background: int | None = None
    ignore: int = NODATA

    def __post_init__(self) -> None:
        ids = [c.id for c in self.classes]
        if not ids or ids != list(range(len(ids))) or len(ids) > NODATA:
            raise InputError(
                f"class ids are {ids}, but a legend numbers its classes 0, 1, 2, ... in order "
                f"(at most {NODATA}): renumber the classes"
            )
        names = self.names
        if len(set(names)) != len(names) or not all(names):
            raise InputError(f"class names are {names}, but each must be given once and not be empty")
        for c in self.classes:
            if not _HEX.fullmatch(c.color):
                raise InputError(f"class {c.name!r} has colour {c.color!r}: write it as '#rrggbb'")
        if self.background is not None and self.background not in ids:
            raise InputError(f"background = {self.background} is no class id of {ids}")
        if self.ignore in ids:
            raise InputError(f"ignore = {self.ignore} is also a class id: choose a value outside {ids}")

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        """Class names in the order of their ids."""
        return [c.name for c in self.classes]

    @property
    def foreground(self) -> tuple[int, ...]:
        """Ids of all classes but the background."""
        return tuple(c.id for c in self.classes if c.id != self.background)

    def ids_of(self, names: list[str]) -> tuple[int, ...]:
        """Ids of the classes called `names`; `InputError` lists the legal names for an unknown one."""
        known = {c.name: c.id for c in self.classes}
        for name in names:
            if name not in known:
                raise InputError(f"no class is called {name!r}: the classes are {', '.join(known)}")
        return tuple(known[name] for name in names)
