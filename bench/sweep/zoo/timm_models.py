"""One small model of every family of timm: of each of its modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo.case import Call, Case, image

LIBRARY = "timm"
CLASSES = 10
# Pictures of models that take any size.
SIZE = 64
# Which model stands for a module; in a version of timm without it, the one with the shortest name does.
CHOSEN = {
    "beit": "beitv2_base_patch16_224",
    "byoanet": "botnet26t_256",
    "byobnet": "repvgg_a0",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_atto",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "cspnet": "cspresnet50",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deit": "deit_tiny_distilled_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "efficientnet_lite0",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "eva02_tiny_patch14_224",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_a",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "mambaout": "mambaout_femto",
    "maxxvit": "coatnet_pico_rw_224",
    "metaformer": "poolformer_s12",
    "mlp_mixer": "mixer_s32_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "nf_regnet_b0",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m0_9",
    "res2net": "res2net50_26w_4s",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_50",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_relpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41",
    "xcit": "xcit_nano_12_p16_224",
}
# Sizes that make large models small; those of vision transformers, of which none comes small, too.
OPTIONS: dict[str, dict[str, Any]] = {
    "beitv2_base_patch16_224": {"embed_dim": 64, "depth": 2, "num_heads": 4},
    "samvit_base_patch16_224": {"embed_dim": 64, "depth": 2, "num_heads": 4, "global_attn_indexes": [1]},
    "gemma4_vit_167m": {"depth": 2, "img_size": 64},
    "deepseek_vit_412m": {"depth": 2, "img_size": 56},
    "qwen3_vit_88m": {"depth": 2, "img_size": 64},
    "vit_relpos_small_patch16_224": {"embed_dim": 64, "depth": 2, "num_heads": 4},
    "nasnetalarge": {"num_features": 1056, "stem_size": 32},
}
# Pictures of several sizes in one batch; a model that has no small variant, of blocks that others have.
LEFT_OUT = {"naflexvit", "mobilenetv5"}


def model(name: str) -> Callable[[], Call]:
    def make() -> Call:
        import timm

        options = OPTIONS.get(name, {})
        made = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)
        config = made.pretrained_cfg
        channels, own, _ = config.get("input_size", (3, 224, 224))
        is_fixed = config.get("fixed_input_size") or "patch" in name or own > 224
        least = max(SIZE, config.get("min_input_size", (3, SIZE, SIZE))[1])
        side = options.get("img_size") or (own if is_fixed else least)
        return Call(made, (image(side, batch=1, channels=channels),))

    return make


def cases() -> list[Case]:
    """Nothing where timm is not installed."""
    try:
        import timm
    except ImportError:
        return []
    found = []
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names and module not in LEFT_OUT:
            name = CHOSEN.get(module)
            name = name if name in names else min(names, key=lambda one: (len(one), one))
            found.append(Case(LIBRARY, module, name, model(name)))
    return found
