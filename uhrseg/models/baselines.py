"""Networks of libraries that the papers compare with, as trunks without relays (paper, Table 1).

A trunk here computes all its feature maps at once, so it has one stage with one block; relays cannot enter it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import timm
from timm.models.gcvit import window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F

from uhrseg.errors import InputError
from uhrseg.models.heads import ChannelNorm
from uhrseg.models.relay import Scale, Want

__all__ = ["LibraryTrunk", "deeplabv3", "gcvit", "pvtv2", "unet"]


class LibraryTrunk(nn.Module):
    """A network `body`: image (B, bands, size, size) -> feature maps (B, C_i, size / s_i, size / s_i), finest first."""

    def __init__(self, body: nn.Module, size: int, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        if size % max(32, *strides):
            raise InputError(f"size = {size} does not fit a trunk that halves it five times: give a multiple of 32")
        self.body, self.size = body, size
        self.channels, self.strides = list(channels), list(strides)

    @property
    def stages(self) -> list[_Whole]:
        """One stage."""
        return [_Whole(self.body)]

    def embed(self, image: Tensor, scale: Scale) -> Tensor:
        """The image: there are no patches to embed."""
        return image

    def first_relays(self, batch: int) -> None:
        """None: relays have no way in."""
        return None

    def maps(self, tokens: list[list[Tensor]], last_only: bool) -> list[Tensor]:
        """The feature maps of the only stage."""
        return tokens[-1]


class _Whole:
    """The whole body as one stage with one block."""

    def __init__(self, body: nn.Module) -> None:
        self.body = body
        self.blocks = [self]

    def merge(self, tokens: Tensor) -> Tensor:
        return tokens

    def project(self, relays: Tensor) -> Tensor:
        return relays

    def __call__(self, tokens: Tensor, relays: None, want: Want = "both") -> tuple[list[Tensor], None]:
        return self.body(tokens), relays


def _refuse_drop_path(name: str, drop_path: float) -> None:
    if drop_path:
        raise InputError(f"trunk {name!r} has no stochastic depth: set drop_path = 0, not {drop_path:g}")


def _refuse_relays(name: str, relays: int, separate_projector: bool) -> None:
    if relays or separate_projector:
        raise InputError(
            f"trunk {name!r} has no tokens for relays, registers or a projector of its own to join: choose strategy = "
            "'single', 'downsampling' or 'decision_fusion' with share_projector = true"
        )


class _Unet(nn.Module):
    """U-Net with a ResNet encoder, up to the features before its last convolution."""

    def __init__(self, bands: int, encoder: str) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp  # slow to import, and rarely needed

        whole = smp.Unet(encoder, encoder_weights=None, in_channels=bands, classes=1)
        self.encoder, self.decoder = whole.encoder, whole.decoder

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.decoder(self.encoder(image))]


def unet(
    bands: int,
    size: int,
    relays: int,
    separate_projector: bool,
    encoder: str = "resnet34",
    drop_path: float = 0.0,
) -> LibraryTrunk:
    """U-Net (Ronneberger et al. 2015) of segmentation-models-pytorch, 16 features per pixel; from scratch."""
    _refuse_relays("unet", relays, separate_projector)
    _refuse_drop_path("unet", drop_path)
    return LibraryTrunk(_Unet(bands, encoder), size, [16], [1])


class _DeepLab(nn.Module):
    """ResNet-50 at stride 8 and atrous spatial pyramid pooling, up to the features before the last convolution."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        from torchvision.models import resnet50
        from torchvision.models.segmentation.deeplabv3 import DeepLabHead

        whole = resnet50(weights=None, replace_stride_with_dilation=(False, True, True))
        if bands != 3:
            whole.conv1 = nn.Conv2d(bands, 64, 7, stride=2, padding=3, bias=False)
        self.stem = nn.Sequential(whole.conv1, whole.bn1, whole.relu, whole.maxpool)
        self.layers = nn.Sequential(whole.layer1, whole.layer2, whole.layer3, whole.layer4)
        self.pool = nn.Sequential(*list(DeepLabHead(2048, 1))[:-1])

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.pool(self.layers(self.stem(image)))]


def deeplabv3(
    bands: int, size: int, relays: int, separate_projector: bool, drop_path: float = 0.0
) -> LibraryTrunk:
    """DeepLabv3 (Chen et al. 2017) of torchvision, 256 features at stride 8; from scratch. Use head = 'bilinear'."""
    _refuse_relays("deeplabv3", relays, separate_projector)
    _refuse_drop_path("deeplabv3", drop_path)
    return LibraryTrunk(_DeepLab(bands), size, [256], [8])


def pvtv2(
    bands: int, size: int, relays: int, separate_projector: bool, variant: str = "b1", drop_path: float = 0.0
) -> LibraryTrunk:
    """PVTv2 (Wang et al. 2022) of timm; the published baselines are 'b1' (S) and 'b3' (B); from scratch."""
    _refuse_relays("pvtv2", relays, separate_projector)
    if variant not in ("b0", "b1", "b2", "b3", "b4", "b5"):
        raise InputError(f"variant = {variant!r} of 'pvtv2': choose b0 to b5")
    body: Any = timm.create_model(
        f"pvt_v2_{variant}", pretrained=False, features_only=True, in_chans=bands, drop_path_rate=drop_path
    )
    return LibraryTrunk(body, size, body.feature_info.channels(), body.feature_info.reduction())


class _GcVit(nn.Module):
    """timm's GC ViT on images of any size: windows keep the side they were made for, maps are filled up to them.

    Inside an attention the map is padded with zeros to whole windows and cut again; the global query, one per stage and
    image, is brought to the window's side by bicubic interpolation. At 224 px both do nothing. Every map gets a
    LayerNorm over its channels: timm normalises the last one only.
    """

    def __init__(self, bands: int, variant: str, drop_path: float) -> None:
        super().__init__()
        make: Callable[..., Any] = timm.create_model
        whole = make(f"gcvit_{variant}", pretrained=False, in_chans=bands, num_classes=0, drop_path_rate=drop_path)
        self.stem, self.layers = whole.stem, whole.stages
        self.layers[-1].norm = nn.Identity()  # ours below does its work
        self.channels = [stage.dim for stage in self.layers]
        self.norms = nn.ModuleList(ChannelNorm(c) for c in self.channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        x, maps = self.stem(image), []
        for stage, norm in zip(self.layers, self.norms, strict=True):
            x = _stage(stage, x)
            maps.append(norm(x))
        return maps


def _stage(stage: Any, x: Tensor) -> Tensor:
    """One stage: (B, C, H, W) -> (B, C', H', W')."""
    x = stage.downsample(x)
    side = stage.blocks[0].window_size
    query = stage.global_block(x)
    if query.shape[-2:] != side:
        query = F.interpolate(query, side, mode="bicubic", align_corners=False)
    query = stage.global_norm(query.permute(0, 2, 3, 1))  # (B, w, w, C')
    x = x.permute(0, 2, 3, 1)  # (B, H', W', C')
    for block in stage.blocks:
        x = x + block.drop_path1(block.ls1(_attend(block, block.norm1(x), query)))
        x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return x.permute(0, 3, 1, 2).contiguous()


def _attend(block: Any, x: Tensor, query: Tensor) -> Tensor:
    (height, width), (rows, cols) = x.shape[1:3], block.window_size
    filled = F.pad(x, (0, 0, 0, -width % cols, 0, -height % rows))
    windows = window_partition(filled, block.window_size).flatten(1, 2)  # (B * windows, w * w, C)
    attended = window_reverse(block.attn(windows, query), block.window_size, filled.shape[1:3])
    return attended[:, :height, :width]


def gcvit(
    bands: int, size: int, relays: int, separate_projector: bool, variant: str = "tiny", drop_path: float = 0.0
) -> LibraryTrunk:
    """GC ViT (Hatamizadeh et al. 2023) of timm at any size that 32 divides; from scratch.

    timm's own weights are of unclear licence (CC BY-NC-SA 4.0 in the file, Apache-2.0 in the settings) and not loaded.
    """
    _refuse_relays("gcvit", relays, separate_projector)
    if variant not in ("xxtiny", "xtiny", "tiny", "small", "base"):
        raise InputError(f"variant = {variant!r} of 'gcvit': choose xxtiny, xtiny, tiny, small or base")
    body = _GcVit(bands, variant, drop_path)
    return LibraryTrunk(body, size, body.channels, [4, 8, 16, 32])
