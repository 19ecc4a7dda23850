"""Models of transformers that look at images and films."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.case import Call, Case, image, numbers, whole
from zoo.small_config import small

LIBRARY = "transformers"
SIZE = 32
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_PYRAMID = {**STAGES, "num_attention_heads": [1, 2, 2, 4], "mlp_ratios": [2, 2, 2, 2]}
_WINDOWS = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "patch_size": 2}

# Name of the model's class, of its configuration, what is not as `small` makes it, and the side of images.
IMAGES: list[tuple[str, str, dict[str, Any], int]] = [
    ("Aimv2VisionModel", "Aimv2VisionConfig", {}, 32),
    ("BeitForImageClassification", "BeitConfig", {"use_relative_position_bias": True}, 32),
    (
        "BitForImageClassification",
        "BitConfig",
        {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "num_groups": 8},
        64,
    ),
    ("ConvNextForImageClassification", "ConvNextConfig", {**STAGES, "patch_size": 4}, 64),
    ("ConvNextV2ForImageClassification", "ConvNextV2Config", {**STAGES, "patch_size": 4}, 64),
    (
        "CvtForImageClassification",
        "CvtConfig",
        {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
        64,
    ),
    ("Data2VecVisionModel", "Data2VecVisionConfig", {}, 32),
    ("DeiTForImageClassificationWithTeacher", "DeiTConfig", {}, 32),
    ("Dinov2ForImageClassification", "Dinov2Config", {}, 32),
    ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {}, 32),
    ("DINOv3ConvNextModel", "DINOv3ConvNextConfig", STAGES, 64),
    ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 2}, 32),
    ("DonutSwinModel", "DonutSwinConfig", _WINDOWS, 32),
    (
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640, "image_size": 64},
        64,
    ),
    (
        "FocalNetForImageClassification",
        "FocalNetConfig",
        {
            "embed_dim": 16,
            "depths": [1, 1],
            "focal_levels": [1, 2],
            "focal_windows": [3, 3],
            "hidden_sizes": [16, 32],
            "patch_size": 2,
        },
        32,
    ),
    ("GLPNForDepthEstimation", "GLPNConfig", {**_PYRAMID, "decoder_hidden_size": 16}, 64),
    (
        "HGNetV2ForImageClassification",
        "HGNetV2Config",
        {
            "stem_channels": [3, 8, 16],
            "stage_in_channels": [16, 16, 32, 48],
            "stage_mid_channels": [8, 8, 16, 16],
            "stage_out_channels": [16, 32, 48, 64],
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_numb_of_layers": [2, 2, 2, 2],
        },
        64,
    ),
    (
        "HieraForImageClassification",
        "HieraConfig",
        {
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 4],
            "image_size": [64, 64],
        },
        64,
    ),
    ("IJepaForImageClassification", "IJepaConfig", {}, 32),
    (
        "LevitForImageClassification",
        "LevitConfig",
        {
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "patch_size": 16,
            "image_size": 64,
        },
        64,
    ),
    ("MobileNetV1ForImageClassification", "MobileNetV1Config", {"depth_multiplier": 0.25}, 64),
    ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.25}, 64),
    (
        "MobileViTForImageClassification",
        "MobileViTConfig",
        {
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 48],
            "patch_size": 2,
            "image_size": 64,
        },
        64,
    ),
    (
        "MobileViTV2ForImageClassification",
        "MobileViTV2Config",
        {
            "width_multiplier": 0.25,
            "n_attn_blocks": [1, 1, 1],
            "patch_size": 2,
            "image_size": 64,
        },
        64,
    ),
    ("PoolFormerForImageClassification", "PoolFormerConfig", STAGES, 64),
    ("PvtForImageClassification", "PvtConfig", {**_PYRAMID, "image_size": 64, "num_labels": 10}, 64),
    ("PvtV2ForImageClassification", "PvtV2Config", {**_PYRAMID, "image_size": 64}, 64),
    (
        "RegNetForImageClassification",
        "RegNetConfig",
        {
            "embedding_size": 8,
            "hidden_sizes": [16, 24, 32, 48],
            "depths": [1, 1, 1, 1],
            "groups_width": 8,
        },
        64,
    ),
    (
        "ResNetForImageClassification",
        "ResNetConfig",
        {
            "embedding_size": 8,
            "hidden_sizes": [16, 24, 32, 48],
            "depths": [1, 1, 1, 1],
        },
        64,
    ),
    ("SegformerForSemanticSegmentation", "SegformerConfig", {**_PYRAMID, "decoder_hidden_size": 16}, 64),
    (
        "SwiftFormerForImageClassification",
        "SwiftFormerConfig",
        {
            "depths": [1, 1, 1, 1],
            "embed_dims": [16, 24, 32, 48],
        },
        64,
    ),
    ("SwinForImageClassification", "SwinConfig", _WINDOWS, 32),
    ("Swinv2ForImageClassification", "Swinv2Config", {**_WINDOWS, "pretrained_window_sizes": [0, 0]}, 32),
    (
        "Swin2SRForImageSuperResolution",
        "Swin2SRConfig",
        {**_WINDOWS, "num_heads": [2, 2], "patch_size": 1, "image_size": 16},
        16,
    ),
    (
        "TextNetForImageClassification",
        "TextNetConfig",
        {
            "stem_out_channels": 16,
            "hidden_sizes": [16, 16, 24, 32, 48],
            "image_size": [64, 64],
            "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3], [1, 3]], [[3, 3], [3, 1]], [[3, 3]]],
            "conv_layer_strides": [[2], [2, 1], [2, 1], [2]],
        },
        64,
    ),
    ("ViTForImageClassification", "ViTConfig", {}, 32),
    ("ViTMSNModel", "ViTMSNConfig", {}, 32),
    (
        "VitDetModel",
        "VitDetConfig",
        {
            "pretrain_image_size": 32,
            "use_relative_position_embeddings": True,
            "window_block_indices": [0],
            "window_size": 2,
        },
        32,
    ),
]


def pictures(model: str, config: str, fixed: dict[str, Any], size: int) -> Case:
    def make() -> Call:
        import transformers

        made = getattr(transformers, model)(small(config, **fixed))
        return Call(made, kwargs={"pixel_values": image(size)})

    return Case(LIBRARY, "vision", model.removesuffix("ForImageClassification"), make)


# -------------------------------------------------------------------------------- detection, segmentation


def residual(*stages: int) -> Any:
    features = [f"stage{stage}" for stage in stages]
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    return small("ResNetConfig", **sizes, layer_type="basic", out_features=features)


def windows() -> Any:
    return small(
        "SwinConfig",
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        patch_size=2,
        image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def detr(model: str, config: str, *stages: int, **fixed: Any) -> Case:
    def make() -> Call:
        import transformers

        made = small(config, backbone_config=residual(*stages), **fixed)
        return Call(getattr(transformers, model)(made), kwargs={"pixel_values": image(64)})

    return Case(LIBRARY, "vision", model.removesuffix("ForObjectDetection"), make)


def real_time(model: str, config: str) -> Case:
    def make() -> Call:
        import transformers

        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
        features = ["stage2", "stage3", "stage4"]
        if config == "DFineConfig":
            backbone = small(
                "HGNetV2Config",
                stem_channels=[3, 8, 16],
                stage_in_channels=[16, 8, 16, 24],
                stage_mid_channels=[8, 8, 8, 8],
                stage_out_channels=[8, 16, 24, 32],
                hidden_sizes=[8, 16, 24, 32],
                depths=[1, 1, 1, 1],
                stage_num_blocks=[1, 1, 1, 1],
                stage_numb_of_layers=[2, 2, 2, 2],
                out_features=features,
            )
        else:
            backbone = small("RTDetrResNetConfig", **sizes, layer_type="basic", out_features=features)
        made = small(
            config,
            backbone_config=backbone,
            encoder_in_channels=[16, 24, 32],
            encoder_hidden_dim=32,
            decoder_in_channels=[32, 32, 32],
            num_queries=10,
            num_denoising=0,
        )
        return Call(getattr(transformers, model)(made), kwargs={"pixel_values": image(64, batch=1)})

    return Case(LIBRARY, "vision", model.removesuffix("ForObjectDetection"), make)


def mask_former() -> Call:
    from transformers import MaskFormerConfig, MaskFormerForInstanceSegmentation

    config = MaskFormerConfig(
        backbone_config=windows(),
        decoder_config=small("DetrConfig", backbone_config=residual(4)),
        fpn_feature_size=32,
        mask_feature_size=32,
    )
    return Call(MaskFormerForInstanceSegmentation(config), kwargs={"pixel_values": image(64, batch=1)})


def mask_2_former() -> Call:
    from transformers import Mask2FormerForUniversalSegmentation

    config = small(
        "Mask2FormerConfig",
        backbone_config=windows(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        decoder_layers=3,
    )
    return Call(Mask2FormerForUniversalSegmentation(config), kwargs={"pixel_values": image(64, batch=1)})


def upernet() -> Call:
    from transformers import UperNetForSemanticSegmentation

    backbone = small(
        "ConvNextConfig", **STAGES, patch_size=4, out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = small("UperNetConfig", backbone_config=backbone, auxiliary_in_channels=24, auxiliary_channels=16)
    return Call(UperNetForSemanticSegmentation(config), kwargs={"pixel_values": image(64)})


def yolos() -> Call:
    from transformers import YolosForObjectDetection

    config = small("YolosConfig", image_size=[32, 48], num_detection_tokens=5)
    return Call(YolosForObjectDetection(config), kwargs={"pixel_values": numbers(2, 3, 32, 48)})


def sam() -> Call:
    from transformers import SamConfig, SamModel

    config = SamConfig(
        vision_config=small(
            "SamVisionConfig",
            image_size=64,
            patch_size=16,
            window_size=2,
            output_channels=16,
            num_pos_feats=8,
            global_attn_indexes=[1],
            mlp_dim=48,
        ).to_dict(),
        prompt_encoder_config=small(
            "SamPromptEncoderConfig", hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4
        ).to_dict(),
        mask_decoder_config=small(
            "SamMaskDecoderConfig", hidden_size=16, num_attention_heads=2, iou_head_hidden_dim=16
        ).to_dict(),
    )
    points = torch.tensor([[[[20.0, 30.0]]]])
    kwargs = {"input_points": points, "input_labels": torch.ones(1, 1, 1, dtype=torch.int64)}
    return Call(SamModel(config), kwargs={"pixel_values": image(64, batch=1), **kwargs})


# ---------------------------------------------------------------------------------------- depth, the rest

_ALL_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_NECK = {"neck_hidden_sizes": [8, 16, 24, 32], "fusion_hidden_size": 16}


def dpt() -> Call:
    from transformers import DPTForDepthEstimation

    config = small(
        "DPTConfig", **_NECK, num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], backbone_config=None
    )
    return Call(DPTForDepthEstimation(config), kwargs={"pixel_values": image(SIZE)})


def depth_anything() -> Call:
    from transformers import DepthAnythingForDepthEstimation

    backbone = small(
        "Dinov2Config", num_hidden_layers=4, out_features=_ALL_STAGES, reshape_hidden_states=False
    )
    config = small(
        "DepthAnythingConfig",
        **_NECK,
        backbone_config=backbone,
        reassemble_hidden_size=32,
        head_hidden_size=8,
        patch_size=8,
    )
    return Call(DepthAnythingForDepthEstimation(config), kwargs={"pixel_values": image(SIZE)})


def vit_matte() -> Call:
    from transformers import VitMatteForImageMatting

    backbone = small(
        "VitDetConfig",
        num_channels=4,
        image_size=64,
        pretrain_image_size=64,
        patch_size=16,
        out_features=["stage2"],
    )
    config = small(
        "VitMatteConfig",
        backbone_config=backbone,
        convstream_hidden_sizes=[8, 16, 24],
        fusion_hidden_sizes=[16, 8, 8, 8],
    )
    return Call(VitMatteForImageMatting(config), kwargs={"pixel_values": image(64, channels=4)})


def vit_pose() -> Call:
    from transformers import VitPoseForPoseEstimation

    backbone = small(
        "VitPoseBackboneConfig",
        image_size=[32, 24],
        patch_size=[8, 8],
        num_hidden_layers=2,
        out_features=["stage2"],
    )
    config = small("VitPoseConfig", backbone_config=backbone, num_labels=5, scale_factor=4)
    return Call(VitPoseForPoseEstimation(config), kwargs={"pixel_values": numbers(2, 3, 32, 24)})


def vit_mae() -> Call:
    from transformers import ViTMAEForPreTraining

    config = small("ViTMAEConfig", decoder_num_hidden_layers=2, decoder_intermediate_size=48)
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(3))
    return Call(ViTMAEForPreTraining(config), kwargs={"pixel_values": image(SIZE), "noise": noise})


def image_gpt() -> Call:
    from transformers import ImageGPTModel

    config = small("ImageGPTConfig", vocab_size=17, use_cache=False)
    return Call(ImageGPTModel(config), kwargs={"input_ids": whole(2, 12, below=16)})


def film(model: str, config: str, **fixed: Any) -> Case:
    def frames() -> Tensor:
        return numbers(1, 4, 3, SIZE, SIZE)

    def make() -> Call:
        import transformers

        made = small(config, num_frames=4, **fixed)
        return Call(getattr(transformers, model)(made), kwargs={"pixel_values": frames()})

    return Case(LIBRARY, "vision", model, make)


_SINGLE: dict[str, Callable[[], Call]] = {
    "DepthAnything": depth_anything,
    "DPT": dpt,
    "ImageGPT": image_gpt,
    "Mask2Former": mask_2_former,
    "MaskFormer": mask_former,
    "SAM": sam,
    "UperNet": upernet,
    "ViTMAE": vit_mae,
    "VitMatte": vit_matte,
    "VitPose": vit_pose,
    "YOLOS": yolos,
}


def cases() -> list[Case]:
    return [
        *(pictures(*entry) for entry in IMAGES),
        detr("ConditionalDetrForObjectDetection", "ConditionalDetrConfig", 4),
        detr("DabDetrForObjectDetection", "DabDetrConfig", 4),
        detr("DeformableDetrForObjectDetection", "DeformableDetrConfig", 2, 3, 4, num_feature_levels=3),
        detr("DetrForObjectDetection", "DetrConfig", 4),
        detr("TableTransformerForObjectDetection", "TableTransformerConfig", 4),
        real_time("DFineForObjectDetection", "DFineConfig"),
        real_time("RTDetrForObjectDetection", "RTDetrConfig"),
        real_time("RTDetrV2ForObjectDetection", "RTDetrV2Config"),
        *(Case(LIBRARY, "vision", name, make) for name, make in _SINGLE.items()),
        film("TimesformerModel", "TimesformerConfig"),
        film("VideoMAEModel", "VideoMAEConfig"),
        film("VivitModel", "VivitConfig", tubelet_size=[2, 8, 8]),
    ]
