"""Reads camera images, and checks whether a calibration was made for them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from apps.driving.adapters.device_jpeg import decode_on_device
from apps.driving.types import Floats
from shared.errors import InvalidInputError

_FORMATS = ("PNG", "JPEG")
"""Pillow would decode any other format that it knows too, whatever the file's name; for EPS it starts Ghostscript."""
MAX_PIXELS = 40_000_000
MAX_CENTRE_OFFSET = 0.2
"""If an image was not cropped or resized, its principal point is no farther from the image centre than this fraction of
the width or height."""
MAX_CENTRE_OFFSET_BOTH_AXES = 0.05
"""The limit if the offset has the same sign in width and height, as after proportional resizing. KITTI's principal
point is 0.04 of the height above the centre, those of nuScenes up to 0.06 below, all within 0.02 of the width."""


def read_image(path: Path, device: str = "cpu") -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(H, W, 3) uint8 RGB; of 16 bits per channel the upper eight. If ``device`` is a GPU it decodes JPEG files."""
    content = path.read_bytes()
    if not content:
        raise InvalidInputError(f"{path.name} is empty (0 bytes); expected an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InvalidInputError(
                        f"{path.name} has {image.width} x {image.height} pixels; at most 40 million are accepted"
                    )
                if device != "cpu" and (decoded := decode_on_device(content, image, device)) is not None:
                    return decoded
                if image.mode.startswith("I"):  # Pillow clips 16-bit grey at 255; of RGB it takes the upper byte
                    grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                    return np.repeat(grey[..., None], 3, axis=2)
                return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        # Pillow's own message names the in-memory buffer instead of the file.
        raise InvalidInputError(
            f"{path.name} cannot be read as an image: it is neither PNG nor JPEG; convert it"
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidInputError(f"{path.name} cannot be read as an image: {error}") from error


def resize_remarks(name: str, shape: tuple[int, ...], intrinsics: Floats) -> tuple[str, ...]:
    """A remark if the calibration does not seem to be made for an image (H, W, 3), else an empty tuple."""
    height, width = shape[:2]
    across, down = float(intrinsics[0, 2]), float(intrinsics[1, 2])
    offset = across / width - 0.5, down / height - 0.5
    proportional = offset[0] * offset[1] > 0 and min(map(abs, offset)) > MAX_CENTRE_OFFSET_BOTH_AXES
    if max(map(abs, offset)) <= MAX_CENTRE_OFFSET and not proportional:
        return ()
    return (
        f"{name} has {width} x {height} pixels, but its calibration has the principal point at ({across:.0f}, "
        f"{down:.0f}), which fits an image of about {2 * across:.0f} x {2 * down:.0f} pixels. Was the image resized "
        "after calibration? Boxes drawn in the image and boxes detected in it are wrong.",
    )
