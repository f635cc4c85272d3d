"""Pictures as a pretrained model wants them: its own size, mean and deviation."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from launcher.datasets.files import needed

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_WEIGHTS = re.compile(r"\w+_Weights\.\w+")


class Preprocess:
    """What `ImageFolder` makes of a picture for a pretrained model, as those who trained it did.

    Args:
        of: An image processor of transformers, as in `"${define.processor}"`; the name of torchvision's weights, as in
            `ResNet50_Weights.DEFAULT`; or that of a model of timm, as in `resnet50.a1_in1k`.
        training: Whether with the augmentation that timm has for training; the others have none of their own.

    Raises:
        ValueError: There is nothing of that name, or it has no training of its own.
    """

    def __init__(self, of: Any, *, training: bool = False):
        if training and not (isinstance(of, str) and _WEIGHTS.fullmatch(of) is None):
            raise ValueError("training: only timm's models come with an augmentation; give ImageFolder one, or omit it")
        self._transform: Callable[[Any], Any] = _named(of, training) if isinstance(of, str) else _Processed(of)

    def __call__(self, picture: Any) -> Any:
        """A `PIL.Image` as a float tensor of shape [3, H, W]."""
        return self._transform(picture.convert("RGB"))


class _Processed:
    """By an image processor of transformers, one picture at a time."""

    def __init__(self, processor: Any):
        if not callable(processor):
            raise ValueError(f"a {type(processor).__name__} makes nothing of pictures; name an image processor")
        self._processor = processor

    def __call__(self, picture: Any) -> Any:
        return self._processor(picture, return_tensors="pt")["pixel_values"][0]


def _named(name: str, training: bool) -> Callable[[Any], Any]:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"'{name}' is neither a model of timm nor weights of torchvision, as ResNet50_Weights.DEFAULT")
    if _WEIGHTS.fullmatch(name):
        models = needed("torchvision.models", "vision", "a model of torchvision")
        made: Callable[[Any], Any] = models.get_weight(name).transforms()
        return made
    timm = needed("timm", "vision", "a model of timm")
    data = needed("timm.data", "vision", "a model of timm")
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise ValueError(f"timm has no pretrained weights '{name}'; `timm.list_pretrained()` has their names")
    settings = data.resolve_data_config({}, pretrained_cfg=config.to_dict())
    augmented: Callable[[Any], Any] = data.create_transform(**settings, is_training=training)
    return augmented
