"""The collate function of a detector's data."""

from __future__ import annotations

from typing import Any


def listed(samples: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """Lists of images and targets, as detectors want them."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
