"""A camera's image on its way to a network: uploaded to a GPU as it is, where it was not decoded there, and resized
there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.driving.adapters.device_jpeg import DeviceImage
from apps.driving.adapters.projection import bring_to_focal_length, size_at_focal_length
from apps.driving.types import Camera


def image_at_focal_length(camera: Camera, focal_px: float, device: str) -> tuple[Tensor, tuple[float, float]]:
    """(3, H, W) the image on ``device``, resized so that its focal length is ``focal_px``; and the factors of width and
    height.

    A GPU resizes with the filter that the CPU does, in fp32, rounded once: within one grey level of Pillow's. The copy
    to it runs from page-locked memory, beside what it computes.
    """
    if torch.device(device).type == "cpu":
        image, scale = bring_to_focal_length(camera, focal_px)
        return torch.from_numpy(image).permute(2, 0, 1), scale
    height, width = camera.image_HWC.shape[:2]
    wide, high = size_at_focal_length(camera, focal_px)
    pixels = camera.image_HWC
    if isinstance(pixels, DeviceImage) and pixels.on_device is not None:
        there = pixels.on_device.float()
    else:
        stored = torch.from_numpy(pixels.copy()).pin_memory().to(device, non_blocking=True)
        there = stored.permute(2, 0, 1).float()
    if (wide, high) != (width, height):
        resized = F.interpolate(there[None], size=(high, wide), mode="bilinear", antialias=True)
        there = resized[0].round().clamp(0, 255)
    return there, (wide / width, high / height)
