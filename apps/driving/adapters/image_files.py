"""Images of cameras, and whether they are those that a calibration was made for."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from apps.driving.adapters.device_jpeg import decode_on_device
from apps.driving.types import Floats
from shared.errors import InvalidInputError

MAX_PIXELS = 40_000_000
MAX_OFF_CENTRE = 0.2
"""Further from the middle than this share of its width or height lies no camera's centre whose image was not cut or
resized."""
MAX_OFF_BOTH = 0.05
"""The same where it is off in width and height alike, as in an image that was resized in proportion. KITTI's centre is
0.04 of the height above the middle, those of nuScenes up to 0.06 below, all within 0.02 of the width."""


def read_image(path: Path, device: str = "cpu") -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(H, W, 3) uint8 RGB; of 16 bits a channel the upper eight. Where ``device`` is a GPU it decodes JPEG."""
    content = path.read_bytes()
    if not content:
        raise InvalidInputError(f"{path.name} is empty (0 bytes); an image was expected")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InvalidInputError(
                        f"{path.name} has {image.width} x {image.height} pixels; at most 40 million are taken"
                    )
                if device != "cpu" and (decoded := decode_on_device(content, image, device)) is not None:
                    return decoded
                if image.mode.startswith("I"):  # 16-bit grey, which Pillow would cut at 255; it takes RGB's upper half
                    grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                    return np.repeat(grey[..., None], 3, axis=2)
                return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        # Pillow's own words name the buffer that it was handed.
        raise InvalidInputError(f"{path.name} cannot be read as an image: it is in no format that is known") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidInputError(f"{path.name} cannot be read as an image: {error}") from error


def resized(name: str, shape: tuple[int, ...], intrinsics: Floats) -> tuple[str, ...]:
    """The remark on an image (H, W, 3) that its calibration was hardly made for; none where it may have been."""
    height, width = shape[:2]
    across, down = float(intrinsics[0, 2]), float(intrinsics[1, 2])
    off = across / width - 0.5, down / height - 0.5
    alike = off[0] * off[1] > 0 and min(map(abs, off)) > MAX_OFF_BOTH
    if max(map(abs, off)) <= MAX_OFF_CENTRE and not alike:
        return ()
    return (
        f"{name} has {width} x {height} pixels, but its calibration has the camera's centre at ({across:.0f}, "
        f"{down:.0f}), which is that of an image of about {2 * across:.0f} x {2 * down:.0f} pixels. Was the image "
        "resized after it was calibrated? Boxes in the image, and those found in it, are wrong.",
    )
