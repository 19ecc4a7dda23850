"""Models of transformers that listen and speak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from zoo.case import Call, Case, numbers, whole
from zoo.small_config import small

LIBRARY = "transformers"
_FEATURES = {"conv_dim": (16, 16, 16), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3)}
_WAVES = {**_FEATURES, "apply_spec_augment": False, "layerdrop": 0.0}
_VOCODER = {
    "upsample_initial_channel": 16,
    "upsample_rates": [2, 2],
    "upsample_kernel_sizes": [4, 4],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
}


def wave(length: int = 640, batch: int = 2) -> Tensor:
    return numbers(batch, length)


def answer() -> Tensor:
    return whole(2, 5, least=3)


Entry = tuple[str, str, dict[str, Any], Callable[[], dict[str, Any]]]

# Name of the model's class, of its configuration, what is not as `small` makes it, the arguments of a call.
MODELS: list[Entry] = [
    (
        "ASTForAudioClassification",
        "ASTConfig",
        {"num_mel_bins": 16, "max_length": 24, "frequency_stride": 4, "time_stride": 4},
        lambda: {"input_values": numbers(2, 24, 16)},
    ),
    (
        "ClapAudioModelWithProjection",
        "ClapAudioConfig",
        {
            "spec_size": 64,
            "num_mel_bins": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 4],
            "hidden_size": 32,
            "window_size": 4,
            "patch_embeds_hidden_size": 16,
            "patch_size": 4,
            "num_hidden_layers": 2,
        },
        lambda: {"input_features": numbers(2, 1, 64 * 4, 16)},
    ),
    (
        "DacModel",
        "DacConfig",
        {
            "encoder_hidden_size": 8,
            "decoder_hidden_size": 32,
            "downsampling_ratios": [2, 4],
            "n_codebooks": 2,
            "codebook_size": 32,
            "codebook_dim": 4,
        },
        lambda: {"input_values": numbers(1, 1, 320)},
    ),
    (
        "Data2VecAudioModel",
        "Data2VecAudioConfig",
        {**_WAVES, "num_conv_pos_embeddings": 2},
        lambda: {"input_values": wave()},
    ),
    (
        "EncodecModel",
        "EncodecConfig",
        {
            "num_filters": 4,
            "hidden_size": 16,
            "upsampling_ratios": [4, 2],
            "codebook_size": 32,
            "target_bandwidths": [30.0],
        },
        lambda: {"input_values": numbers(1, 1, 320)},
    ),
    ("HubertModel", "HubertConfig", _WAVES, lambda: {"input_values": wave()}),
    (
        "MoonshineForConditionalGeneration",
        "MoonshineConfig",
        {"use_cache": False},
        lambda: {"input_values": wave(4000), "decoder_input_ids": answer()},
    ),
    (
        "MusicgenForCausalLM",
        "MusicgenDecoderConfig",
        {"num_codebooks": 2, "use_cache": False},
        lambda: {"input_ids": whole(4, 6)},
    ),
    ("SEWModel", "SEWConfig", _WAVES, lambda: {"input_values": wave()}),
    ("SEWDModel", "SEWDConfig", {**_WAVES, "position_buckets": 16}, lambda: {"input_values": wave()}),
    (
        "Speech2TextForConditionalGeneration",
        "Speech2TextConfig",
        {"conv_channels": 16, "input_feat_per_channel": 16, "use_cache": False},
        lambda: {"input_features": numbers(2, 24, 16), "decoder_input_ids": answer()},
    ),
    (
        "SpeechT5ForSpeechToText",
        "SpeechT5Config",
        {**_WAVES, "use_cache": False},
        lambda: {"input_values": wave(), "decoder_input_ids": answer()},
    ),
    (
        "SpeechT5HifiGan",
        "SpeechT5HifiGanConfig",
        {**_VOCODER, "model_in_dim": 16},
        lambda: {"spectrogram": numbers(10, 16)},
    ),
    ("UniSpeechModel", "UniSpeechConfig", _WAVES, lambda: {"input_values": wave()}),
    ("UniSpeechSatModel", "UniSpeechSatConfig", _WAVES, lambda: {"input_values": wave()}),
    (
        "UnivNetModel",
        "UnivNetConfig",
        {
            "model_in_channels": 8,
            "model_hidden_channels": 8,
            "num_mel_bins": 16,
            "resblock_kernel_sizes": [3, 3],
            "resblock_stride_sizes": [4, 4],
            "resblock_dilation_sizes": [[1, 3], [1, 3]],
            "kernel_predictor_hidden_channels": 8,
        },
        lambda: {"input_features": numbers(1, 8, 16), "noise_sequence": numbers(1, 8, 8, seed=1)},
    ),
    ("Wav2Vec2Model", "Wav2Vec2Config", _WAVES, lambda: {"input_values": wave()}),
    (
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {**_WAVES, "do_stable_layer_norm": True, "feat_extract_norm": "layer"},
        lambda: {"input_values": wave()},
    ),
    (
        "Wav2Vec2BertModel",
        "Wav2Vec2BertConfig",
        {"feature_projection_input_dim": 16, "conv_depthwise_kernel_size": 7, "apply_spec_augment": False},
        lambda: {"input_features": numbers(2, 20, 16)},
    ),
    (
        "Wav2Vec2ConformerModel",
        "Wav2Vec2ConformerConfig",
        {**_WAVES, "conv_depthwise_kernel_size": 7},
        lambda: {"input_values": wave()},
    ),
    (
        "WavLMModel",
        "WavLMConfig",
        {**_WAVES, "num_buckets": 32, "max_bucket_distance": 64},
        lambda: {"input_values": wave()},
    ),
    (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "num_mel_bins": 16,
            "max_source_positions": 20,
            "use_cache": False,
        },
        lambda: {"input_features": numbers(2, 16, 40), "decoder_input_ids": answer()},
    ),
    (
        "WhisperForAudioClassification",
        "WhisperConfig",
        {
            "num_mel_bins": 16,
            "max_source_positions": 20,
            "use_weighted_layer_sum": True,
        },
        lambda: {"input_features": numbers(2, 16, 40)},
    ),
]


def parakeet() -> Call:
    from transformers import ParakeetCTCConfig, ParakeetForCTC

    encoder = small(
        "ParakeetEncoderConfig", num_mel_bins=16, subsampling_conv_channels=8, max_position_embeddings=64
    )
    config = ParakeetCTCConfig(vocab_size=33, pad_token_id=32, encoder_config=encoder.to_dict())
    return Call(ParakeetForCTC(config), kwargs={"input_features": numbers(1, 64, 16)})


def model(name: str, config: str, fixed: dict[str, Any], call: Callable[[], dict[str, Any]]) -> Case:
    def make() -> Call:
        import transformers

        return Call(getattr(transformers, name)(small(config, **fixed)), kwargs=call())

    return Case(LIBRARY, "audio", name.removesuffix("ForConditionalGeneration"), make)


def cases() -> list[Case]:
    return [*(model(*entry) for entry in MODELS), Case(LIBRARY, "audio", "ParakeetForCTC", parakeet)]
