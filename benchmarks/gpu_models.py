"""Windows per second of the networks on a GPU, plain, recorded and compiled, beside timm's and the paper's Table 5.

    python benchmarks/gpu_models.py                                      # some 5 minutes, most of it compiling
    python benchmarks/gpu_models.py --batch 32 --no-compile

bf16 autocast, 256 px, 3 bands, 19 classes; a network with relays takes a window and its context as one. "recorded" is
one CUDA graph, "compiled" a graph of what torch.compile made of it, as in `uhrseg predict --compile`. Utilisation
(MFU): 2 operations per multiply-add of the network's matrix products and convolutions, over the peak that a product of
8192 x 8192 matrices reached in the same run. The paper's "full images" are Cityscapes' 1024 x 2048 px: 32 windows.
Training: forward, both losses, backward and AdamW.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F

from uhrseg import models
from uhrseg.engine.graph import Recorded
from uhrseg.models.sizes import multiply_adds

SIZE, BANDS, CLASSES, WINDOWS_PER_IMAGE = 256, 3, 19, 32


@dataclass(frozen=True)
class Net:
    """A network: how it is made, and the paper's full images per second in test and training (Table 5)."""

    name: str
    make: Callable[[], Any]
    relays: bool = False
    timm: bool = False
    paper: tuple[float, float] | None = None


def ours(trunk: str, strategy: str, **more: Any) -> Callable[[], Any]:
    return lambda: models.build(trunk, bands=BANDS, classes=CLASSES, size=SIZE, strategy=strategy, **more)


NETS = (
    Net("timm ViT-S", lambda: timm.create_model("vit_small_patch16_224", img_size=SIZE), timm=True),
    Net("ViT-S", ours("vit_s", "single"), paper=(31.1, 9.3)),
    Net("ViT-S + relays", ours("vit_s", "relays"), relays=True, paper=(14.5, 4.5)),
    Net("timm SwinV2-S", lambda: timm.create_model("swinv2_small_window8_256"), timm=True),
    Net("SwinV2-S", ours("swinv2_s", "single"), paper=(9.9, 3.1)),
    Net("SwinV2-S + relays", ours("swinv2_s", "relays"), relays=True, paper=(4.7, 1.4)),
    Net("SwinV2-S + relays, parallel", ours("swinv2_s", "relays", order="parallel"), relays=True),
    Net("Flatten-Swin-S + relays", ours("flatten_swin_s", "relays"), relays=True),
    Net("GLAM-S + relays", ours("glam_s", "relays"), relays=True),
)
COMPILED = ("ViT-S + relays", "SwinV2-S + relays")


def seconds(run: Callable[[], Any], least: float = 1.0) -> float:
    """Seconds of a call on the device: the mean of as many as take `least` seconds, after five."""
    for _ in range(5):
        run()
    torch.cuda.synchronize()
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < least:
        for _ in range(5):
            run()
        torch.cuda.synchronize()
        calls += 5
    return (time.perf_counter() - started) / calls


def peak_flops() -> float:
    """Operations per second of a large bf16 matrix product on random numbers."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / seconds(lambda: a @ b)


def giga(net: Net) -> float:
    """Multiply-adds of one window (pair), in billions."""
    with torch.device("meta"):
        model, image = net.make().eval().requires_grad_(False), torch.empty(1, BANDS, SIZE, SIZE)
    call = (lambda: model(image)) if net.timm else (lambda: model(image, image if net.relays else None, False))
    return multiply_adds(call)


def forward_of(net: Net, model: Any) -> Callable[[Any, Any], Any]:
    def forward(local: Any, context: Any) -> Any:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return model(local) if net.timm else model(local, context, False).logits

    return forward


def training_of(net: Net, model: Any, local: Any, context: Any) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    labels = torch.randint(CLASSES, (len(local), SIZE, SIZE), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            out = model(local, context if net.relays else None)
            loss = F.cross_entropy(out.logits, labels)
            if out.context_logits is not None:
                loss = loss + F.cross_entropy(out.context_logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@dataclass
class Table:
    """Prints lines; knows the peak, and timm's seconds by batch, which later lines are compared with."""

    peak: float
    theirs: dict[int, float]

    def head(self) -> None:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {self.peak / 1e12:.0f} TFLOP/s in a product")
        print(f"{'':28}{'mode':>10}{'batch':>6}{'ms':>9}{'windows/s':>11}{'images/s':>10}{'paper':>7}{'MFU %':>7}"
              f"{'/ timm':>8}")  # fmt: skip

    def line(self, net: Net, mode: str, batch: int, took: float, gmac: float) -> None:
        """`gmac`: multiply-adds of one window (pair) in this mode, in billions."""
        rate, test = batch / took, mode != "training"
        paper = "" if net.paper is None else net.paper[0 if test else 1]
        ratio = f"{took / self.theirs[batch]:8.2f}" if test and batch in self.theirs else ""
        print(f"{net.name:28}{mode:>10}{batch:6}{1e3 * took:9.2f}{rate:11.0f}{rate / WINDOWS_PER_IMAGE:10.1f}"
              f"{paper:>7}{100 * 2e9 * gmac * rate / self.peak:7.1f}{ratio}", flush=True)  # fmt: skip


@torch.inference_mode()
def inference(net: Net, model: Any, batch: int, table: Table, compiles: bool) -> None:
    """The lines of one network and batch in eval mode."""
    gmac = giga(net)
    local = torch.randn(batch, BANDS, SIZE, SIZE, device="cuda").contiguous(memory_format=torch.channels_last)
    context = local.flip(0) if net.relays else None
    plain = forward_of(net, model)
    took = seconds(lambda: plain(local, context))
    if net.timm:
        table.theirs[batch] = took
    table.line(net, "plain", batch, took, gmac)
    recorded = Recorded(plain)
    table.line(net, "recorded", batch, seconds(lambda: recorded(local, context)), gmac)
    if compiles and net.name in COMPILED:
        started = time.perf_counter()
        compiled = Recorded(forward_of(net, torch.compile(model, dynamic=False)))
        compiled(local, context)
        torch.cuda.synchronize()
        print(f"{'':28}compiling took {time.perf_counter() - started:.0f} s", flush=True)
        table.line(net, "compiled", batch, seconds(lambda: compiled(local, context)), gmac)
        torch._dynamo.reset()


def training(net: Net, model: Any, batch: int, table: Table) -> None:
    """The line of one network and batch in training: three forward passes' worth of multiply-adds."""
    local = torch.randn(batch, BANDS, SIZE, SIZE, device="cuda")
    table.line(net, "training", batch, seconds(training_of(net, model.train(), local, local.flip(0))), 3 * giga(net))


def main() -> None:
    """Print one line per network, mode and batch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--only", action="append", help="a network's name; repeatable")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-training", action="store_true")
    given = parser.parse_args()
    table = Table(peak_flops(), {})
    table.head()
    for net in NETS:
        if given.only and net.name not in given.only:
            continue
        torch.manual_seed(0)
        model = net.make().cuda().eval()
        for batch in given.batch or (8, 32, 64):
            inference(net, model, batch, table, not given.no_compile)
        if net.paper and not given.no_training:
            for batch in (16, 64):
                training(net, model, batch, table)
        del model
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
