"""Draws frames into one picture: the images with projected boxes, above a bird's-eye view of the points."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from apps.driving.adapters.projection import edge_pixels
from apps.driving.types import Boxes3D, Camera, Floats, Frame, left_to_right

WIDTH = 1242
PLAN_HEIGHT = 700
COLOURS = {"car": "#ff9f1c", "van": "#ffd166", "truck": "#ffd166", "pedestrian": "#2ec4b6", "cyclist": "#e056fd"}
_OTHER, _TRUTH, _BACKGROUND = "#8ecae6", "#e8e8e8", "#10161d"


def draw(frame: Frame, boxes: Boxes3D) -> bytes:
    """The picture of one frame as PNG."""
    return draw_all([frame], [boxes])


def draw_all(frames: Sequence[Frame], boxes: Sequence[Boxes3D]) -> bytes:
    """The pictures of several frames, one below the other, as PNG."""
    picture = _stack([_draw_frame(frame, found) for frame, found in zip(frames, boxes, strict=True)])
    out = io.BytesIO()
    # Higher compression takes longer than everything else here and saves only a seventh of the size.
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _draw_frame(frame: Frame, boxes: Boxes3D) -> Image.Image:
    """The cameras at the top (three per row if there are several), the bird's-eye view below, x (forward) to the right.

    Boxes have the colour of their class, with class and score; ground truth, if known, is thin and white.
    """
    views = [_view(camera, boxes, frame.truth) for camera in left_to_right(frame.cameras).values()]
    strips = _rows(views)
    if frame.points_lidar_m is not None or not strips:
        strips.append(_draw_plan(frame, boxes))
    return _stack(strips)


def _stack(strips: Sequence[Image.Image]) -> Image.Image:
    """Stacks strips with the width of the picture vertically."""
    if len(strips) == 1:
        return strips[0]
    picture = Image.new("RGB", (WIDTH, sum(strip.height for strip in strips)), _BACKGROUND)
    top = 0
    for strip in strips:
        picture.paste(strip, (0, top))
        top += strip.height
    return picture


def _rows(views: Sequence[Image.Image]) -> list[Image.Image]:
    columns = 1 if len(views) == 1 else 3
    rows = []
    for start in range(0, len(views), columns):
        row = views[start : start + columns]
        width = WIDTH // columns
        scaled = [view.resize((width, round(view.height * width / view.width))) for view in row]
        strip = Image.new("RGB", (WIDTH, max(view.height for view in scaled)), _BACKGROUND)
        for column, view in enumerate(scaled):
            strip.paste(view, (column * width, 0))
        rows.append(strip)
    return rows


def _view(camera: Camera, boxes: Boxes3D, truth: Boxes3D | None) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(camera.image_HWC)).convert("RGB")
    pen = ImageDraw.Draw(picture)
    line = max(1, picture.width // 600)
    if truth is not None:
        _draw_boxes(pen, truth, camera, [_TRUTH] * len(truth), 1)
    _draw_boxes(pen, boxes, camera, [COLOURS.get(name, _OTHER) for name in boxes.names], line)
    return picture


def _draw_boxes(pen: ImageDraw.ImageDraw, boxes: Boxes3D, camera: Camera, colours: Sequence[str], width: int) -> None:
    limit = 4 * max(camera.image_HWC.shape[:2])
    for edges, colour in zip(edge_pixels(boxes, camera.intrinsics, camera.lidar_to_camera), colours, strict=True):
        for edge in edges:
            if not np.isnan(edge).any() and np.abs(edge).max() < limit:
                pen.line([(float(x), float(y)) for x, y in edge], fill=colour, width=width)


def _draw_plan(frame: Frame, boxes: Boxes3D) -> Image.Image:
    """The bird's-eye view: x points right, rings every 20 m, wide enough to the sides for every box."""
    points = np.zeros((0, 4), np.float32) if frame.points_lidar_m is None else frame.points_lidar_m
    all_round = frame.all_round
    span = 140.0 if all_round else 76.0
    lateral = float(np.abs(boxes.centre_lidar_m[:, 1]).max()) + 3 if len(boxes) else 0.0
    scale = min(WIDTH / span, PLAN_HEIGHT / 2 / max(lateral, 1))
    origin = (WIDTH / 2 if all_round else 4 * scale, PLAN_HEIGHT / 2)

    def to_pixels(xy: Floats) -> list[tuple[float, float]]:
        return [(origin[0] + float(x) * scale, origin[1] - float(y) * scale) for x, y in xy]

    canvas = np.zeros((PLAN_HEIGHT, WIDTH, 3), np.uint8) + np.array([16, 22, 29], np.uint8)
    column = (origin[0] + points[:, 0] * scale).astype(np.int64)
    row = (origin[1] - points[:, 1] * scale).astype(np.int64)
    inside = (column >= 0) & (column < WIDTH) & (row >= 0) & (row < PLAN_HEIGHT)
    order = np.argsort(points[inside, 2], kind="stable")
    canvas[row[inside][order], column[inside][order]] = _colours_by_height(points[inside, 2][order])
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    for ring in range(20, 101, 20):
        radius = ring * scale
        pen.ellipse((origin[0] - radius, origin[1] - radius, origin[0] + radius, origin[1] + radius), outline="#2c3a48")
        pen.text((origin[0] + radius + 3, origin[1] + 2), f"{ring} m", fill="#6b7f92", font=font)
    for index, corners in enumerate(boxes.corners_lidar_m()[:, :4, :2]):
        colour = COLOURS.get(boxes.names[index], _OTHER)
        pen.polygon(to_pixels(corners), outline=colour, width=2)
        # From the centre to the middle of the front, to show the heading.
        pen.line(to_pixels(np.stack([corners.mean(0), (corners[0] + corners[3]) / 2])), fill=colour, width=2)
        score = "" if boxes.scores is None else f" {boxes.scores[index]:.2f}"
        left, top = to_pixels(corners.max(0)[None])[0]
        pen.text((left + 4, top - 6), f"{boxes.names[index]}{score}", fill=colour, font=font)
    if frame.truth is not None:
        # Drawn last, because boxes would cover the labels that they match.
        for corners in frame.truth.corners_lidar_m()[:, :4, :2]:
            pen.polygon(to_pixels(corners), outline=_TRUTH)
    pen.polygon(
        to_pixels(np.array([[1.5, 0.9], [2.2, 0], [1.5, -0.9], [-2.5, -0.9], [-2.5, 0.9]], np.float32)),
        outline="#ffffff",
    )
    return picture


def _colours_by_height(z: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """From blue on the road through green to light at the top; dim enough for the boxes to stand out."""
    fraction = np.clip((z + 2.0) / 4.0, 0, 1)[:, None]
    low, middle, high = (np.array(c, np.float32) for c in ((52, 84, 126), (84, 150, 140), (200, 205, 190)))
    blend = np.where(fraction < 0.5, low + (middle - low) * fraction * 2, middle + (high - middle) * (fraction * 2 - 1))
    colours: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = blend.astype(np.uint8)
    return colours
