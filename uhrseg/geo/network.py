"""Local files that point to the network.

A VRT is a text file that may name any URL. Reading a local file must not send anything out unless the user asked.
"""

from __future__ import annotations

import re
from pathlib import Path

from uhrseg.errors import InputError

__all__ = ["is_remote", "local_path", "refuse_hidden_network"]

_REMOTE = re.compile(r"(?i)^\s*(https?://|ftp://|/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)(_streaming)?[/?])")
_MENTIONS = re.compile(r"(?i)(https?://|ftp://|/vsi(?:curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)[\w/?])")
_ROOTS = (b"<VRTDataset", b"<GDAL_WMS", b"<WMS_Data", b"<GDALTileIndexDataset")
_CHILD = re.compile(r"<Source(?:Filename|Dataset)([^>]*)>([^<]+)<")
_ENOUGH = 1 << 26


def is_remote(source: str) -> bool:
    """Whether a source given by the user is itself a URL or a GDAL network path."""
    return bool(_REMOTE.match(source))


def local_path(source: str) -> Path | None:
    """The local file a source names, or None for GDAL paths such as ``/vsizip/...`` and URLs."""
    if is_remote(source) or source.startswith("/vsi") or not Path(source).is_file():
        return None
    return Path(source)


def refuse_hidden_network(source: str, _depth: int = 0) -> None:
    """Raise `InputError` when a local VRT or WMS file, or a VRT it refers to, names the network."""
    path = local_path(source)
    if path is None or _depth > 8 or path.stat().st_size > _ENOUGH:
        return
    with open(path, "rb") as file:
        head = file.read(4096)
        if not any(root in head for root in _ROOTS):
            return
        text = (head + file.read()).decode("utf-8", errors="replace")
    found = _MENTIONS.search(text)
    if found:
        raise InputError(
            f"{path} refers to the network ({text[found.start() : found.start() + 60].split('<')[0]}...): "
            "pass --allow-network if that is meant"
        )
    for attributes, child in _CHILD.findall(text):
        relative = re.search(r'relativeToVRT\s*=\s*"1"', attributes)
        refuse_hidden_network(str(path.parent / child.strip()) if relative else child.strip(), _depth + 1)
