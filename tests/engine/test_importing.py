"""Checkpoints of the relay paper's code become model folders that give its outputs."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.golden import Case, _trunk, find, read
from uhrseg.card import ModelCard
from uhrseg.engine.fit import load_model, verify_model
from uhrseg.engine.importing import import_checkpoint
from uhrseg.errors import InputError
from uhrseg.geo.bands import centred

ARCHS = {
    "vit": "vit_s", "rt_vit": "rt_vit_s", "rt_vit_shared_embed": "rt_vit_s", "rt_vit_sequential": "rt_vit_s",
    "swin2": "swin2_s", "rt_swin2": "rt_swin2_s", "rt_swin2_shared_embed": "rt_swin2_s",
    "rt_flatten_swin": "rt_flatten_swin_s", "flatten_swin": "flatten_swin_s", "glam": "glam_s", "rt_glam": "rt_glam_s",
    "rt_glam_linhead": "rt_glam_s_lin", "rt_vit_unshared_blocks": "rt_vit_s",
    "decision_fusion_swin2": "decision_fusion_swin2_s",
}  # fmt: skip


def checkpoint(path: Path, state: dict[str, Tensor]) -> Path:
    """A file as Lightning writes it: the network's tensors among objects that no other program can load."""
    content = {
        "epoch": 49, "global_step": 1000, "pytorch-lightning_version": "2.2.0", "loops": {"fit_loop": {"state": {}}},
        "state_dict": {f"net.{key}": tensor for key, tensor in state.items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]}],
        "hyper_parameters": {"optimizer": functools.partial(torch.optim.AdamW, lr=1e-3), "where": Path("logs")},
    }  # fmt: skip
    torch.save(content, path)
    return path


def settings(case: Case) -> dict[str, Any]:
    options = _trunk(case.config)[1]
    options.pop("head", None)
    return {k: v for k, v in options.items() if v is not None} | {"image_size": case.local.shape[-1]}


def imported(case: Case, folder: Path, arch: str, **more: Any) -> Path:
    names = ",".join(f"class{i}" for i in range(case.config["num_classes"]))
    source = checkpoint(folder / "epoch_049.ckpt", case.state)
    return import_checkpoint(source, arch, names, folder / "model", settings=settings(case), **more).folder


@pytest.mark.parametrize("name", ARCHS)
def test_a_checkpoint_gives_the_authors_outputs(name: str, tmp_path: Path) -> None:
    case = read(find("relay", name))
    order = {"order": "sequential"} if name.endswith("sequential") else {}
    module, card = load_model(imported(case, tmp_path, ARCHS[name], **order))
    assert card.window.context == "decimate" and (card.window.context_factor == 4) == (case.context is not None)
    with torch.no_grad():
        output = module(case.local, case.context)
    wanted = case.tensors.get("output.local", case.tensors.get("output.out"))
    torch.testing.assert_close(output.logits, wanted, atol=1e-4, rtol=0)


def test_decision_fusion_is_one_network_for_both_scales_or_refused(tmp_path: Path) -> None:
    case = read(find("relay", "decision_fusion_swin2"))
    with pytest.raises(InputError, match=r"one network twice \(decision fusion\), which is not swin2_s"):
        imported(case, tmp_path, "swin2_s")
    with pytest.raises(InputError, match="a single network, which is not decision_fusion_swin2_s"):
        imported(read(find("relay", "swin2")), tmp_path, "decision_fusion_swin2_s")
    key = "net_low_res.model.norm.bias"
    apart = Case(case.config, {**case.state, key: case.state[key] + 1}, case.tensors)
    with pytest.raises(InputError, match="another network for each scale"):
        imported(apart, tmp_path, "decision_fusion_swin2_s")
    assert not (tmp_path / "model").exists()


def test_the_older_names_are_read_too(tmp_path: Path) -> None:
    case = read(find("relay", "rt_vit"))
    older = {re.sub(r"(norm1|norm2|attn|mlp)\.0\.", r"\1.", key): tensor for key, tensor in case.state.items()}
    assert older.keys() != case.state.keys()
    changed = Case(case.config, older, case.tensors)
    with torch.no_grad():
        output = load_model(imported(changed, tmp_path, "rt_vit_s"))[0](case.local, case.context)
    torch.testing.assert_close(output.logits, case.tensors["output.local"], atol=1e-4, rtol=0)


def test_another_network_unknown_keys_and_other_class_counts_are_refused(tmp_path: Path) -> None:
    case = read(find("relay", "rt_swin2"))
    for arch in ("rt_vit_s", "vit_s", "rt_flatten_swin_s", "swin2_s"):
        with pytest.raises(InputError):
            imported(case, tmp_path, arch)
    stranger = Case(case.config, {**case.state, "model.adapter.weight": torch.ones(2)}, case.tensors)
    with pytest.raises(InputError, match=r"nobody knows \(model.adapter.weight\)"):
        imported(stranger, tmp_path, "rt_swin2_s")
    with pytest.raises(InputError, match="names 2 classes"):
        source = checkpoint(tmp_path / "x.ckpt", case.state)
        import_checkpoint(source, "rt_swin2_s", "a,b", tmp_path / "model", settings=settings(case))
    with pytest.raises(InputError, match="unknown architecture"):
        import_checkpoint(source, "swin3", "a,b", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_archaeoscape_sets_the_card(tmp_path: Path) -> None:
    case = read(find("relay", "rt_swin2"))  # 4 bands
    for part, axis in (("weight", 1), ("bias", 0)):  # another head, of four classes
        key = f"seg_head.layers.0.{part}"
        case.state[key] = case.state[key].index_select(axis, torch.tensor([0, 1, 2, 2]))
    source = checkpoint(tmp_path / "epoch_001.ckpt", case.state)
    done = import_checkpoint(source, "rt_swin2_s", "archaeoscape", tmp_path / "m", settings=settings(case))
    card = ModelCard.read(tmp_path / "m")
    assert card.architecture["order"] == "parallel" and card.input.gsd_m == 0.5
    assert [b.kind for b in card.input.band] == ["raw", "raw", "raw", "crop_mean"]
    assert card.legend.names == ["mound", "water", "temple_site", "background"]
    assert "mean and std of red, green, blue" in done.notes[0]
    assert verify_model(tmp_path / "m").name == card.name
    with pytest.raises(InputError, match="exists"):
        import_checkpoint(source, "rt_swin2_s", "archaeoscape", tmp_path / "m", settings=settings(case))


def test_a_window_loses_its_own_mean_and_is_zero_where_nothing_is_known() -> None:
    window = np.arange(18, dtype=np.float32).reshape(2, 3, 3) + 100
    valid = np.ones((3, 3), bool)
    valid[0, 0] = False
    result = centred(window, valid, (1,))
    assert np.array_equal(result[0], window[0]) and result[1, 0, 0] == 0
    assert abs(result[1][valid].mean()) < 1e-5 and window[1, 0, 0] == 109  # the source is as it was
    assert centred(window, valid, ()) is window
