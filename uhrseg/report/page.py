"""One HTML page that opens anywhere: styles and pictures are inside it."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

__all__ = ["Section", "Table", "write_page"]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --mute: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
table { display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; } caption { text-align: left; }
p.note { color: var(--mute); font-size: .9rem; max-width: 50rem; } img { max-width: 100%; background: white; }
.gallery { display: flex; flex-wrap: wrap; gap: .75rem; } figure { margin: 0; max-width: 16rem; }
figure.wide { max-width: 100%; } figcaption { font-size: .85rem; }
""".strip()


_WIDE = 600
"""Pixels beyond which a picture takes the page's width."""


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the line."""

    header: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A heading, sentences, a table, charts, captioned PNGs side by side, and where the numbers come from."""

    title: str
    notes: Sequence[str] = ()
    table: Table | None = None
    figures: Sequence[Figure] = field(default_factory=tuple)
    pictures: Sequence[tuple[str, Path]] = ()
    origins: Sequence[str] = ()


def write_page(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page whole or not at all; returns its path."""
    body = "\n".join(_section(section) for section in sections)
    text = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>\n{_STYLE}\n</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )
    draft = path.with_name(f".{path.name}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
    return path


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.table is not None:
        parts.append(_table(section.table))
    parts += [_image(figure, section.title) for figure in section.figures]
    if section.pictures:
        parts.append(f'<div class="gallery">{"".join(_picture(*picture) for picture in section.pictures)}</div>')
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in section.notes]
    if section.origins:
        lines = "".join(f'<p class="note">{html.escape(origin)}</p>' for origin in section.origins)
        parts.append(f"<details><summary>Where the numbers come from</summary>{lines}</details>")
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in table.lines)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _image(figure: Figure, name: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f"<p>{_embedded(buffer.getvalue(), name)}</p>"


def _picture(caption: str, path: Path) -> str:
    png = path.read_bytes()
    image = _embedded(png, caption)
    kind = "wide" if int.from_bytes(png[16:20], "big") > _WIDE else "small"  # the width stands there in every PNG
    return f'<figure class="{kind}">{image}<figcaption>{html.escape(caption)}</figcaption></figure>'


def _embedded(png: bytes, name: str) -> str:
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
