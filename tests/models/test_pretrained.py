"""Pretrained trunks: every key accounted for, adaptations that keep the function, and refusals.

The files are made here by timm itself (random weights): no network is needed.
"""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from uhrseg.errors import InputError, RunError
from uhrseg.models import build
from uhrseg.models.relay import one_scale

SWIN = {"trunk": "swinv2_t", "size": 64, "embed_dim": 8, "depths": (2, 2), "heads": (1, 2), "window": 4}
VIT = {"trunk": "vit_s", "size": 64, "embed_dim": 24, "depth": 2, "heads": 3}


def random(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def swin(size: int = 64, bands: int = 3) -> SwinTransformerV2:
    return random(SwinTransformerV2(size, 4, bands, 10, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4))


def vit(size: int = 64, **options) -> VisionTransformer:
    return random(VisionTransformer(size, 16, 3, 10, embed_dim=24, depth=2, num_heads=3, **options))


def stored(model: nn.Module | dict[str, Tensor], path: Path) -> str:
    state = model.state_dict() if isinstance(model, nn.Module) else model
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return str(path)


def test_blocks_per_scale_both_start_from_the_file(tmp_path: Path) -> None:
    source = stored(vit(class_token=False, global_pool="avg"), tmp_path / "w.safetensors")
    trunk = build(**VIT, bands=3, classes=2, share_blocks=False, pretrained=source).trunk
    assert all(
        torch.equal(a, b)
        for a, b in zip(trunk.body.blocks.parameters(), trunk.context_blocks.parameters(), strict=True)
    )


def test_flatten_swin_takes_maps_of_another_size(tmp_path: Path) -> None:
    """From the names and sizes of Han et al.'s code: merging ends a stage there, one norm ends the trunk."""
    options = {"trunk": "flatten_swin_t", "embed_dim": 8, "depths": (1, 1), "heads": (1, 2), "window": 4}
    small = build(**options, bands=3, classes=2, size=32, strategy="single").trunk
    state = small.state_dict()
    names = {key: re.sub(r"^layers\.1\.downsample", "layers.0.downsample", key) for key in state}
    theirs = {re.sub(r"^norms\.1", "norm", names[key]): tensor for key, tensor in state.items()}
    path = stored(theirs, tmp_path / "w.safetensors")
    model = build(**options, bands=3, classes=2, size=64, pretrained=path)
    report, place = model.pretrained, "layers.0.blocks.0.attn.positional_encoding"
    assert report.unused == ()
    assert set(report.adapted) == {place}
    assert set(report.missing) == {"relays", "layers.1.relay_projection.weight", "layers.1.relay_projection.bias"}
    resized = model.trunk.get_parameter(place).view(16, 16, 8)
    assert resized[:8, :8].mean().item() == pytest.approx(state[place].view(8, 8, 8)[:4, :4].mean().item(), abs=2e-3)


@pytest.mark.parametrize("window", [7, 5])
def test_glam_takes_swins_weights(tmp_path: Path, window: int) -> None:
    """Another window resizes the bias tables; tokens, exchange, relays and the lower norms are new."""
    source = random(SwinTransformer(56, 4, 3, 10, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=window))
    options = {"trunk": "glam_t", "size": 64, "embed_dim": 8, "depths": (2, 2), "heads": (1, 2), "head": "upernet"}
    path = stored(source, tmp_path / "w.safetensors")
    model = build(**options, bands=4, classes=2, pretrained=path)
    report = model.pretrained
    tables = {f"layers.{i}.blocks.{k}.attn.relative_position_bias_table" for i in (0, 1) for k in (0, 1)}
    assert set(report.adapted) == {"patch_embed.proj.weight"} | (tables if window == 5 else set())
    assert set(report.unused) == {"head.fc.weight", "head.fc.bias"}
    assert {"norms.1.weight", "layers.1.downsample.norm.weight"} <= set(report.loaded)
    assert {re.sub(r"\d", "*", key) for key in report.missing} == {
        "relays", "layers.*.relay_projection.weight", "layers.*.global_token", "layers.*.position.gain",
        "layers.*.position.slot", "layers.*.blocks.*.gt_attn.qkv.weight", "layers.*.blocks.*.gt_attn.qkv.bias",
        "layers.*.blocks.*.gt_attn.proj.weight", "layers.*.blocks.*.gt_attn.proj.bias", "norms.*.weight",
        "norms.*.bias",
    }  # fmt: skip
    fewer = build(**{**options, "depths": (1, 1)}, bands=3, classes=2, pretrained=path).pretrained
    assert "layers.0.blocks.1.attn.relative_position_bias_table" in fewer.unused


def test_swin_loads_by_its_own_names(tmp_path: Path) -> None:
    source = swin()
    model = build(**SWIN, bands=3, classes=2, pretrained=stored(source, tmp_path / "w.safetensors")).eval()
    report = model.pretrained
    assert set(report.loaded) == {key for key in source.state_dict() if not key.startswith("head.")}
    assert report.adapted == {}
    assert set(report.unused) == {"head.fc.weight", "head.fc.bias"}
    assert set(report.missing) == {"relays", "layers.1.relay_projection.weight", "layers.1.relay_projection.bias"}
    assert "2 of the file unused" in str(report)
    single = build(**SWIN, bands=3, classes=2, strategy="single", pretrained=str(tmp_path / "w.safetensors")).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours = single.trunk.norm(one_scale(single.trunk, image)[-1])
        torch.testing.assert_close(ours, source.forward_features(image), atol=1e-5, rtol=1e-4)


def test_the_context_projector_starts_as_a_copy_of_the_loaded_one(tmp_path: Path) -> None:
    path = stored(swin(), tmp_path / "w.safetensors")
    trunk = build(**SWIN, bands=3, classes=2, share_projector=False, pretrained=path).trunk
    for own, copied in zip(trunk.patch_embed.parameters(), trunk.context_embed.parameters(), strict=True):
        assert torch.equal(own, copied)
    path = stored(vit(class_token=False, global_pool=""), tmp_path / "v.safetensors")
    trunk = build(**VIT, bands=3, classes=2, share_projector=False, pretrained=path).trunk
    assert torch.equal(trunk.context_pos_embed, trunk.body.pos_embed)
    assert torch.equal(trunk.context_embed.proj.weight, trunk.body.patch_embed.proj.weight)


def test_swin_weights_of_another_window_and_size(tmp_path: Path) -> None:
    """The position bias is a function of relative coordinates: no tensor depends on the window."""
    path = stored(swin(size=128), tmp_path / "w.safetensors")
    assert build(**{**SWIN, "window": 8}, bands=3, classes=2, pretrained=path).pretrained.adapted == {}


@pytest.mark.parametrize("bands", [1, 2, 4, 13])
def test_other_bands_keep_the_response(tmp_path: Path, bands: int) -> None:
    """An image whose bands are all equal answers as the RGB filters do to that grey image."""
    source = swin()
    model = build(**SWIN, bands=bands, classes=2, pretrained=stored(source, tmp_path / "w.safetensors"))
    assert model.pretrained.adapted == {"patch_embed.proj.weight": f"3 bands to {bands}"}
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        ours = model.trunk.patch_embed.proj(grey.expand(-1, bands, -1, -1))
        theirs = source.patch_embed.proj(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_vit_position_table_is_resampled_as_timm_does(tmp_path: Path) -> None:
    source = vit(size=96, class_token=False, global_pool="")
    model = build(**VIT, bands=3, classes=2, pretrained=stored(source, tmp_path / "w.safetensors"))
    source.set_input_size(64)
    assert torch.equal(model.trunk.body.pos_embed, source.pos_embed)
    assert model.pretrained.adapted == {"body.pos_embed": "resampled (1, 36, 24) to (1, 16, 24)"}


def test_class_token_rows_are_cut_off(tmp_path: Path) -> None:
    source = vit()
    model = build(**VIT, bands=3, classes=2, pretrained=stored(source, tmp_path / "w.safetensors"))
    assert torch.equal(model.trunk.body.pos_embed, source.pos_embed[:, 1:])
    assert {"cls_token", "norm.weight", "norm.bias"} <= set(model.pretrained.unused)


def test_layer_scale_is_multiplied_in_exactly(tmp_path: Path) -> None:
    """DeiT-III's gammas: the same function without them, under timm's names and the authors'."""
    source = vit(class_token=False, global_pool="", init_values=0.1, final_norm=False)
    state = source.state_dict()
    authors = {k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for k, v in state.items()}
    image = torch.randn(1, 3, 64, 64)
    for number, tensors in enumerate((state, authors)):
        path = stored(tensors, tmp_path / f"{number}.safetensors")
        model = build(**VIT, bands=3, classes=2, strategy="single", pretrained=path).eval()
        assert "blocks.1.ls2.gamma" not in str(model.pretrained.unused)
        assert model.pretrained.adapted["body.blocks.0.attn.proj.bias"] == "LayerScale multiplied in"
        with torch.no_grad():
            ours, theirs = one_scale(model.trunk, image)[-1], source.forward_features(image)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_timm_vit_with_pooled_norm(tmp_path: Path) -> None:
    """A classifier that pools first calls its final norm fc_norm."""
    source = random(timm.create_model("vit_tiny_patch16_224", global_pool="avg", img_size=64))
    path = stored(source, tmp_path / "w.safetensors")
    model = build("timm:vit_tiny_patch16_224", bands=3, classes=2, size=64, pretrained=path)
    assert model.pretrained.adapted == {"body.norm.weight": "from fc_norm", "body.norm.bias": "from fc_norm"}
    assert torch.equal(model.trunk.body.norm.weight, source.fc_norm.weight)


def test_torch_files_and_wrappers(tmp_path: Path) -> None:
    state = swin().state_dict()
    torch.save({"model": state, "epoch": 3}, tmp_path / "w.pth")
    assert build(**SWIN, bands=3, classes=2, pretrained=str(tmp_path / "w.pth")).pretrained.loaded


def test_a_trunk_that_did_not_load_is_an_error(tmp_path: Path) -> None:
    renamed = {"backbone." + key: tensor for key, tensor in swin().state_dict().items()}
    for name, tensors in (("prefix", renamed), ("other", vit().state_dict())):
        path = stored(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(RunError, match=f"{name}.safetensors do not fit this trunk: .* tensors found no value"):
            build(**SWIN, bands=3, classes=2, pretrained=path)
    path = stored(swin(), tmp_path / "shallow.safetensors")
    with pytest.raises(RunError, match="layers.1.blocks.2"):
        build(**{**SWIN, "depths": (2, 3)}, bands=3, classes=2, pretrained=path)


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pth", "text.pth", "text.safetensors"])
def test_unreadable_files_are_refused(tmp_path: Path, name: str) -> None:
    if name.startswith("text"):
        (tmp_path / name).write_text("hello")
    with pytest.raises(InputError, match=f"{name}' is not a readable file of weights"):
        build(**SWIN, bands=3, classes=2, pretrained=str(tmp_path / name))


def test_pickles_that_run_code_are_refused(tmp_path: Path) -> None:
    torch.save({"model": swin()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="not a readable file of weights"):
        build(**SWIN, bands=3, classes=2, pretrained=str(tmp_path / "w.pth"))


def test_offline_one_sentence_names_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(RunError, match=r"swinv2_tiny_window8_256.ms_in1k' could not be fetched .* local file of them$"):
        build("swinv2_t", bands=3, classes=2, pretrained=True)
