"""GLAM: parity with the authors' modules, and what the mended parts promise."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from tests.models.golden import find, read
from uhrseg.errors import InputError
from uhrseg.models import build
from uhrseg.models.bias_attention import BiasAttention, partition, reverse, shift_mask
from uhrseg.models.glam import GlamBlock, GlamTrunk, GlobalAttention, glam_stages
from uhrseg.models.glam_position import CoordinatePosition, TablePosition
from uhrseg.models.published_glam import from_glam
from uhrseg.models.published_heads import UperMmsegHead
from uhrseg.models.pyramid import StageTokens
from uhrseg.models.relay import one_scale

TOLERANCE = 1e-5
NET_TOLERANCE = 1e-4


def tensors(name: str) -> dict[str, Tensor]:
    return read(find("glam_fine", name)).tensors


def state(name: str) -> dict[str, Tensor]:
    states = read(find("glam_fine", name)).state
    return {key: tensor for key, tensor in states.items() if "relative_position_index" not in key}


def close(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_window_attention_is_theirs() -> None:
    given, attention = tensors("glam2d_window_attention"), BiasAttention(16, 4, 4)
    attention.load_state_dict(state("glam2d_window_attention"))
    pixels = given["input.x"].view(2, 4, 16, 16)
    with torch.no_grad():
        shared = attention(torch.cat((given["input.gt_shared"].expand(2, 4, -1, -1), pixels), 2), 3, None)
        own = torch.cat((given["input.gt_per_window"].view(2, 4, 3, 16), pixels), 2)
        masked = attention(own, 3, given["input.mask"])
        part = attention(own, 3, given["input.mask"], slice(1, 9))
    close(shared[:, :, 3:].flatten(0, 1), given["output.x_nomask_sharedgt"])
    close(shared[:, :, :3].flatten(0, 1), given["output.gt_nomask_sharedgt"])
    close(masked[:, :, 3:].flatten(0, 1), given["output.x_mask_perwindowgt"])
    close(masked[:, :, :3].flatten(0, 1), given["output.gt_mask_perwindowgt"])
    close(part, masked[:, :, 1:9])


@pytest.mark.parametrize("case", ["even", "odd"])
def test_global_attention_is_theirs(case: str) -> None:
    given, attention = tensors("glam2d_global_attention"), GlobalAttention(16, 4)
    attention.load_state_dict(state("glam2d_global_attention"))
    x = given[f"input.x_{case}"]
    position = TablePosition(16, 1, 0)
    position.table.data = given["input.pe"]
    with torch.no_grad():
        close(attention(x + position(x.shape[1], 1)), given[f"output.y_{case}"])


@pytest.mark.parametrize("shift", [0, 3])
def test_block_is_theirs(shift: int) -> None:
    given = tensors(f"glam2d_block_shift{shift}")
    block = GlamBlock(16, 4, 7, shift > 0, 0.0, exchange=True).eval()
    block.load_state_dict(state(f"glam2d_block_shift{shift}"))
    position = TablePosition(16, 3, 0)
    position.table.data = given["input.pe"]
    x = StageTokens(given["input.x"].view(2, 10, 17, 16), given["input.gt"].expand(2, 6, -1, -1), position(2, 3))
    if shift:
        close(shift_mask(10, 17, 7, 3, torch.device("cpu")), given["input.mask"], 0)
    with torch.no_grad():
        for call in ("", "_second_call"):
            x, _ = block(x, None)
            close(x.pixels.flatten(1, 2), given[f"output.y{call}"])
            close(x.tokens.flatten(0, 1), given[f"output.gt{call}"])


@pytest.mark.parametrize("name", ["glam2d_stage", "glam2d_stage_opti"])
def test_stage_is_theirs_without_its_last_exchange(name: str) -> None:
    given = tensors(name)
    mapped, leftover = from_glam({f"layers.1.{key}": tensor for key, tensor in state(name).items()})
    assert all("blocks.2.gt_attn" in key for key in leftover)
    stages = glam_stages([8, 16, 32], [1, 3, 1], [1, 4, 1], 7, 2, 0.0, "table", False, True, False)
    own = {k.removeprefix("trunk.layers.1."): v for k, v in mapped.items() if ".layers.1." in k}
    assert stages[1].eval().load_state_dict(own, strict=False).missing_keys == list(_leading_in(stages[1]))
    merging = {k.removeprefix("trunk.layers.2.downsample."): v for k, v in mapped.items() if ".layers.2." in k}
    stages[2].downsample.load_state_dict(merging)
    with torch.no_grad():
        x = stages[1].enter(given["input.x"].view(2, 15, 9, 16))
        for block in stages[1].blocks:
            x, _ = block(x, None)
        close(x.pixels.flatten(1, 2), given["output.x_out"])
        close(stages[2].merge(x).pixels.flatten(1, 2), given["output.x_down"])


def _leading_in(stage: nn.Module) -> list[str]:
    return [f"downsample.{key}" for key in stage.downsample.state_dict()]


def backbone() -> tuple[GlamTrunk, dict[str, Tensor]]:
    case = read(find("glam_fine", "glam_swin_backbone"))
    config = case.config
    trunk = GlamTrunk(
        3, 96, 0, False, embed_dim=config["embed_dim"], depths=config["depths"], heads=config["num_heads"],
        global_tokens=config["gt_num"], faithful=True,
    ).eval()  # fmt: skip
    mapped, leftover = from_glam(case.state)
    assert all("blocks.1.gt_attn" in key or "relative_position_index" in key for key in leftover)
    trunk.load_state_dict({key.removeprefix("trunk."): tensor for key, tensor in mapped.items()})
    return trunk, case.tensors


def test_backbone_is_theirs_at_odd_sizes() -> None:
    trunk, given = backbone()
    with torch.no_grad():
        maps = trunk.maps(one_scale(trunk, given["input.image"]), last_only=False)
    for i, ours in enumerate(maps):
        close(ours, given[f"output.feat{i}"], NET_TOLERANCE)


def test_upernet_is_theirs() -> None:
    case = read(find("glam_fine", "uperhead_fcnhead"))
    config = case.config
    strides, width = [4, 8, 16, 32], config["channels"]
    head = UperMmsegHead(config["in_channels"], strides, config["classes"], 3, width, auxiliary=True).eval()
    theirs = {re.sub(r"^decode\.", "decode_head.", k): v for k, v in case.state.items()}
    mapped, leftover = from_glam({re.sub(r"^aux\.", "auxiliary_head.", k): v for k, v in theirs.items()})
    assert leftover == {}
    head.load_state_dict({key.removeprefix("head."): tensor for key, tensor in mapped.items()})
    image = torch.empty(2, 3, *config["image"])
    maps = [case.tensors[f"input.feat{i}"] for i in range(4)]
    with torch.no_grad():
        close(head(maps, image), case.tensors["output.decode_logits_at_image_size"], NET_TOLERANCE)
        close(head.auxiliary(maps[2]), case.tensors["output.aux_logits"], NET_TOLERANCE)


SMALL_UPERNET = {
    "trunk": "glam_t", "bands": 3, "classes": 2, "size": 64, "embed_dim": 8, "depths": (1, 1, 1, 1),
    "heads": (1, 1, 1, 1), "head": "upernet_mmseg", "head_channels": 8, "drop_path": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("strategy", ["single", "relays"])
def test_an_auxiliary_head_trains_and_leaves_use_as_it_was(strategy: str) -> None:
    torch.manual_seed(0)
    without = build(**SMALL_UPERNET, strategy=strategy).eval()
    model = build(**SMALL_UPERNET, strategy=strategy, auxiliary=True).eval()
    added = model.load_state_dict(without.state_dict(), strict=False).missing_keys
    assert added and all(key.startswith("head.auxiliary.") for key in added)
    windows = [torch.randn(2, 3, 64, 64) for _ in range(1 + (strategy == "relays"))]
    with torch.no_grad():
        used = model(*windows)
        assert torch.equal(used.logits, without(*windows).logits) and used.auxiliary_logits is None
    trained = model.train()(*windows)
    assert trained.auxiliary_logits.shape == (2, 2, 4, 4)  # stride 16
    trained.auxiliary_logits.square().sum().backward()
    reached = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {key for key in added if "running" not in key and "num_batches" not in key} <= reached
    assert "trunk.patch_embed.proj.weight" in reached and not any(".classify." in key for key in reached)
    assert list(dict(model.named_parameters()))[-1] == "head.classify.bias"  # what train.prior_bias sets


def test_an_auxiliary_head_is_for_strategies_whose_local_logits_are_trained() -> None:
    with pytest.raises(InputError, match="auxiliary = true with strategy = 'decision_fusion'"):
        build(**SMALL_UPERNET, strategy="decision_fusion", context_factor=4, auxiliary=True)


@pytest.mark.parametrize("shift", [0, 3])
def test_windows_come_back(shift: int) -> None:
    x = torch.randn(2, 10, 17, 4)
    windows = partition(x, 7, shift)
    assert windows.shape == (2, 6, 49, 4)
    assert torch.equal(reverse(windows, 10, 17, 7, shift), x)


def test_without_global_tokens_it_is_timms_swin() -> None:
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "depths": (2, 2, 2, 2)}
    plain = SwinTransformer(224, num_classes=0, num_heads=(1, 2, 4, 8), **sizes).eval()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, 0.2 if parameter.ndim == 1 else 0.0, 0.2)
    model = build("swin_t", bands=3, classes=2, size=224, strategy="single", heads=(1, 2, 4, 8), **sizes).eval()
    model.trunk.load_state_dict({re.sub("^norm", "norms.3", key): v for key, v in plain.state_dict().items()})
    model.trunk.layers[3].blocks[1].shift = 0  # timm does not shift a single window
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        ours = model.trunk.maps(one_scale(model.trunk, image), last_only=True)[0]
        torch.testing.assert_close(ours.permute(0, 2, 3, 1), plain.forward_features(image), atol=2e-5, rtol=1e-4)


def far_influence(depth: int, exchange: bool = True) -> float:
    """How much the first pixels of a stage change when the last ones do."""
    torch.manual_seed(0)
    (stage,) = glam_stages([16], [depth], [4], 7, 3, 0.0, "coordinates", False, False, False)
    for parameter in stage.parameters():
        nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.5)
    stage = stage.double().eval()
    for block in stage.blocks:
        block.gt_attn = block.gt_attn if exchange else None
    x = torch.randn(1, 70, 70, 16).double()
    y = x.clone()
    y[:, -1, -1] += torch.randn(16).double()
    with torch.no_grad():
        a, b = stage.enter(x), stage.enter(y)
        for block in stage.blocks:
            (a, _), (b, _) = block(a, None), block(b, None)
    return float((a.pixels - b.pixels)[:, :7, :7].abs().max())


def test_global_tokens_carry_far_pixels_from_the_second_block_on() -> None:
    assert far_influence(1) == 0.0
    assert far_influence(2) > 1e-9
    assert far_influence(2, exchange=False) == 0.0


def test_positions_do_not_depend_on_the_size_of_the_image() -> None:
    position = CoordinatePosition(16, 3, 0)
    nn.init.normal_(position.gain)
    small = position(4, 5).view(4, 5, 3, 16)
    large = position(40, 7).view(40, 7, 3, 16)
    torch.testing.assert_close(large[:4, :5], small, atol=0, rtol=0)
    assert len(large.flatten(0, 2).unique(dim=0)) == 40 * 7 * 3
    assert sum(p.numel() for p in position.parameters()) == 16 + 3 * 16


def test_published_positions_depend_on_it_and_end() -> None:
    position = TablePosition(16, 1, 0)
    assert position.table.shape == (45**2, 16)
    assert not torch.equal(position(4, 4)[0], position(5, 5)[0])
    with pytest.raises(InputError, match="table' holds 2025 positions, 74 x 74 windows of 1 tokens need 5476"):
        position(74, 74)


PROBE = """
import resource, torch
from uhrseg.models.glam import glam_stages
(stage,) = glam_stages([8], [2], [1], 7, 10, 0.0, "coordinates", False, False, False)
x = stage.eval().enter(torch.randn(1, {side}, {side}, 8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.no_grad():
    x = stage.blocks[0](x, None)[0]
print(x.tokens.shape[1] * x.tokens.shape[2], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_linear_in_the_tiles_at_2048_px() -> None:
    """One stage on a map of 512 x 512 patches, all of 2048 px: 54 760 global tokens; N x N floats would be 12 GB."""
    probe = subprocess.run([sys.executable, "-c", PROBE.format(side=512)], capture_output=True, text=True, check=True)
    tokens, kilobytes = map(int, probe.stdout.split())
    assert tokens == 54_760
    assert kilobytes * 1024 < 5000 * tokens, "bytes per token"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 250}, "size = 250 .* multiple of 32"),
        ({"heads": (3, 6)}, "heads has 2 numbers and depths 4"),
        ({"heads": (5, 6, 12, 24)}, r"heads\[0\] = 5 does not divide the 96 channels"),
        ({"embed_dim": 6}, "embed_dim = 6: the coordinates"),
        ({"position": "tabel"}, "position = 'tabel': known: coordinates, table"),
        ({"global_tokens": -1}, "global_tokens = -1"),
        ({"head": "upernet_relay", "depths": (1,), "heads": (1,)}, "several stages"),
    ],
)
def test_mistakes_are_named(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words), torch.device("meta"):
        build(**{"trunk": "glam_t", "bands": 3, "classes": 2, **options})


def test_published_heads_refuse_to_train_on_one_sample() -> None:
    model = build(
        "glam_t", bands=3, classes=2, size=32, embed_dim=8, depths=(1, 1), heads=(1, 1), strategy="single",
        head="upernet_mmseg", head_channels=4,
    )  # fmt: skip
    with pytest.raises(InputError, match="batch_size >= 2"):
        model(torch.randn(1, 3, 32, 32))
