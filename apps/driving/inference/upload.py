"""Brings a camera's image to the network's device and focal length. On a GPU it is uploaded at full size, unless it was
decoded there, and resized there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.driving.adapters.device_jpeg import DeviceImage
from apps.driving.adapters.projection import bring_to_focal_length, size_at_focal_length
from apps.driving.types import Camera


def image_at_focal_length(camera: Camera, focal_px: float, device: str) -> tuple[Tensor, tuple[float, float]]:
    """The image (3, H, W) on ``device``, resized so that its focal length is ``focal_px`` pixels; and the factors by
    which its width and height were resized.

    The GPU resizes with the same filter as the CPU, in fp32, rounded once: within one grey level of Pillow's result.
    The upload runs from page-locked memory, concurrently with the GPU's computation.
    """
    if torch.device(device).type == "cpu":
        image, scale = bring_to_focal_length(camera, focal_px)
        return torch.from_numpy(image).permute(2, 0, 1), scale
    height, width = camera.image_HWC.shape[:2]
    new_width, new_height = size_at_focal_length(camera, focal_px)
    pixels = camera.image_HWC
    if isinstance(pixels, DeviceImage) and pixels.on_device is not None:
        image_3HW = pixels.on_device.float()
    else:
        uploaded = torch.from_numpy(pixels.copy()).pin_memory().to(device, non_blocking=True)
        image_3HW = uploaded.permute(2, 0, 1).float()
    if (new_width, new_height) != (width, height):
        resized = F.interpolate(image_3HW[None], size=(new_height, new_width), mode="bilinear", antialias=True)
        image_3HW = resized[0].round().clamp(0, 255)
    return image_3HW, (new_width / width, new_height / height)
