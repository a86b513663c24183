"""Tensors out of a stranger's checkpoint, without running anything that stands in it.

A file of ``torch.save`` is a zip archive: a pickle that describes objects, and the raw bytes of tensors. A pickle can
name any function and have it called; here no name is ever looked up. Four names have a meaning, given by functions of
this module; everything else becomes an inert placeholder.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from uhrseg.errors import InputError

__all__ = ["read_tensors"]

_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_LARGEST_PICKLE = 256 << 20  # bytes; tensors lie beside it, so that of a checkpoint has a few megabytes
_BROKEN = (
    OSError, SafetensorError, zipfile.BadZipFile, pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError,
    ValueError, AttributeError, RecursionError, MemoryError, OverflowError,
)  # fmt: skip


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint of PyTorch or Lightning (zip format) or in a safetensors file, on the CPU.

    Of a checkpoint only what lies under 'state_dict' (or 'model', or the top) is read, and of that only tensors.
    Nothing that the file names is imported or called. Raises `InputError` for a file that cannot be read so.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _read_zip(path)
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{path} is not a readable checkpoint ({reason}): give a file that PyTorch 1.6 or later or Lightning saved"
        ) from error
    if not state:
        raise InputError(f"{path} holds no state dict of tensors")
    return state


def _read_zip(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it holds no data.pkl, or several")
        _refuse_bombs(archive, pickles[0], path.stat().st_size)
        prefix = pickles[0].removesuffix("data.pkl")
        if prefix + "byteorder" in archive.namelist() and archive.read(prefix + "byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        content = _TensorUnpickler(io.BytesIO(archive.read(pickles[0]))).load()
        bytes_of: dict[str, bytearray] = {}
        return {
            str(key): _tensor(value, archive, prefix, bytes_of)
            for key, value in _state_of(content).items()
            if isinstance(value, _Described)
        }


def _refuse_bombs(archive: zipfile.ZipFile, pickled: str, size: int) -> None:
    """torch stores each record once and without compression; others could be any number of times the file's size."""
    records = archive.infolist()
    if any(r.compress_type != zipfile.ZIP_STORED for r in records) or sum(r.file_size for r in records) > size:
        raise ValueError("its records are compressed or overlap, which torch.save does not do")
    if archive.getinfo(pickled).file_size > _LARGEST_PICKLE:
        raise ValueError("its data.pkl is larger than that of any checkpoint")


def _state_of(content: object) -> Mapping[Any, Any]:
    for wrapper in ("state_dict", "model"):
        inner = content.get(wrapper) if isinstance(content, dict) else None
        content = inner if isinstance(inner, dict) else content
    return content if isinstance(content, dict) else {}


@dataclass(frozen=True)
class _Storage:
    """Where a tensor's bytes lie in the archive."""

    dtype: torch.dtype
    key: str


@dataclass(frozen=True)
class _Described:
    """A tensor that is read when it is wanted: of a checkpoint, the optimiser's two thirds never are."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Inert:
    """Stands for every class, function and object that the file names: takes anything, does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return object.__new__(cls)

    def __call__(self, *_: object, **__: object) -> _Inert:
        return self

    def __setstate__(self, _: object) -> None:
        return None

    def __setitem__(self, _: object, __: object) -> None:
        return None

    def append(self, _: object) -> None:
        """What pickle asks of a list."""

    def extend(self, _: object) -> None:
        """What pickle asks of a list."""

    def add(self, _: object) -> None:
        """What pickle asks of a set."""


class _TensorUnpickler(pickle.Unpickler):
    """Knows tensors, parameters, ordered dicts and storages; imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for. Never the thing it names."""
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _Call(_describe),
            ("torch._utils", "_rebuild_parameter"): _Call(_parameter),
            ("collections", "OrderedDict"): OrderedDict,
        }
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return known.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> _Storage | _Inert:
        """('storage', type, key, device, length) as torch writes it."""
        if isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], torch.dtype):
            return _Storage(pid[1], str(pid[2]))
        return _Inert()


class _Call:
    """A function that a pickle may call but not alter."""

    __slots__ = ("_function",)
    _function: Any

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"it alters {name} of a function")


def _describe(storage: object, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> object:
    return _Described(storage, offset, tuple(size), tuple(stride)) if isinstance(storage, _Storage) else _Inert()


def _parameter(data: object, *_: object) -> object:
    return data


def _tensor(what: _Described, archive: zipfile.ZipFile, prefix: str, bytes_of: dict[str, bytearray]) -> Tensor:
    """Read one tensor; raises `ValueError` where it reaches outside its bytes."""
    key, dtype = what.storage.key, what.storage.dtype
    if key not in bytes_of:
        bytes_of[key] = bytearray(archive.read(f"{prefix}data/{key}"))
    held = len(bytes_of[key]) // dtype.itemsize
    numbers = (what.offset, *what.size, *what.stride)
    if any(type(n) is not int or n < 0 for n in numbers) or len(what.size) != len(what.stride):
        raise ValueError("a tensor has no sound shape")
    last = what.offset + sum((n - 1) * step for n, step in zip(what.size, what.stride, strict=True))
    count = 1
    for n in what.size:
        count *= n  # Python's integers: torch's own would overflow
    if count > held or (count and last >= held):
        raise ValueError("a tensor reaches beyond its bytes")
    if count == 0:
        return torch.empty(what.size, dtype=dtype)
    return torch.frombuffer(bytes_of[key], dtype=dtype).as_strided(what.size, what.stride, what.offset).clone()
