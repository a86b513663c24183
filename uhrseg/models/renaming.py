"""Renaming of state dicts by tables of patterns."""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["READ", "Table", "next_stage", "rename"]

Table = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

# What is not a buffer (computed, and of another size with other relays or images), nor the keys' positions, which the
# relay paper's Flatten-Swin carries and never adds.
READ = r"(?!.*\b(?:relative_position_index|attn_mask|positional_encoding_?)$)"


def next_stage(name: str) -> Callable[[re.Match[str]], str]:
    """What they keep at the end of stage N leads into stage N + 1 here: group 1 is N, the rest of the key follows."""
    return lambda match: f"trunk.layers.{int(match[1]) + 1}.{name}."


def rename(key: str, table: Table) -> str | None:
    """The key by the first pattern that is found in it; None if none is."""
    for pattern, replacement in table:
        new, count = re.subn(pattern, replacement, key)
        if count:
            return new
    return None
