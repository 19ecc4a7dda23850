"""Models of transformers with text and pictures, or text and sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.case import Call, Case, image, numbers, whole
from zoo.small_config import VOCABULARY, small
from zoo.transformers_text import LENGTH, boxes, padding_mask, tokens

LIBRARY = "transformers"
SIZE = 32
PLACE = VOCABULARY - 1
"""The token in the place of a picture."""


def both() -> dict[str, Tensor]:
    """Sentences and pictures. Sentences end with the token of the largest number, which CLIP looks for."""
    ids = tokens()
    ids[:, -4] = VOCABULARY - 1
    return {"input_ids": ids, "attention_mask": padding_mask(), "pixel_values": image(SIZE)}


def pair(prefix: str, **fixed: Any) -> Callable[[], Any]:
    """A configuration of two parts, ``text_config`` and ``vision_config``."""

    def make() -> Any:
        import transformers

        text = small(f"{prefix}TextConfig", **fixed.get("text", {}))
        vision = small(f"{prefix}VisionConfig", **fixed.get("vision", {}))
        rest = {name: value for name, value in fixed.items() if name not in ("text", "vision")}
        parts = {"text_config": text.to_dict(), "vision_config": vision.to_dict()}
        return getattr(transformers, f"{prefix}Config")(**parts, **rest)

    return make


def llama(**fixed: Any) -> Any:
    return small("LlamaConfig", use_cache=False, **fixed)


def clip_vision(**fixed: Any) -> Any:
    return small("CLIPVisionConfig", **fixed)


def with_places(count: int, batch: int = 1) -> Tensor:
    """A sentence with the places of one picture in it."""
    ids = whole(batch, count + 6, below=80, least=3)
    ids[:, 2 : 2 + count] = PLACE
    return ids


def model(name: str, config: Callable[[], Any], call: Callable[[], Mapping[str, Any]]) -> Case:
    def make() -> Call:
        import transformers

        return Call(getattr(transformers, name)(config()), kwargs=call())

    return Case(LIBRARY, "multimodal", name.removesuffix("ForConditionalGeneration"), make)


# ------------------------------------------------------------------------------- two towers, one space

_EOS = {"eos_token_id": PLACE}
TWO_TOWERS: list[tuple[str, Callable[[], Any]]] = [
    ("AltCLIPModel", pair("AltCLIP", text={"project_dim": 16}, projection_dim=16)),
    ("BlipModel", pair("Blip", text={"is_decoder": False}, projection_dim=16)),
    ("ChineseCLIPModel", pair("ChineseCLIP", projection_dim=16)),
    ("CLIPModel", pair("CLIP", text=_EOS, projection_dim=16)),
    ("MetaClip2Model", pair("MetaClip2", text=_EOS, projection_dim=16)),
    ("SiglipModel", pair("Siglip")),
    ("Aimv2Model", pair("Aimv2", text=_EOS, projection_dim=16)),
    (
        "AlignModel",
        pair(
            "Align",
            vision={
                "width_coefficient": 0.5,
                "depth_coefficient": 0.5,
                "hidden_dim": 640,
                "image_size": SIZE,
            },
            text={"hidden_size": 32},
            projection_dim=160,
        ),
    ),
    (
        "GroupViTModel",
        pair(
            "GroupViT",
            text=_EOS,
            vision={
                "depths": [1, 1],
                "num_group_tokens": [4, 2],
                "num_output_groups": [4, 2],
                "patch_size": 8,
                "num_hidden_layers": 2,
            },
            projection_dim=16,
            projection_intermediate_dim=32,
        ),
    ),
]


def clip_seg() -> Any:
    return pair(
        "CLIPSeg",
        text=_EOS,
        vision={"num_hidden_layers": 3},
        projection_dim=16,
        extract_layers=[1, 2],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )()


def owl(prefix: str) -> Callable[[], Any]:
    return pair(prefix, text={"max_position_embeddings": LENGTH, **_EOS}, projection_dim=16)


def owl_call() -> dict[str, Tensor]:
    return both() | {"pixel_values": image(SIZE, batch=1)}


def clap() -> Any:
    from transformers import ClapConfig

    audio = small(
        "ClapAudioConfig",
        spec_size=64,
        num_mel_bins=16,
        depths=[1, 1],
        num_attention_heads=[2, 4],
        hidden_size=32,
        window_size=4,
        patch_embeds_hidden_size=16,
        patch_size=4,
        num_hidden_layers=2,
    )
    return ClapConfig(
        text_config=small("ClapTextConfig").to_dict(), audio_config=audio.to_dict(), projection_dim=16
    )


def two_encoders() -> Any:
    from transformers import VisionTextDualEncoderConfig

    return VisionTextDualEncoderConfig(
        vision_config=small("ViTConfig").to_dict(),
        text_config=small("BertConfig").to_dict(),
        projection_dim=16,
    )


# -------------------------------------------------------------------------------- one encoder for both


def flava() -> Any:
    from transformers import FlavaConfig

    return FlavaConfig(
        image_config=small("FlavaImageConfig").to_dict(),
        text_config=small("FlavaTextConfig").to_dict(),
        multimodal_config=small("FlavaMultimodalConfig").to_dict(),
        image_codebook_config=small("FlavaImageCodebookConfig", num_blocks_per_group=1).to_dict(),
        hidden_size=32,
        projection_dim=16,
        init_codebook=False,
    )


def bridge_tower() -> Any:
    from transformers import BridgeTowerConfig

    return BridgeTowerConfig(
        text_config=small("BridgeTowerTextConfig").to_dict(),
        vision_config=small("BridgeTowerVisionConfig", hidden_size=64).to_dict(),
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=2,
    )


def regions() -> dict[str, Tensor]:
    return {
        "input_ids": tokens(),
        "attention_mask": padding_mask(),
        "visual_feats": numbers(2, 4, 16),
        "visual_pos": torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1)),
    }


def lxmert() -> Any:
    return small("LxmertConfig", l_layers=1, x_layers=1, r_layers=1, visual_feat_dim=16)


def visual_bert_call() -> dict[str, Tensor]:
    return (
        {"input_ids": tokens(), "attention_mask": padding_mask(), "visual_embeds": numbers(2, 4, 32)}
        | {
            "visual_attention_mask": torch.ones(2, 4, dtype=torch.int64),
            "visual_token_type_ids": torch.ones(2, 4, dtype=torch.int64),
        }
        | {"token_type_ids": torch.zeros(2, LENGTH, dtype=torch.int64)}
    )


def perceiver_call() -> dict[str, Tensor]:
    return {"inputs": whole(2, 16), "attention_mask": padding_mask(2, 16)}


def perceiver() -> Any:
    return small(
        "PerceiverConfig",
        num_latents=8,
        d_latents=32,
        num_self_attends_per_block=2,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
        max_position_embeddings=16,
    )


# --------------------------------------------------------------------- pictures in front of a decoder


def llava(prefix: str, **fixed: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        parts = {"vision_config": clip_vision(), "text_config": llama(), "image_token_index": PLACE}
        return getattr(transformers, f"{prefix}Config")(**parts, **fixed)

    return make


def llava_call() -> dict[str, Tensor]:
    return {"input_ids": with_places(16), "pixel_values": image(SIZE, batch=1)}


def pali_gemma() -> Any:
    from transformers import PaliGemmaConfig

    return PaliGemmaConfig(
        vision_config=small("SiglipVisionConfig", projection_dim=32, vision_use_head=False),
        text_config=small("GemmaConfig", use_cache=False),
        image_token_index=PLACE,
        vocab_size=VOCABULARY,
        projection_dim=32,
        hidden_size=32,
    )


def pali_gemma_call() -> dict[str, Tensor]:
    call = llava_call()
    return call | {"attention_mask": torch.ones_like(call["input_ids"])}


def gemma_3() -> Any:
    from transformers import Gemma3Config

    return Gemma3Config(
        vision_config=small("SiglipVisionConfig", vision_use_head=False),
        text_config=small("Gemma3TextConfig", use_cache=False),
        mm_tokens_per_image=4,
        image_token_index=PLACE,
        boi_token_index=96,
        eoi_token_index=97,
    )


def gemma_3_call() -> dict[str, Tensor]:
    ids = with_places(4)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": image(SIZE, batch=1),
        "token_type_ids": (ids == PLACE).long(),
    }


def intern_vl() -> Any:
    from transformers import InternVLConfig

    return InternVLConfig(
        vision_config=small("InternVLVisionConfig", image_size=[32, 32], patch_size=[8, 8]),
        text_config=small("Qwen2Config", use_cache=False),
        image_token_id=PLACE,
        image_seq_length=4,
    )


def blip_2() -> Any:
    from transformers import Blip2Config

    return Blip2Config(
        vision_config=small("Blip2VisionConfig").to_dict(),
        qformer_config=small("Blip2QFormerConfig").to_dict(),
        text_config=small("OPTConfig", word_embed_proj_dim=32, use_cache=False).to_dict(),
        num_query_tokens=4,
        image_token_index=PLACE,
    )


def instruct_blip() -> Any:
    from transformers import InstructBlipConfig

    return InstructBlipConfig(
        vision_config=small("InstructBlipVisionConfig").to_dict(),
        qformer_config=small("InstructBlipQFormerConfig").to_dict(),
        text_config=small("OPTConfig", word_embed_proj_dim=32, use_cache=False).to_dict(),
        num_query_tokens=4,
        image_token_index=PLACE,
    )


def question_call() -> dict[str, Tensor]:
    ids = with_places(4)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": image(SIZE, batch=1),
        "qformer_input_ids": tokens(1, 5),
        "qformer_attention_mask": torch.ones(1, 5, dtype=torch.int64),
    }


def blip_2_call() -> dict[str, Tensor]:
    call = question_call()
    return {name: call[name] for name in ("input_ids", "attention_mask", "pixel_values")}


def idefics_3() -> Any:
    from transformers import Idefics3Config

    return Idefics3Config(
        vision_config=small("Idefics3VisionConfig").to_dict(),
        text_config=llama(),
        image_token_id=PLACE,
        scale_factor=2,
        use_cache=False,
    )


def smol_vlm() -> Any:
    from transformers import SmolVLMConfig

    return SmolVLMConfig(
        vision_config=small("SmolVLMVisionConfig").to_dict(),
        text_config=llama(),
        image_token_id=PLACE,
        scale_factor=2,
        use_cache=False,
    )


def idefics_call() -> dict[str, Tensor]:
    return {"input_ids": with_places(4), "pixel_values": numbers(1, 1, 3, SIZE, SIZE)}


def git() -> Any:
    return small("GitConfig", vision_config=small("GitVisionConfig").to_dict(), use_cache=False)


def kosmos_2() -> Any:
    from transformers import Kosmos2Config

    text = small("Kosmos2TextConfig", layers=2, embed_dim=32, use_cache=False)
    vision = small("Kosmos2VisionConfig")
    return Kosmos2Config(text_config=text.to_dict(), vision_config=vision.to_dict(), latent_query_num=4)


def kosmos_2_call() -> dict[str, Tensor]:
    ids = whole(1, 10, below=80, least=3)
    places = torch.zeros(1, 10, dtype=torch.int64)
    places[:, 2:6] = 1
    return {"input_ids": ids, "image_embeds_position_mask": places, "pixel_values": image(SIZE, batch=1)}


def pix_2_struct() -> Any:
    from transformers import Pix2StructConfig

    text = small("Pix2StructTextConfig", use_cache=False)
    vision = small("Pix2StructVisionConfig", patch_embed_hidden_size=27, seq_len=64)
    return Pix2StructConfig(text_config=text.to_dict(), vision_config=vision.to_dict())


def pix_2_struct_call() -> dict[str, Tensor]:
    # Each patch: its row and column, and its 3 x 3 x 3 numbers.
    places = whole(2, 8, 2, below=8, least=1).float()
    return {
        "flattened_patches": torch.cat([places, numbers(2, 8, 27)], dim=-1),
        "attention_mask": torch.ones(2, 8),
        "decoder_input_ids": tokens(2, 5),
    }


def reader() -> Any:
    """A vision transformer and a decoder that writes down what it reads."""
    from transformers import VisionEncoderDecoderConfig

    encoder = small("ViTConfig")
    decoder = small("TrOCRConfig", use_cache=False, is_decoder=True, add_cross_attention=True)
    return VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)


def reader_call() -> dict[str, Tensor]:
    return {"pixel_values": image(SIZE), "decoder_input_ids": tokens(2, 5)}


def layout_lm_3() -> Any:
    return small("LayoutLMv3Config", coordinate_size=6, shape_size=4, input_size=SIZE)


def x_clip() -> Any:
    return pair(
        "XCLIP",
        text=_EOS,
        vision={
            "num_frames": 2,
            "mit_hidden_size": 32,
            "mit_intermediate_size": 48,
            "mit_num_attention_heads": 2,
        },
        projection_dim=32,
        prompt_layers=1,
        prompt_num_attention_heads=2,
    )()


def cases() -> list[Case]:
    film = numbers(2, 2, 3, SIZE, SIZE)
    return [
        *(model(name, config, both) for name, config in TWO_TOWERS),
        model("BlipForConditionalGeneration", pair("Blip", projection_dim=16), both),
        model("Blip2ForConditionalGeneration", blip_2, blip_2_call),
        model("BridgeTowerModel", bridge_tower, both),
        model(
            "ClapModel",
            clap,
            lambda: {
                "input_ids": tokens(),
                "attention_mask": padding_mask(),
                "input_features": numbers(2, 1, 256, 16),
            },
        ),
        model("CLIPSegForImageSegmentation", clip_seg, both),
        model("FlavaModel", flava, both),
        model("Gemma3ForConditionalGeneration", gemma_3, gemma_3_call),
        model("GitForCausalLM", git, both),
        model("Idefics3ForConditionalGeneration", idefics_3, idefics_call),
        model("InstructBlipForConditionalGeneration", instruct_blip, question_call),
        model(
            "InternVLForConditionalGeneration",
            intern_vl,
            lambda: {"input_ids": with_places(4), "pixel_values": image(SIZE, batch=1)},
        ),
        model("Kosmos2ForConditionalGeneration", kosmos_2, kosmos_2_call),
        model("LayoutLMv3Model", layout_lm_3, lambda: both() | {"bbox": boxes()}),
        model("LlavaForConditionalGeneration", llava("Llava", vision_feature_layer=-1), llava_call),
        model("LxmertModel", lxmert, regions),
        model("OwlViTModel", owl("OwlViT"), owl_call),
        model("Owlv2Model", owl("Owlv2"), owl_call),
        model("PaliGemmaForConditionalGeneration", pali_gemma, pali_gemma_call),
        model("PerceiverForMaskedLM", perceiver, perceiver_call),
        model("Pix2StructForConditionalGeneration", pix_2_struct, pix_2_struct_call),
        model("SmolVLMForConditionalGeneration", smol_vlm, idefics_call),
        model("ViltModel", lambda: small("ViltConfig"), both),
        model(
            "VipLlavaForConditionalGeneration", llava("VipLlava", vision_feature_layer=[-1, -2]), llava_call
        ),
        model("VisionEncoderDecoderModel", reader, reader_call),
        model("VisionTextDualEncoderModel", two_encoders, both),
        model("VisualBertModel", lambda: small("VisualBertConfig"), visual_bert_call),
        model("XCLIPModel", x_clip, lambda: both() | {"pixel_values": film}),
    ]
