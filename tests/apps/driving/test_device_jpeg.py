"""JPEG decoding on a GPU: which files it decodes, and that the others are read as on a CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from apps.driving.adapters import kitti
from apps.driving.adapters.device_jpeg import DeviceImage
from apps.driving.adapters.image_files import read_image
from apps.driving.inference.upload import image_at_focal_length
from shared.errors import InvalidInputError
from tests.fake_cuda import fake_cuda


@pytest.fixture
def pixels():
    """(60, 90, 3): smooth, like a camera image."""
    y, x = np.mgrid[:60, :90].astype(np.float32)
    return np.stack([2 * x, 4 * y, 128 + 100 * np.sin(x / 20)], axis=-1).astype(np.uint8)


@pytest.fixture
def nvjpeg(monkeypatch):
    """Replaces torchvision's CUDA decoder by its CPU decoder; returns the list of requested modes."""
    import torchvision.io

    decode, modes = torchvision.io.decode_jpeg, []

    def on_cuda(content, mode, device):
        modes.append(mode.name)
        return decode(content, mode).to(device)

    monkeypatch.setattr(torchvision.io, "decode_jpeg", on_cuda)
    return modes


def save(path, pixels, mode="RGB", **settings):
    Image.fromarray(pixels).convert(mode).save(path, **settings)
    return path


@pytest.mark.parametrize(("mode", "expected_mode"), [("RGB", "RGB"), ("L", "GRAY")])
def test_a_jpeg_is_decoded_on_the_device(tmp_path, pixels, nvjpeg, mode, expected_mode):
    path = save(tmp_path / "image.jpg", pixels, mode)
    expected = read_image(path)
    with fake_cuda() as device:
        found = read_image(path, "cuda")
        assert found.on_device.device == device
        on_device_pixels = found.on_device.cpu().permute(1, 2, 0).numpy()
    assert nvjpeg == [expected_mode] and isinstance(found, DeviceImage)
    assert found.shape == expected.shape == (60, 90, 3) and found.dtype == np.uint8
    assert np.array_equal(on_device_pixels, found) and np.abs(found.astype(int) - expected).max() <= 2
    # Views and copies of an image do not carry the pixels on the device.
    assert found[::2].on_device is None and found.copy().on_device is None and (found + 1).on_device is None


def test_the_exif_orientation_is_not_applied(tmp_path, pixels, nvjpeg):
    """A calibration refers to the image as stored; the CPU reader does not rotate it either."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "turned.jpg", pixels, exif=exif)
    with fake_cuda():
        found = read_image(path, "cuda")
    assert nvjpeg == ["RGB"] and found.shape == read_image(path).shape == (60, 90, 3)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, pixels: save(path.with_suffix(".png"), pixels),
        lambda path, pixels: save(path, pixels, "CMYK"),
        lambda path, pixels: save(path, pixels, keep_rgb=True),
    ],
    ids=["png", "cmyk", "stored as rgb"],
)
def test_other_files_are_read_as_on_a_cpu(tmp_path, pixels, nvjpeg, write):
    path = write(tmp_path / "image.jpg", pixels)
    with fake_cuda():
        found = read_image(path, "cuda")
    assert not nvjpeg and type(found) is np.ndarray
    assert np.array_equal(found, read_image(path))


def test_files_that_nvjpeg_refuses_are_read_on_the_cpu(tmp_path, pixels, monkeypatch):
    import torchvision.io

    def refuses(*_, **__):
        raise RuntimeError("nvjpegDecode failed: NVJPEG_STATUS_JPEG_NOT_SUPPORTED")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", refuses)
    path = save(tmp_path / "image.jpg", pixels, progressive=True)
    assert np.array_equal(read_image(path, "cuda"), read_image(path))


@pytest.mark.parametrize("cut", [2, 200])
def test_a_truncated_file_is_refused_as_on_a_cpu(tmp_path, pixels, nvjpeg, cut):
    """nvJPEG may fill the missing part with grey."""
    path = save(tmp_path / "torn.jpg", pixels)
    path.write_bytes(path.read_bytes()[:-cut])
    answers = []
    for device in ("cpu", "cuda"):
        try:
            answers.append(read_image(path, device).tolist())
        except InvalidInputError as refusal:
            answers.append(str(refusal))
    assert answers[0] == answers[1] and not nvjpeg
    assert cut == 2 or "torn.jpg cannot be read as an image" in answers[0]


def test_decoded_images_are_resized_on_the_device(tmp_path, synthetic, nvjpeg, monkeypatch):
    """Pixels decoded on a GPU are not uploaded again."""
    frame = kitti.read(synthetic)[0]
    camera = frame.cameras["image_2"]
    path = save(tmp_path / "image.jpg", camera.image_HWC, quality=95)
    with fake_cuda():
        decoded = replace(camera, image_HWC=read_image(path, "cuda"))
        focal_px = float(camera.intrinsics[0, 0]) / 2
        expected, scale = image_at_focal_length(replace(camera, image_HWC=decoded.image_HWC.copy()), focal_px, "cuda")
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pytest.fail("it was uploaded"))
        found, same_scale = image_at_focal_length(decoded, focal_px, "cuda")
        assert scale == same_scale and torch.equal(found.cpu(), expected.cpu())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_gpu_decodes_within_a_few_grey_levels(tmp_path, pixels, mode):
    path = save(tmp_path / "image.jpg", pixels, mode, quality=95)
    found, expected = read_image(path, "cuda"), read_image(path)
    assert isinstance(found, DeviceImage)
    assert np.abs(found.astype(int) - expected).mean() < 2
