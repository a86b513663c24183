"""What every trunk promises, whatever it is made of: small networks with random weights, both scales."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.models.test_baselines import BASELINES
from uhrseg.models import MODELS, build
from uhrseg.models.relay import one_scale

SIZE = 48
SWIN = {"embed_dim": 8, "heads": (1, 2), "window": 5}
TRUNKS = {
    "vit": {"trunk": "vit_s", "embed_dim": 24, "depth": 2, "heads": 3},
    "vit blocks apart": {"trunk": "vit_s", "embed_dim": 24, "depth": 2, "heads": 3, "share_blocks": False},
    "swinv2": {"trunk": "swinv2_t", **SWIN, "depths": (2, 2), "window": 4},
    "swin": {"trunk": "swin_t", **SWIN, "depths": (2, 2)},
    "glam": {"trunk": "glam_t", **SWIN, "depths": (2, 3), "global_tokens": 3},
    "glam faithful": {"trunk": "glam_t", **SWIN, "depths": (2, 3), "global_tokens": 3, "faithful": True},
    "flatten": {"trunk": "flatten_swin_t", **SWIN, "depths": (2, 2), "window": 4},
    "flatten faithful": {"trunk": "flatten_swin_t", **SWIN, "depths": (2, 2), "window": 4, "faithful": True},
    "timm": {"trunk": "timm:vit_tiny_patch16_224", "depth": 2},
}
GLAM = {**SWIN, "trunk": "glam_t", "depths": (2, 2), "global_tokens": 2}
HEADED = {
    "glam upernet": {**GLAM, "head": "upernet", "head_channels": 8},
    "glam upernet_relay": {**GLAM, "head": "upernet_relay", "head_channels": 8},
    "glam upernet_mmseg": {**GLAM, "head": "upernet_mmseg", "head_channels": 8},
    "swin unet": {**GLAM, "trunk": "swin_t", "head": "unet", "global_tokens": 0},
    "glam unet": {**GLAM, "head": "unet"},
    "glam unet_nlu": {**GLAM, "head": "unet_nlu"},
    "glam unet_nlu faithful": {**GLAM, "head": "unet_nlu", "faithful": True},
    "flatten upernet": {**TRUNKS["flatten"], "head": "upernet", "head_channels": 8},
}
NETWORKS = {**TRUNKS, **HEADED}
EVERY = pytest.mark.parametrize("name", NETWORKS)
EVERY_TRUNK = pytest.mark.parametrize("name", TRUNKS)


def make(name: str, bands: int = 3, **more) -> nn.Module:
    """Weights that make every path matter: trunks begin as little more than the identity."""
    torch.manual_seed(0)
    options = {**NETWORKS[name], **more}
    if options.get("strategy") in ("single", "registers"):
        options.pop("share_blocks", None)  # there is one scale
    model = build(bands=bands, classes=4, size=SIZE, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.3 if parameter.ndim == 1 else 0.0, 0.3)
    return model.eval()


def images(bands: int = 3, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, bands, SIZE, SIZE)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_every_entry_of_the_registry_is_a_size_of_a_network_held_to_these_promises() -> None:
    """Here or, without relays, in `test_baselines` and `test_threshold`."""
    names = {str(options["trunk"]) for options in TRUNKS.values()} | {name.split()[0] for name in BASELINES}
    held = {MODELS[name].trunk for name in names & MODELS.keys() | {"threshold"}}
    assert [name for name, entry in MODELS.items() if entry.trunk not in held] == []


@EVERY
@pytest.mark.parametrize("bands", [1, 4, 13])
def test_shape_and_determinism(name: str, bands: int) -> None:
    model, (local, context) = make(name, bands), images(bands)
    with torch.no_grad():
        first, second = (model(local, context, with_context_logits=True) for _ in range(2))
    assert first.logits.shape == first.context_logits.shape == (2, 4, SIZE, SIZE)
    assert torch.equal(first.logits, second.logits)
    assert torch.isfinite(first.logits).all()


@pytest.mark.parametrize("name", ["swinv2"])
@pytest.mark.parametrize("relays", [1, 3])
def test_few_relays_do_not_depend_on_the_batch(name: str, relays: int) -> None:
    model, (local, context) = make(name, relays=relays), images(batch=5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            whole = model(local, context).logits
            assert torch.equal(model(local[:1], context[:1]).logits, whole[:1])
            assert torch.equal(model(local[1:3], context[1:3]).logits, whole[1:3])
    finally:
        torch.set_num_threads(threads)


@EVERY
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
def test_logits_do_not_depend_on_the_batch(name: str, precision: str) -> None:
    model, (local, context) = make(name), images(batch=5)
    if precision == "bfloat16":
        model, local, context = model.to(torch.bfloat16), local.to(torch.bfloat16), context.to(torch.bfloat16)
    # On several threads the library deals out the rows of a product by their number, which changes last bits (2e-6 in
    # fp32); predictions do not depend on it, since every call has the same batch size.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            whole = model(local, context).logits
            for part in (slice(0, 1), slice(1, 5), slice(4, 5)):
                assert torch.equal(model(local[part], context[part]).logits, whole[part])
    finally:
        torch.set_num_threads(threads)
    if precision == "float32":
        with torch.inference_mode():
            torch.testing.assert_close(model(local[:1], context[:1]).logits, whole[:1], atol=1e-4, rtol=1e-4)


@EVERY
@pytest.mark.parametrize("strategy", ["relays", "registers", "single"])
def test_gradient_reaches_every_parameter(name: str, strategy: str) -> None:
    model, (local, context) = make(name, strategy=strategy).train(), images()
    for module in model.modules():
        if type(module).__name__ == "DropPath":
            module.eval()
    output = model(local, context if strategy == "relays" else None)
    loss = output.logits.square().mean()
    (loss if output.context_logits is None else loss + output.context_logits.square().mean()).backward()
    normed = [key for key, m in model.named_modules() if isinstance(m, nn.Sequential) and type(m[1]) is nn.BatchNorm2d]
    inert = {f"{key}.0.bias" for key in normed}  # BatchNorm takes a bias away: its gradient is rounding, or zero
    silent = {key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent - inert == set()


@EVERY_TRUNK
def test_relays_off_is_the_plain_trunk_bit_for_bit(name: str) -> None:
    """The trunk with its relays taken out gives the tokens of a trunk built without any."""
    model, single, (local, _) = make(name), make(name, strategy="single"), images()
    silent = copy.deepcopy(model.trunk)
    silent.first_relays = lambda batch: None
    single.trunk.load_state_dict(
        {k: v for k, v in model.trunk.state_dict().items() if "relay" not in k and "context" not in k}
    )
    with torch.no_grad():
        ours = silent.maps(one_scale(silent, local), False)
        plain = single.trunk.maps(one_scale(single.trunk, local), False)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@EVERY_TRUNK
@pytest.mark.parametrize("order", ["sequential", "parallel"])
def test_far_pixels_reach_the_local_logits_through_relays_only(name: str, order: str) -> None:
    model, (local, context) = make(name, order=order).double(), images()
    local, context = local.double(), context.double()
    other = context.clone()
    other[:, :, -8:, -8:] += torch.randn(2, 3, 8, 8).double()  # the far corner of the context
    blocks = [
        block
        for stage in model.trunk.stages
        for block in (*stage.blocks, *(getattr(stage, "context_blocks", None) or ()))
    ]
    with torch.no_grad():
        near, far = (model(local, x, with_context_logits=True) for x in (context, other))
        assert not torch.equal(near.logits, far.logits)
        for block in blocks:
            _cut(block)
        near, far = (model(local, x, with_context_logits=True) for x in (context, other))
    assert torch.equal(near.logits, far.logits)
    assert not torch.equal(near.context_logits, far.context_logits)


def _cut(block: object) -> None:
    """Hand relays on as they came in."""
    module = block if isinstance(block, nn.Module) else block.block
    if module is block:
        module.register_forward_hook(lambda _, args, out: (out[0], args[1]))
    else:  # a timm block over [relays, tokens]
        module.register_forward_hook(lambda _, args, out: torch.cat((args[0][:, :4], out[:, 4:]), 1))


@EVERY_TRUNK
@pytest.mark.parametrize("order", ["sequential", "parallel"])
def test_skipping_what_nothing_reads_changes_nothing(name: str, order: str) -> None:
    model, (local, context) = make(name, order=order), images()
    with torch.no_grad():
        full = model(local, context, with_context_logits=True).logits
        torch.testing.assert_close(model(local, context).logits, full, atol=2e-5, rtol=1e-4)
