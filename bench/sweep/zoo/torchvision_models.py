"""Every family of torchvision: classification, segmentation, detection, films, optical flow.

What is large in a family and the same elsewhere (the last layers of VGG and AlexNet) is made small.
Detectors choose boxes by their values, which no program does: they are swept without that last step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from zoo.case import Call, Case, image, numbers

LIBRARY = "torchvision"
CLASSES = 10


def named(name: str, size: int = 64, **options: Any) -> Callable[[], Call]:
    """A model as its own function makes it."""

    def make() -> Call:
        from torchvision import models

        return Call(models.get_model(name, weights=None, num_classes=CLASSES, **options), (image(size),))

    return make


def with_small_head(name: str, size: int) -> Callable[[], Call]:
    def make() -> Call:
        model = named(name, size)().module
        first = next(part for part in model.classifier if isinstance(part, nn.Linear))
        model.classifier = nn.Sequential(
            nn.Linear(first.in_features, 32), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(32, CLASSES)
        )
        return Call(model, (image(size),))

    return make


def convnext() -> Call:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    blocks = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, 48, 1), CNBlockConfig(48, None, 1)]
    return Call(ConvNeXt(blocks, num_classes=CLASSES), (image(64),))


def densenet() -> Call:
    from torchvision.models.densenet import DenseNet

    model = DenseNet(growth_rate=8, block_config=(2, 2, 2), num_init_features=16, num_classes=CLASSES)
    return Call(model, (image(64),))


def maxvit() -> Call:
    from torchvision.models.maxvit import MaxVit

    model = MaxVit(
        input_size=(64, 64),
        stem_channels=16,
        partition_size=4,
        block_channels=[16, 32],
        block_layers=[1, 1],
        head_dim=8,
        stochastic_depth_prob=0.0,
        num_classes=CLASSES,
    )
    return Call(model, (image(64),))


def resnet(block: str, **options: Any) -> Callable[[], Call]:
    def make() -> Call:
        from torchvision.models import resnet

        model = resnet.ResNet(getattr(resnet, block), [1, 1, 1, 1], num_classes=CLASSES, **options)
        return Call(model, (image(64),))

    return make


def swin(second: bool) -> Callable[[], Call]:
    def make() -> Call:
        from torchvision.models import swin_transformer as swin

        sizes = {"patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
        newer = (
            {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2} if second else {}
        )
        model = swin.SwinTransformer(**sizes, window_size=[4, 4], num_classes=CLASSES, **newer)
        return Call(model, (image(48),))

    return make


def vit() -> Call:
    from torchvision.models import VisionTransformer

    sizes = {
        "image_size": 32,
        "patch_size": 8,
        "num_layers": 2,
        "num_heads": 4,
        "hidden_dim": 32,
        "mlp_dim": 48,
    }
    return Call(VisionTransformer(**sizes, num_classes=CLASSES), (image(32),))


# ----------------------------------------------------------------------------- segmentation, detection


def segmentation(name: str) -> Callable[[], Call]:
    def make() -> Call:
        from torchvision.models import segmentation

        model = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=CLASSES)
        return Call(model, (image(64),))

    return make


class OneStage(nn.Module):
    """A detector up to what it says of each anchor."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.detector.head(list(self.detector.backbone(images).values()))


class TwoStages(nn.Module):
    """A detector up to what it says of each anchor, and its heads for boxes that are given. They see the
    finest features: which ones a detector looks at depends on the sizes of the boxes.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, boxes: Tensor) -> dict[str, Any]:
        features = self.detector.backbone(images)
        found: dict[str, Any] = {"anchors": self.detector.rpn.head(list(features.values()))}
        heads, finest = self.detector.roi_heads, features["0"]

        def pooled(pool: nn.Module) -> Tensor:
            scale = finest.shape[-1] / images.shape[-1]
            return roi_align(finest, [boxes], pool.output_size, scale, pool.sampling_ratio)

        found["boxes"] = heads.box_predictor(heads.box_head(pooled(heads.box_roi_pool)))
        for kind in ("mask", "keypoint"):
            pool = getattr(heads, f"{kind}_roi_pool", None)
            if pool is not None:
                inside = getattr(heads, f"{kind}_head")(pooled(pool))
                found[kind] = getattr(heads, f"{kind}_predictor")(inside)
        return found


def one_stage(name: str, size: int) -> Callable[[], Call]:
    def make() -> Call:
        from torchvision.models import detection

        options = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
        return Call(OneStage(getattr(detection, name)(**options)), (image(size, batch=1),))

    return make


def two_stages(name: str, **options: Any) -> Callable[[], Call]:
    def make() -> Call:
        from torchvision.models import detection

        made = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=2, **options)
        boxes = torch.tensor([[3.0, 5.0, 40.0, 50.0], [0.0, 0.0, 63.0, 63.0], [20.5, 8.25, 31.0, 60.0]])
        return Call(TwoStages(made), (image(64, batch=1), boxes))

    return make


# ------------------------------------------------------------------------------------ films, optical flow


def film(frames: int, size: int) -> Tensor:
    return numbers(1, 3, frames, size, size)


def r3d() -> Call:
    from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DSimple, VideoResNet

    model = VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], BasicStem, num_classes=CLASSES)
    return Call(model, (film(4, 32),))


def r2plus1d() -> Call:
    from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem, VideoResNet

    model = VideoResNet(BasicBlock, [Conv2Plus1D] * 4, [1, 1, 1, 1], R2Plus1dStem, num_classes=CLASSES)
    return Call(model, (film(4, 32),))


def s3d() -> Call:
    from torchvision.models.video import s3d

    model = s3d(weights=None, num_classes=CLASSES)
    model.avgpool = nn.AvgPool3d((2, 1, 1), stride=1)
    return Call(model, (film(16, 32),))


def mvit() -> Call:
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    def block(heads: int, inward: int, outward: int, stride: int) -> MSBlockConfig:
        kernel, step = [3, 3, 3], [1, stride, stride]
        return MSBlockConfig(heads, inward, outward, kernel, kernel, step, [1, 2, 2])

    model = MViT(
        spatial_size=(32, 32),
        temporal_size=4,
        block_setting=[block(1, 16, 32, 1), block(2, 32, 32, 2)],
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=CLASSES,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    return Call(model, (film(4, 32),))


def swin_3d() -> Call:
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    sizes = {"patch_size": [2, 4, 4], "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
    model = SwinTransformer3d(**sizes, window_size=[2, 4, 4], num_classes=CLASSES)
    return Call(model, (film(4, 32),))


class Flow(nn.Module):
    """RAFT with two rounds."""

    def __init__(self, raft: nn.Module) -> None:
        super().__init__()
        self.raft = raft

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        return self.raft(first, second, num_flow_updates=2)


def raft() -> Call:
    from torchvision.models.optical_flow import raft_small

    return Call(Flow(raft_small(weights=None)), (numbers(1, 3, 128, 128), numbers(1, 3, 128, 128, seed=1)))


CLASSIFICATION: dict[str, Callable[[], Call]] = {
    "AlexNet": with_small_head("alexnet", 64),
    "ConvNeXt": convnext,
    "DenseNet": densenet,
    "EfficientNet": named("efficientnet_b0"),
    "EfficientNetV2": named("efficientnet_v2_s"),
    "GoogLeNet": named("googlenet", aux_logits=False, init_weights=False),
    "Inception v3": named("inception_v3", 96, aux_logits=False, init_weights=False),
    "MaxViT": maxvit,
    "MNASNet": named("mnasnet0_5"),
    "MobileNetV2": named("mobilenet_v2"),
    "MobileNetV3": named("mobilenet_v3_small"),
    "RegNetX": named("regnet_x_400mf"),
    "RegNetY": named("regnet_y_400mf"),
    "ResNet": resnet("BasicBlock"),
    "ResNeXt": resnet("Bottleneck", groups=8, width_per_group=4),
    "ShuffleNetV2": named("shufflenet_v2_x0_5"),
    "SqueezeNet": named("squeezenet1_1"),
    "Swin": swin(second=False),
    "Swin v2": swin(second=True),
    "VGG": with_small_head("vgg11_bn", 32),
    "ViT": vit,
    "Wide ResNet": resnet("Bottleneck", width_per_group=128),
}
OTHERS: dict[str, dict[str, Callable[[], Call]]] = {
    "segmentation": {
        "DeepLabV3": segmentation("deeplabv3_mobilenet_v3_large"),
        "FCN": segmentation("fcn_resnet50"),
        "LR-ASPP": segmentation("lraspp_mobilenet_v3_large"),
    },
    "detection": {
        "Faster R-CNN": two_stages("fasterrcnn_mobilenet_v3_large_fpn"),
        "FCOS": one_stage("fcos_resnet50_fpn", 64),
        "Keypoint R-CNN": two_stages("keypointrcnn_resnet50_fpn", num_keypoints=5),
        "Mask R-CNN": two_stages("maskrcnn_resnet50_fpn"),
        "RetinaNet": one_stage("retinanet_resnet50_fpn", 64),
        "SSD": one_stage("ssd300_vgg16", 300),
        "SSDlite": one_stage("ssdlite320_mobilenet_v3_large", 160),
    },
    "films": {"MViT": mvit, "R(2+1)D": r2plus1d, "R3D": r3d, "S3D": s3d, "Swin 3D": swin_3d},
    "optical flow": {"RAFT": raft},
}


def cases() -> list[Case]:
    kinds = {"classification": CLASSIFICATION, **OTHERS}
    return [
        Case(LIBRARY, kind, name, make) for kind, models in kinds.items() for name, make in models.items()
    ]
