"""A checkpoint gives its tensors and nothing else happens."""

from __future__ import annotations

import builtins
import functools
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from uhrseg.errors import InputError
from uhrseg.models.foreign import read_tensors


class Run:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


STATE = {
    "net.a": torch.arange(12.0).view(3, 4).t(),  # not contiguous
    "net.b": torch.tensor(3, dtype=torch.int64),
    "net.c": torch.ones(2, dtype=torch.bfloat16)[1:],
    "net.d": torch.nn.Parameter(torch.randn(2, 2)),
    "net.e": torch.empty(0, 5),
}


def test_tensors_of_every_kind_come_back(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "epoch": 3, "partial": functools.partial(torch.optim.AdamW, lr=1)}, tmp_path / "x")
    read = read_tensors(tmp_path / "x")
    assert list(read) == list(STATE)
    assert all(torch.equal(read[key], STATE[key]) and read[key].dtype == STATE[key].dtype for key in STATE)


@pytest.mark.parametrize("place", ["top", "hyper_parameters", "state_dict"])
@pytest.mark.parametrize("attack", ["system", "eval", "nested", "getattr"])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, place: str, attack: str) -> None:
    proof = tmp_path / "proof"
    shell, code = f"touch {proof}", f"open({str(proof)!r}, 'w')"
    evil = {
        "system": Run(os.system, shell),
        "eval": Run(builtins.eval, code),
        "nested": [Run(map, Run(builtins.getattr, Run(__import__, "os"), "system"), [shell]), Run(os.system, shell)],
        "getattr": Run(builtins.getattr, Run(__import__, "os"), "system"),
    }[attack]
    content: Any = {"state_dict": dict(STATE), "hyper_parameters": {}}
    if place == "top":
        content["evil"] = evil
    else:
        content[place]["evil"] = evil
    torch.save(content, tmp_path / "x.ckpt")
    read = read_tensors(tmp_path / "x.ckpt")
    assert not proof.exists()
    assert "evil" not in read and torch.equal(read["net.a"], STATE["net.a"])


def test_the_attack_is_real(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    torch.save({"state_dict": {}, "evil": Run(os.system, f"touch {proof}")}, tmp_path / "x")
    torch.load(tmp_path / "x", weights_only=False)
    assert proof.exists()


def test_a_tensor_that_reaches_beyond_its_bytes_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(100)}}, tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x") as source, zipfile.ZipFile(tmp_path / "y", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[:8] if "/data/" in name else content)
    with pytest.raises(InputError, match="beyond its bytes"):
        read_tensors(tmp_path / "y")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x80\x02}q\x00."])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        read_tensors(tmp_path / "x.ckpt")


def test_compressed_records_and_files_without_tensors_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}q\x00.")
    with pytest.raises(InputError, match="compressed"):
        read_tensors(tmp_path / "x")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "y")
    with pytest.raises(InputError, match="no state dict"):
        read_tensors(tmp_path / "y")
