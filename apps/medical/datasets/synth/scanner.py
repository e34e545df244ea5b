"""Simulates a scanner: slice thickness, reconstruction kernel, and noise with the texture of that kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from apps.medical.datasets.synth.fields import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Scanner:
    """The acquisition parameters. Lengths are in mm, except for ``blur`` and ``grain``, which are in pixels.

    blur      standard deviation of the kernel's point spread
    noise_hu  standard deviation of the noise
    grain     correlation length of the noise
    ramp      0 for white noise with that grain, up to 1 for noise without low frequencies, as from sharp kernels: the
              noise power spectrum of filtered backprojection is 0 at frequency 0 (Riederer et al., Phys. Med. Biol.
              23(3), 1978)
    streaks   amplitude of left-to-right streaks relative to the other noise, as at the shoulders
    sharpen   edge enhancement of the kernel
    offset    distance of the first slice below the first output height
    """

    slice_spacing: float
    slice_thickness: float
    blur: float
    noise_hu: float
    grain: float
    sharpen: float
    offset: float
    ramp: float = 0.0
    streaks: float = 0.0

    @classmethod
    def draw(cls, random: np.random.Generator, *, spacing_mm: float | None = None) -> Scanner:
        """Draws a scanner, from thin noisy slices to smooth ones of 5 mm.

        The noise is 20 to 80 HU, and less with thick slices and smooth kernels.
        """
        kind = random.random()
        drawn = 1.25 if kind < 0.4 else float(random.uniform(1.25, 3.2) if kind < 0.65 else random.uniform(3.2, 6.0))
        if random.random() < 0.35 and kind >= 0.65:
            drawn = 5.0
        spacing = drawn if spacing_mm is None else spacing_mm
        thickness = max(spacing * float(random.choice([1.0, 1.0, 1.0, 1.25, 0.6])), 1.0)
        sharp = random.random() < 0.45
        noise = float(np.exp(random.uniform(np.log(20), np.log(80)))) * (1.0 if sharp else 0.75)
        return cls(
            slice_spacing=spacing,
            slice_thickness=thickness,
            blur=float(random.uniform(0.2, 0.45) if sharp else random.uniform(0.45, 0.85)),
            noise_hu=max(noise / float(np.sqrt(max(1.0, thickness / 2))), 10.0),
            grain=float(random.uniform(0.4, 0.65) if sharp else random.uniform(0.6, 1.1)),
            sharpen=float(random.uniform(0.3, 1.4)) if sharp else 0.0,
            offset=float(random.uniform(0, spacing)),
            ramp=float(random.uniform(0.5, 1.0)),
            streaks=float(random.uniform(0.2, 0.8)) if random.random() < 0.25 else 0.0,
        )

    def averaged(self, times: int, min_mm: float) -> Scanner:
        """The equivalent scanner of an image in which ``times`` pixels along each axis are averaged to one.

        ``min_mm`` is the minimum of slice spacing and thickness.
        """
        return replace(
            self,
            slice_spacing=max(self.slice_spacing, min_mm),
            slice_thickness=max(self.slice_thickness, min_mm),
            blur=self.blur / times,
            noise_hu=self.noise_hu / times**1.25,
            grain=max(self.grain / times, 0.3),
            ramp=self.ramp / times,
            sharpen=self.sharpen / times,
        )

    def aligned(self) -> Scanner:
        """The same scanner with its first slice at the start of the image."""
        return replace(self, offset=0.0)

    def noise(self, random: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Noise of shape (X, Y, slices) in HU, independent between slices."""
        white = random.standard_normal(shape, np.float32)
        fine = ndimage.gaussian_filter(white, (self.grain, self.grain, 0), truncate=3)
        if self.ramp > 0:
            sigma = 2.2 * self.grain
            fine -= np.float32(self.ramp) * ndimage.gaussian_filter(white, (sigma, sigma, 0), truncate=2)
        if self.streaks > 0:
            streaks = ndimage.gaussian_filter1d(ndimage.gaussian_filter1d(white, 9, axis=0, truncate=2), 0.5, axis=1)
            fine = fine / fine.std() + np.float32(self.streaks) * streaks / streaks.std()
        return np.asarray(fine * np.float32(self.noise_hu / fine.std()), np.float32)


def acquire(image: Array, z_mm: Array, out_z_mm: Array, scanner: Scanner, random: np.random.Generator) -> Array:
    """Averages a finely spaced image to slices of the scanner's thickness and interpolates these at ``out_z_mm``.

    If the scanner's spacing is that of the output, ``out_z_mm`` are the positions of the slices. Noise is added to the
    slices.
    """
    first = out_z_mm[0] - scanner.offset
    count = int(np.ceil((out_z_mm[-1] - first) / scanner.slice_spacing)) + 1
    slices = first + scanner.slice_spacing * np.arange(count)
    distance = np.abs(z_mm[:, None] - slices[None, :])
    half_step = (z_mm[1] - z_mm[0]) / 2
    weight = np.clip((scanner.slice_thickness / 2 + half_step - distance) / (2 * half_step), 0, 1)
    weight += 1e-6 * np.exp(-distance)
    weight /= weight.sum(axis=0)
    acquired = image @ weight.astype(np.float32)
    if scanner.blur > 0:
        acquired = ndimage.gaussian_filter(acquired, (scanner.blur, scanner.blur, 0), truncate=3)
    if scanner.sharpen > 0:
        acquired += scanner.sharpen * (acquired - ndimage.gaussian_filter(acquired, (1.0, 1.0, 0), truncate=3))
    if scanner.noise_hu > 0:
        acquired += scanner.noise(random, acquired.shape)
    position = np.clip((out_z_mm - slices[0]) / scanner.slice_spacing, 0, count - 1)
    lower = np.minimum(position.astype(int), max(count - 2, 0))
    upper_weight = (position - lower).astype(np.float32)
    upper = np.minimum(lower + 1, count - 1)
    output = acquired[..., lower] * (1 - upper_weight) + acquired[..., upper] * upper_weight
    return np.asarray(np.clip(output, -1024, 3071))
