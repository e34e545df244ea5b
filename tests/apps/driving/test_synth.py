"""Synthetic scenes: reproducible from the seed, and consistent with their ground truth."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.driving.datasets.synth import surroundings
from apps.driving.datasets.synth.casting import GROUND, NOTHING, Bank, Ground, Quadric, cast
from apps.driving.datasets.synth.export import write_frame
from apps.driving.datasets.synth.image import camera_rays
from apps.driving.datasets.synth.layout import KINDS, SCATTERED, PlacedShape, Street, lay_out
from apps.driving.datasets.synth.road_users import cyclist, pedestrian, vehicle
from apps.driving.datasets.synth.scenes import MIN_POINTS, returns, scene
from apps.driving.datasets.synth.sensors import LIDARS, Sensors, beams, lidar_rays
from apps.driving.datasets.synth.shapes import Shape, block, ellipsoid, place
from apps.driving.types import Boxes3D, LidarInput, within

SURROUNDINGS = (
    *(getattr(surroundings, what) for what, _, _ in SCATTERED),
    surroundings.works_barrier,
    surroundings.traffic_cone,
)
FLAT = Ground(-1.73, (0.0, 0.0), 0.0, 0.0, 100.0, 0.0, np.zeros((0, 4), np.float32))


def rays(**sensors):
    return beams(np.linspace(2, -24, 64), 0.0, Sensors(**sensors), np.random.default_rng(0))


def test_rays_hit_a_flat_ground_and_the_face_of_a_block_at_the_right_distance():
    looking = rays()
    wall = place(Shape([block((-1, -30, 0), (1, 30, 9), 4)], (2, 60, 9)), 21.0, 0.0, -1.73, 0.0, 0)
    hits = cast(looking, FLAT, [wall], np.random.default_rng(0), 80)
    points = looking.directions * hits.distance[..., None]
    assert (hits.instance == NOTHING).sum() == 0
    assert points[hits.instance == GROUND][:, 2] == pytest.approx(-1.73, abs=1e-3)
    assert points[hits.instance == 0][:, 0] == pytest.approx(20, abs=1e-3)
    assert (points[hits.instance == GROUND][:, 0] < 20.01).all()
    # A ray hits the wall if it would hit the ground only behind the wall's face.
    ahead = looking.directions[..., 0] * 1.73 / np.maximum(-looking.directions[..., 2], 1e-9)
    assert ((hits.instance == 0) == ((looking.directions[..., 2] > 0) | (ahead > 20)))[np.abs(ahead - 20) > 0.01].all()


def test_a_sphere_is_hit_at_its_radius():
    ball = place(Shape([ellipsoid((0, 0, 1.5), (1.5, 1.5, 1.5), 4)], (3, 3, 3)), 12.0, 2.0, -1.73, 0.7, 0)
    looking = rays()
    hits = cast(looking, FLAT, [ball], np.random.default_rng(0), 80)
    met = hits.instance == 0
    points = (looking.directions * hits.distance[..., None])[met]
    centre = np.array([12, 2, -0.23])
    assert met.sum() > 300
    assert np.linalg.norm(points - centre, axis=1) == pytest.approx(1.5, abs=1e-3)
    assert hits.normal[met] == pytest.approx((points - centre) / 1.5, abs=1e-3)


@settings(max_examples=30)
@given(x=st.floats(-40, 40), y=st.floats(-40, 40), yaw=st.floats(-4, 4))
def test_no_ray_outside_the_window_would_hit_the_solid(x, y, yaw):
    solid = place(Shape([block((-2, -0.8, 0), (2, 0.8, 1.5), 4)], (4, 1.6, 1.5)), x, y, -1.73, yaw, 0)
    looking = rays(field_of_view_deg=360, azimuth_step_deg=0.9)
    everything = type(looking)(looking.origin, looking.directions, lambda corners: [(slice(None), slice(None))])
    some, all_ = (cast(r, FLAT, [solid], np.random.default_rng(0), 80) for r in (looking, everything))
    assert np.array_equal(some.instance, all_.instance)


def test_a_bank_rises_beside_the_road_and_is_level_above():
    bank = Bank(1, 6.0, 0.5, 1.0)
    land = Ground(-1.73, (0.0, 0.0), 0.0, 0.0, 5.0, 0.0, np.zeros((0, 4), np.float32), (bank,))
    looking = rays(field_of_view_deg=180)
    hits = cast(looking, land, [], np.random.default_rng(0), 80)
    points = (looking.directions * hits.distance[..., None])[hits.instance == GROUND]
    left = points[:, 1]
    assert ((left > 6) & (left < 8)).sum() > 300 and (left > 8).sum() > 300 and (left < 0).sum() > 3000
    expected = -1.73 + np.clip((left - 6) * 0.5, 0, 1)
    assert points[:, 2] == pytest.approx(expected, abs=1e-3)
    assert land.elevation(points[:, 0], left) == pytest.approx(expected, abs=1e-3)
    # Even rays above the ground level at the sensor hit the bank, which hides what is behind it.
    beside = np.abs(np.arctan2(left, points[:, 0]) - np.pi / 3) < 0.02
    assert points[beside][:, 2].max() > -0.75


def test_the_beam_blocks_have_the_same_origins_as_in_kitti():
    # Fitted to the lines of elevation against distance on which the points of a beam lie in KITTI's five sweeps.
    upper, lower = lidar_rays(Sensors(), np.random.default_rng(3))
    assert upper.origin[2] == pytest.approx(0.204, abs=1e-6) and lower.origin[2] == pytest.approx(0.120, abs=1e-6)
    for rays_, first, last in ((upper, 1.94, -8.71), (lower, -9.03, -25.0)):
        elevation = np.rad2deg(np.arcsin(rays_.directions[:, 0, 2]))
        assert elevation[[0, -1]] == pytest.approx([first, last], abs=0.9)
        assert (np.diff(elevation) < 0).all()


def test_light_through_glass_returns_from_inside_the_car():
    # At 3 m from the sensor much light passes through the side windows. The range noise is 12 mm: no return of the
    # car is 8 cm outside its box.
    draw = np.random.default_rng(4)
    for yaw in (0.0, 0.3, 1.5):
        car = vehicle("car", draw)
        looking = rays(field_of_view_deg=180)
        hits = cast(looking, FLAT, [place(car, 0.5, 4.0, -1.73, yaw, 0)], draw, 80)
        points, instances = returns(looking, hits, [PlacedShape(car, 0.5, 4.0, yaw)], Sensors(), draw)
        size = np.array(car.size, np.float32)
        box = Boxes3D(
            centre_lidar_m=np.array([[0.5, 4.0, -1.73 + size[2] / 2]], np.float32),
            size_m=size[None] + np.float32(0.16),
            yaw=np.array([yaw], np.float32),
            names=("car",),
        )
        mine = points[instances == 0]
        assert len(mine) > 2000
        assert box.inside(mine).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_scene(kind):
    first, second = (scene(np.random.default_rng(5), kind=kind) for _ in range(2))
    assert np.array_equal(first.points_lidar_m, second.points_lidar_m)
    assert np.array_equal(first.truth.array, second.truth.array)
    assert not np.array_equal(first.points_lidar_m, scene(np.random.default_rng(6), kind=kind).points_lidar_m)


@pytest.fixture(scope="module")
def scenes():
    return [scene(np.random.default_rng(seed)) for seed in range(12)]


def test_boxes_contain_the_returns_of_their_objects(scenes):
    # The returns attributed to an object by the ray caster and the points in its box differ by noise, by glass that
    # light passes through, and by other points in the box (the ground under a car).
    counted = np.concatenate([frame.truth.point_counts for frame in scenes])
    inside = np.concatenate([frame.truth.inside(frame.points_lidar_m).sum(1) for frame in scenes])
    many = counted >= 50
    assert many.sum() > 30
    assert np.median(inside[many] / counted[many]) == pytest.approx(1, abs=0.1)
    assert (inside[many] > 0.6 * counted[many]).all()


def test_points_look_like_those_of_a_real_sensor(scenes):
    for frame in scenes:
        points = frame.points_lidar_m
        assert points.dtype == np.float32
        assert 20_000 < len(points) < 33_000
        assert np.isfinite(points).all()
        assert (points[:, 3] >= 0).all() and (points[:, 3] < 1).all()
        assert np.abs(np.arctan2(points[:, 1], points[:, 0])).max() < np.deg2rad(45.2)
        distance = np.linalg.norm(points[:, :3], axis=1)
        assert distance.min() > 1.2 and distance.max() < 81


def test_vehicles_do_not_overlap(scenes):
    from apps.driving.metrics.overlap import bev_iou

    for frame in scenes:
        boxes = frame.truth.array[:, [0, 1, 3, 4, 6]]
        overlap = bev_iou(boxes, boxes)
        assert overlap[~np.eye(len(boxes), dtype=bool)].max(initial=0) < 0.05


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_shapes_stay_within_their_size(seed):
    draw = np.random.default_rng(seed)
    for shape in (vehicle("car", draw), vehicle("van", draw), vehicle("truck", draw), pedestrian(draw), cyclist(draw)):
        solid = place(shape, 9.0, 0.0, -1.73, 0.4, 0)
        looking = rays()
        hits = cast(looking, FLAT, [solid], np.random.default_rng(0), 80)
        points = (looking.directions * hits.distance[..., None])[hits.instance == 0]
        local = points - np.array([9.0, 0, -1.73 + shape.size[2] / 2], np.float32)
        turned = np.stack(
            [
                local[:, 0] * np.cos(0.4) + local[:, 1] * np.sin(0.4),
                local[:, 1] * np.cos(0.4) - local[:, 0] * np.sin(0.4),
                local[:, 2],
            ]
        )
        assert (np.abs(turned).max(axis=1) <= np.array(shape.size) / 2 + 0.03).all(), shape.name


def test_the_front_of_a_car_is_rounded_in_bev():
    # 8 m ahead and facing the sensor. The number plate and the middle of the bumper are in front of
    # its ends, as on real cars, and the middle reaches the end of the box.
    draw = np.random.default_rng(12)
    for _ in range(5):
        car = vehicle("car", draw)
        looking = rays()
        hits = cast(looking, FLAT, [place(car, 8.0, 0.0, -1.73, np.pi, 0)], draw, 80)
        points = (looking.directions * hits.distance[..., None])[hits.instance == 0]
        length, width, height = car.size
        behind, aside = points[:, 0] - (8.0 - length / 2), np.abs(points[:, 1]) / (width / 2)
        low = points[:, 2] + 1.73 < 0.4 * height
        middle, end = (behind[low & (aside > a) & (aside < b)].min() for a, b in ((0, 0.2), (0.9, 1)))
        assert middle == pytest.approx(0, abs=0.08)
        assert 0.1 < end - middle < 0.5


def test_image_and_ground_truth_agree():
    frame = scene(np.random.default_rng(21), sensors=Sensors(image_scale=0.25), kind="street")
    camera, truth = frame.cameras["image_2"], frame.truth
    assert camera.image_HWC.shape == (94, 310, 3)
    assert camera.image_HWC.std() > 10
    assert set(truth.occlusion.tolist()) <= {0, 1, 2, 3}
    shown = ~np.isnan(truth.box_2d[:, 0])
    assert shown.any()
    assert (truth.truncation[shown] < 1).all()
    assert (truth.truncation[~shown] == 1).all()
    assert (truth.box_2d[shown, 2:] > truth.box_2d[shown, :2]).all()


def test_a_hidden_car_is_labelled_as_occluded():
    from apps.driving.datasets.synth.image import render

    transform = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float32)
    draw = np.random.default_rng(2)
    car = vehicle("car", draw)
    screen = Shape([block((-0.1, -3, 0), (0.1, 3, 3), 4)], (0.2, 6, 3))
    solids = [place(car, 20.0, 0.0, -1.73, 0.1, 0), place(screen, 10.0, 3.0, -1.73, 0.0, 1)]
    _, seen = render(FLAT, solids, transform, 0.5, draw)
    alone, shown = seen[0]
    # The edge of the screen is on the optical axis and hides the left half of the car.
    assert 0.3 < shown / alone < 0.7
    assert camera_rays(np.eye(3, dtype=np.float32), transform, (2, 3)).directions.shape == (2, 3, 3)


def test_porous_parts_let_light_through():
    hedge = Quadric(np.eye(3, dtype=np.float32) / 2, np.array([10, 0, 0], np.float32), 7, False, 0.4)
    solid = place(Shape([hedge], (4, 4, 4)), 0.0, 0.0, 0.0, 0.0, 0)
    solid = type(solid)(solid.parts, solid.corners + np.array([10, 0, -2], np.float32), 0)
    looking = rays()
    dense = type(solid)([Quadric(hedge.matrix, hedge.centre, 7)], solid.corners, 0)
    porous, full = (cast(looking, FLAT, [s], np.random.default_rng(0), 80) for s in (solid, dense))
    share = (porous.instance == 0).sum() / (full.instance == 0).sum()
    assert share == pytest.approx(0.6, abs=0.05)


def test_boxes_with_too_few_returns_are_flagged(scenes):
    counts = np.concatenate([frame.truth.point_counts for frame in scenes])
    assert (counts < MIN_POINTS).any() and (counts >= MIN_POINTS).any()
    assert (counts > 0).all()


@pytest.mark.parametrize("name", LIDARS)
def test_every_lidar_sees_the_scene_with_its_own_beams(name):
    sensors = replace(LIDARS[name], field_of_view_deg=40.0)
    frame = scene(np.random.default_rng(8), sensors=sensors, kind="street")
    turns = 40 / sensors.azimuth_step_deg
    beams_ = sum(len(elevations) for elevations, _ in sensors.blocks)
    assert 0.2 * turns * beams_ < len(frame.points_lidar_m) <= turns * beams_ + beams_
    low = np.quantile(frame.points_lidar_m[:, 2], 0.1)
    assert low == pytest.approx(-sensors.height_m, abs=4 * sensors.height_spread_m + 0.4)


def test_vehicles_have_the_sizes_of_the_requested_data_set():
    means = {
        sizes: np.mean([vehicle("car", np.random.default_rng(n), sizes).size for n in range(300)], axis=0)
        for sizes in ("kitti", "wide")
    }
    assert means["kitti"] == pytest.approx([3.88, 1.63, 1.53], abs=0.08)
    assert means["wide"] == pytest.approx([4.62, 1.93, 1.70], abs=0.08)


def test_returns_from_the_own_vehicle_exist_and_are_removed_for_the_network():
    sensors = replace(LIDARS["hdl32e"], field_of_view_deg=360.0)
    points = scene(np.random.default_rng(3), sensors=sensors, kind="street").points_lidar_m
    on_bonnet = (np.abs(points[:, :2]) < (2.6, 1.1)).all(axis=1)
    assert on_bonnet.sum() > 50 and points[on_bonnet, 2].max() > -1.0
    around = (-20.0, -20.0, -4.0, 20.0, 20.0, 2.0)
    cropped = LidarInput(range_m=around, own_vehicle_m=(2.6, 1.1)).crop(points)
    assert len(cropped) == within(points, around).sum() - within(points[on_bonnet], around).sum()
    assert not (np.abs(cropped[:, :2]) < (2.6, 1.1)).all(axis=1).any()


@pytest.mark.parametrize("make", SURROUNDINGS)
def test_surroundings_stay_within_their_placement_outline(make):
    for seed in range(3):
        shape = make(np.random.default_rng(seed))
        length, width, height = (side + 0.6 for side in shape.size)
        solid_parts = [replace(part, porosity=0.0) for part in shape.parts]
        hull = place(Shape(solid_parts, (length, width, height)), 15.0, 0.0, -1.73, 0.4, 0)
        looking = rays(azimuth_step_deg=0.3)
        hits = cast(type(looking)(looking.origin, looking.directions, everywhere), FLAT, [hull], draw(seed), 80)
        assert (hits.instance == 0).sum() > 5
        wide = cast(type(looking)(looking.origin, looking.directions, everywhere), FLAT, [grown(hull)], draw(seed), 80)
        assert (wide.instance == 0).sum() <= 1.02 * (hits.instance == 0).sum() + 2


def test_crowns_overhang_cars_and_people():
    sensors = replace(LIDARS["vlp32c_pair"], field_of_view_deg=360.0)
    above, cars = 0, 0
    for seed in range(12):
        frame = scene(np.random.default_rng(seed), sensors=sensors, kind=("street", "alley")[seed % 2])
        truth = frame.truth
        seen = truth.point_counts >= MIN_POINTS
        overhead = replace(truth, centre_lidar_m=truth.centre_lidar_m + np.array([0, 0, 2], np.float32))
        cars += seen.sum()
        above += ((overhead.inside(frame.points_lidar_m).sum(1) >= 3) & seen).sum()
    assert cars > 100 and above > 0.05 * cars


def test_hedges_come_close_to_cars_without_passing_through_them():
    gaps = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        placed = lay_out("alley", FLAT_LANE, generator, -3.0, 80.0)
        cars = [placed_object for placed_object in placed if placed_object.shape.name == "car"]
        hedges = [
            placed_object
            for placed_object in placed
            if placed_object.shape.name is None and (placed_object.shape.footprint or (0, 0))[1] > 0.95
        ]
        for car in cars:
            places = [corners(hedge) for hedge in hedges]
            gaps += [min((distance(corners(car), place) for place in places), default=np.inf)]
    assert len(gaps) > 60
    assert min(gaps) > 0
    assert np.mean(np.array(gaps) < 0.5) > 0.05


def test_other_objects_are_close_to_vehicles():
    close = []
    for number in range(16):
        frame = scene(np.random.default_rng((3, number)), sensors=Sensors(field_of_view_deg=180.0))
        points, inside = frame.points_lidar_m, frame.truth.inside(frame.points_lidar_m)
        for box, name, own in zip(frame.truth.array, frame.truth.names, inside, strict=True):
            if name != "car" or own.sum() < 20:
                continue
            away = points[:, :3] - box[:3]
            cosine, sine = np.cos(box[6]), np.sin(box[6])
            along = np.abs(away[:, 0] * cosine + away[:, 1] * sine) - box[3] / 2
            across = np.abs(away[:, 1] * cosine - away[:, 0] * sine) - box[4] / 2
            apart, height = np.maximum(along, across), away[:, 2] + box[5] / 2
            beside = (apart > 0.05) & (apart < 1.2) & (height > 0.35) & (height < box[5] + 0.3)
            close.append((beside & ~inside.any(axis=0)).sum() > 0.1 * own.sum())
    # In the available real frames, 9 of 21 such cars have as many returns beside them.
    assert len(close) > 50 and 0.3 < np.mean(close) < 0.6


def test_road_works_barriers_form_a_line_and_are_not_labelled():
    lines = []
    for seed in range(12):
        street = Street(FLAT_LANE, np.random.default_rng(seed), -3.0, 80.0)
        street.road_works(1, 3.0)
        assert all(placed_object.shape.name is None for placed_object in street.placed)
        tops = [placed_object.shape.size[2] for placed_object in street.placed]
        assert len(tops) >= 3 and min(tops) > 0.4 and max(tops) < 1.25
        places = np.array([(placed_object.x, placed_object.y) for placed_object in street.placed])
        # Along the road they follow one another; across it they stay on a line that slowly leaves the kerb.
        lines.append(np.ptp(places[:, 0]) / (np.ptp(places[:, 1]) + 0.5))
        assert np.abs(np.diff(places[:, 1])).max() < 3.5
    assert np.median(lines) > 2


FLAT_LANE = Ground(-1.73, (0.0, 0.0), 0.0, 1.0, 3.0, 0.0, np.zeros((0, 4), np.float32))


def corners(placed_object):
    """The outline of a footprint as a dense line (N, 2)."""
    length, width = placed_object.shape.footprint or placed_object.shape.size[:2]
    at = np.linspace(-1, 1, 24)
    line = np.concatenate([np.stack([at, np.full(24, end)], 1) for end in (-1, 1)])
    line = np.concatenate([line, line[:, ::-1]]) * (length / 2, width / 2)
    cosine, sine = np.cos(placed_object.yaw), np.sin(placed_object.yaw)
    return line @ np.array([[cosine, sine], [-sine, cosine]]) + (placed_object.x, placed_object.y)


def distance(some, others):
    return np.hypot(*(some[:, None] - others[None]).transpose(2, 0, 1)).min()


def everywhere(corners):
    return [(slice(None), slice(None))]


def draw(seed):
    return np.random.default_rng(seed)


def grown(solid):
    middle = solid.corners.mean(axis=0)
    return replace(solid, corners=middle + 3 * (solid.corners - middle))


def test_a_frame_is_not_written_to_a_folder_that_was_removed(tmp_path):
    """The folder of a cancelled job would come back otherwise."""
    frame = scene(np.random.default_rng(3), sensors=Sensors(image_scale=0.1), kind="street")
    with pytest.raises(FileNotFoundError):
        write_frame(frame, tmp_path / "removed" / "frames", "000000")
    assert list(tmp_path.iterdir()) == []
