"""timm's and torchvision's models, transforms and detectors, by name, as their documentation has them.

A table of its own, as they cannot be imported everywhere: see `vision.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pictured
import torch
from torch import nn

from tests.brought.case import Case, written

PICTURES: dict[str, Case] = {}
LONG: set[str] = set()  # too large for the plain tier
small: dict[str, Any] = {"exact": 1e-5, "optimizer": partial(torch.optim.SGD, lr=0.01, momentum=0.5)}
classes: dict[str, Any] = {**small, "data": pictured.Noise, "loss": nn.CrossEntropyLoss}
of_its_batch: dict[str, Any] = {"worlds": (1,), "pieces": False}  # BatchNorm, dropout


def case(name: str, *recipe: str, is_long: bool = False, **parts: Any) -> None:
    """Adds a line to this table."""
    assert name not in PICTURES, name
    PICTURES[name] = Case(name, recipe, **parts)
    LONG.update([name] if is_long else [])


# ---------------------------------------------------------------------- models by name


def by_name(target: str, is_long: bool = False, parts: Any = None, **settings: Any) -> None:
    """A model as a recipe names it, and as Python does."""
    said = written({"num_classes": 3, **settings})[1:-1]
    case(
        f"{target}, {said}",
        f"model={{_target_: {target}, {said}}}",
        model=partial(pictured.named, target, num_classes=3, **settings),
        is_long=is_long,
        **{**classes, **(parts or {})},
    )


by_name("torchvision.models.resnet18", weights=None, norm_layer=pictured.by_groups, is_long=True)
by_name("torchvision.models.mobilenet_v3_small", weights=None, parts=of_its_batch)
by_name("torchvision.models.efficientnet_b0", weights=None, parts=of_its_batch, is_long=True)
by_name("torchvision.models.convnext_tiny", weights=None, stochastic_depth_prob=0.0, is_long=True)
swin: dict[str, Any] = {
    "patch_size": [4, 4],
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": [4, 4],
}
by_name("torchvision.models.SwinTransformer", **swin, stochastic_depth_prob=0.0, is_long=True)
by_name("torchvision.models.regnet_y_400mf", weights=None, parts=of_its_batch, is_long=True)

timm: dict[str, Any] = {"target": "timm.create_model", "pretrained": False}
by_name(**timm, model_name="vit_tiny_patch16_224", img_size=32, depth=2)
by_name(**timm, model_name="test_convnext")
by_name(**timm, model_name="test_efficientnet", parts=of_its_batch)
for name in ("resnet18", "mobilenetv3_small_050", "efficientnet_lite0"):
    by_name(**timm, model_name=name, parts=of_its_batch, is_long=True)
by_name(**timm, model_name="convnext_atto", is_long=True)
by_name(**timm, model_name="vit_tiny_patch16_224", img_size=32, is_long=True)

case(
    "torchvision's ResNet-18 in float64",
    model=pictured.residual,
    **{**classes, "exact": 1e-9, "data": partial(pictured.Noise, dtype=torch.float64)},
    is_long=True,
)

# ---------------------------------------------------------------------- segmentation, detection


def segmented(model: nn.Module, batch: Any, loss: Any) -> torch.Tensor:
    """These models give a mapping."""
    value: torch.Tensor = loss(model(batch[0])["out"], batch[1])
    return value


untrained: Any = {"weights": None, "weights_backbone": None}
for name in ("lraspp_mobilenet_v3_large", "fcn_resnet50"):
    target = f"torchvision.models.segmentation.{name}"
    case(
        f"segmentation: {name}",
        f"model={{_target_: {target}, {written(untrained)[1:-1]}, num_classes: 3}}",
        "batch.outputs=[out]",
        model=partial(pictured.named, target, num_classes=3, **untrained),
        forward=segmented,
        is_long=True,
        **{**classes, "data": partial(pictured.Noise, masks=True), **of_its_batch},
    )

boxes: dict[str, Any] = {**small, "data": pictured.Boxes, "loss": None, "forward": pictured.total}
boxes["collate"] = pictured.listed
DETECTS = ("loss=model", "batch={inputs: [0, 1], targets: []}")
case("detection: RetinaNet", *DETECTS, model=pictured.detector, **boxes)
sizes: Any = {**untrained, "num_classes": 4, "min_size": 64, "max_size": 64}
for name in ("fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"):
    target = f"torchvision.models.detection.{name}"
    case(
        f"detection: {name}",
        *DETECTS,
        f"model={{_target_: {target}, {written(sizes)[1:-1]}}}",
        model=partial(pictured.named, target, **sizes),
        is_long=True,
        **{**boxes, **of_its_batch},
    )

# ---------------------------------------------------------------------- folders of pictures, with their own transforms

V1 = "torchvision.transforms"
V2 = "torchvision.transforms.v2"
FIRST = (
    f"{{_target_: {V1}.Compose, transforms: [{{_target_: {V1}.RandomResizedCrop, size: 32}}, "
    f"{{_target_: {V1}.RandomHorizontalFlip}}, {{_target_: {V1}.ColorJitter, brightness: 0.4, contrast: 0.4}}, "
    f"{{_target_: {V1}.ToTensor}}, {{_target_: {V1}.Normalize, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}}]}}"
)
SECOND = (
    f"{{_target_: {V2}.Compose, transforms: [{{_target_: {V2}.ToImage}}, "
    f"{{_target_: {V2}.RandomResizedCrop, size: 32}}, {{_target_: {V2}.RandomHorizontalFlip}}, "
    f"{{_target_: {V2}.TrivialAugmentWide}}, "
    f"{{_target_: {V2}.ToDtype, dtype: {{_ref_: torch.float32}}, scale: true}}, "
    f"{{_target_: {V2}.Normalize, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}}]}}"
)
OWN = "{_target_: launcher.datasets.Preprocess, of: NAME}"
TRAINING = "{_target_: launcher.datasets.Preprocess, of: NAME, training: true}"
for name, said, transform in (
    ("torchvision's first", FIRST, pictured.first_version),
    ("torchvision's second", SECOND, pictured.second_version),
    ("timm's", OWN.replace("NAME", "test_vit.r160_in1k"), partial(pictured.of_timm, name="test_vit.r160_in1k")),
    (
        "timm's, of training",
        TRAINING.replace("NAME", "test_vit.r160_in1k"),
        partial(pictured.of_timm, name="test_vit.r160_in1k", training=True),
    ),
    (
        "of torchvision's weights",
        OWN.replace("NAME", "ResNet18_Weights.DEFAULT"),
        partial(pictured.of_weights, name="ResNet18_Weights.DEFAULT"),
    ),
):
    case(
        f"transforms: {name}",
        f"data.train={{_target_: ImageFolder, root: pets, transform: {said}}}",
        model=pictured.flat,
        is_long=name not in ("torchvision's first", "timm's, of training"),
        **{**classes, "data": partial(pictured.folder, transform=transform), "shuffled": True},
    )
