"""The models of the sweep."""

from __future__ import annotations

from zoo import (
    detectors,
    diffusers_models,
    front_ends,
    timm_models,
    torchvision_models,
    transformers_audio,
    transformers_multimodal,
    transformers_text,
    transformers_vision,
)
from zoo.case import Case

__all__ = ["Case", "cases"]

_LIBRARIES = (
    torchvision_models,
    timm_models,
    transformers_text,
    transformers_vision,
    transformers_audio,
    transformers_multimodal,
    diffusers_models,
    detectors,
    front_ends,
)


def cases() -> list[Case]:
    """All of them, in the order of the page."""
    found = [case for library in _LIBRARIES for case in library.cases()]
    names = [case.id for case in found]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"two models of one name: {', '.join(sorted(twice))}"
    return found
