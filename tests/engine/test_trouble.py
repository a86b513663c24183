"""When a step fails: the message names what is at fault, and nothing is lost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.engine.runs import ENVIRONMENT
from tests.synthetic import recipe_for, write_discs
from uhrseg.data.chips import Chip, Chips
from uhrseg.data.sampling import SampleKey
from uhrseg.engine.checkpoint import CHECKPOINT
from uhrseg.engine.train import train
from uhrseg.engine.trouble import is_out_of_memory
from uhrseg.errors import RunError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_discs(tmp_path / "data")


def test_the_sample_that_makes_a_loss_not_finite_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Chips.__getitem__

    def spoil(self: Chips, key: SampleKey) -> Chip:
        chip = make(self, key)
        if key == (1, 3):
            chip["local"][0, 5, 7] = float("nan")
        return chip

    monkeypatch.setattr(Chips, "__getitem__", spoil)
    recipe = recipe_for(root, "train.checkpoint_every=1")  # three steps of two samples an epoch
    with pytest.raises(RunError, match=r"step 5 .*: sample index 3 of epoch 1 \(scene [ab]_dtm, centre row"):
        train(recipe, tmp_path / "run")
    kept = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    assert kept["step"] == 4 and all(torch.isfinite(w).all() for w in kept["module"].values())


STARVED = """
import resource, sys
from pathlib import Path
from uhrseg.engine import train as loop
from uhrseg.recipe import Recipe
gradients = loop.Step.gradients
def starve(self, passes, step):
    if step == 1:  # from here on, 60 MB more than now and no byte beyond
        used = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + 60_000_000, -1))
    return gradients(self, passes if step else [{k: v[:1] for k, v in p.items()} for p in passes], step)
loop.Step.gradients = starve
loop.train(Recipe.read(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_out_of_memory_says_which_batch_fits_and_keeps_every_step(root: Path, tmp_path: Path) -> None:
    recipe = recipe_for(root, "train.batch_size=64", "train.checkpoint_every=100").write(tmp_path / "recipe.toml")
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(recipe), str(run)], env=ENVIRONMENT, capture_output=True, text=True
    )
    said = done.stderr.strip().splitlines()[-1]
    found = re.search(r"out of memory with train.batch_size = 64; all 1 steps before are saved. (\d+) would fit", said)
    assert found, done.stderr[-3000:]
    assert 1 <= int(found[1]) <= 32
    assert f"--set train.batch_size={found[1]} --set train.accumulate={64 // int(found[1])} --resume" in said
    assert torch.load(run / CHECKPOINT, weights_only=True)["step"] == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
