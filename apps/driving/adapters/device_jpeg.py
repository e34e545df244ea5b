"""JPEG files decoded by a GPU (nvJPEG), where it gives what Pillow does; all others are for Pillow.

Like Pillow's, these pixels are not turned as Exif's orientation says: a calibration is of the image as it is stored.
nvJPEG rounds otherwise and interpolates the colours otherwise, by a few grey levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, JpegImagePlugin

if TYPE_CHECKING:
    from torch import Tensor

_END = b"\xff\xd9"


class DeviceImage(np.ndarray[tuple[int, ...], np.dtype[np.uint8]]):
    """(H, W, 3) uint8 RGB on the host, and the same pixels (3, H, W) ``on_device``, which views and copies have not."""

    on_device: Tensor | None = None


def decode_on_device(content: bytes, opened: Image.Image, device: str) -> DeviceImage | None:
    """The pixels of a JPEG file, ``opened`` by Pillow as far as its header; None where Pillow is to read it.

    That is: on a CPU, other formats, CMYK and RGB stored as such, a file without its end, of which Pillow says what is
    missing, and whatever nvJPEG refuses or is not there for.
    """
    import torch

    if torch.device(device).type != "cuda" or not isinstance(opened, JpegImagePlugin.JpegImageFile):
        return None
    grey = opened.mode == "L"
    if not (grey or _is_ycc(opened)) or not content.endswith(_END):
        return None
    from torchvision.io import ImageReadMode, decode_jpeg

    stored = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    try:
        found = decode_jpeg(stored, ImageReadMode.GRAY if grey else ImageReadMode.RGB, device=device)
    except (RuntimeError, ValueError):
        return None
    if tuple(found.shape[1:]) != (opened.height, opened.width):
        return None
    on_device: Any = found.expand(3, -1, -1)
    # The copy to the host waits until it is decoded, so that any stream may go on with it.
    image = on_device.permute(1, 2, 0).contiguous().cpu().numpy().view(DeviceImage)
    image.on_device = on_device
    return image  # type: ignore[no-any-return]


def _is_ycc(opened: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether it holds brightness and two colours, by the marks that libjpeg goes by; nvJPEG takes that for given."""
    if opened.mode != "RGB":
        return False
    if "jfif" in opened.info:
        return True
    if "adobe_transform" in opened.info:
        return bool(opened.info["adobe_transform"] == 1)
    return [component[0] for component in opened.layer] == [1, 2, 3]
