"""Decodes JPEG files on a GPU (nvJPEG) if the result matches Pillow's; Pillow decodes all others.

As with Pillow, the Exif orientation is not applied: a calibration refers to the image as stored. nvJPEG rounds and
interpolates the colours differently, by a few grey levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, JpegImagePlugin

if TYPE_CHECKING:
    from torch import Tensor

_END_OF_IMAGE = b"\xff\xd9"


class DeviceImage(np.ndarray[tuple[int, ...], np.dtype[np.uint8]]):
    """(H, W, 3) uint8 RGB on the host, and the same pixels (3, H, W) ``on_device``, which views and copies lack."""

    on_device: Tensor | None = None


def decode_on_device(content: bytes, opened: Image.Image, device: str) -> DeviceImage | None:
    """The pixels of a JPEG file whose header Pillow has ``opened``; None if Pillow must decode it.

    Pillow decodes everything if ``device`` is a CPU or nvJPEG is not available; otherwise other formats, CMYK, RGB that
    was not converted to YCbCr, truncated files (it reports what is missing), and files that nvJPEG refuses.
    """
    import torch

    if torch.device(device).type != "cuda" or not isinstance(opened, JpegImagePlugin.JpegImageFile):
        return None
    grey = opened.mode == "L"
    if not (grey or _is_ycc(opened)) or not content.endswith(_END_OF_IMAGE):
        return None
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    try:
        decoded = decode_jpeg(encoded, ImageReadMode.GRAY if grey else ImageReadMode.RGB, device=device)
    except (RuntimeError, ValueError):
        return None
    if tuple(decoded.shape[1:]) != (opened.height, opened.width):
        return None
    on_device: Any = decoded.expand(3, -1, -1)
    # Copying to the host waits for the decoder, so any stream may use the pixels afterwards.
    image = on_device.permute(1, 2, 0).contiguous().cpu().numpy().view(DeviceImage)
    image.on_device = on_device
    return image  # type: ignore[no-any-return]


def _is_ycc(opened: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether the file stores YCbCr, by the markers that libjpeg checks; nvJPEG assumes YCbCr without checking."""
    if opened.mode != "RGB":
        return False
    if "jfif" in opened.info:
        return True
    if "adobe_transform" in opened.info:
        return bool(opened.info["adobe_transform"] == 1)
    return [component[0] for component in opened.layer] == [1, 2, 3]
