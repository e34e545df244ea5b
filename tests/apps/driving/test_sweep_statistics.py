"""The statistics that compare real and synthetic sweeps, on points with known values."""

import numpy as np
import pytest

from apps.driving.datasets.sweep_statistics import main, statistics, table


def test_the_statistics_of_a_flat_road_and_of_a_wall():
    side = np.arange(0.01, 0.32, 0.02)
    x, y = np.meshgrid(12.8 + side, side)
    road = np.stack([x.ravel(), y.ravel(), np.full(x.size, -1.7), 0 * x.ravel()], 1)
    wall = np.stack([np.full(50, 25.61), np.full(50, 0.1), np.linspace(-1.7, 0.8, 50), np.zeros(50)], 1)
    behind = road * [-1, 1, 1, 1]
    found = statistics(np.concatenate([road, wall, behind]).astype(np.float32))
    assert found["returns"] == len(road) + 50
    assert found["10 to 20 m: pillars"] == found["20 to 30 m: pillars"] == 1 and found["0 to 10 m: pillars"] == 0
    assert found["10 to 20 m: % of pillars over 0.3 m high"] == 0
    assert found["20 to 30 m: % of pillars over 2.0 m high"] == 100
    assert found["10 to 20 m: roughness of flat pillars, mm"] == pytest.approx(0, abs=0.1)
    assert found["20 to 30 m: height, 50 %"] == pytest.approx(-0.45, abs=0.03)


def test_the_table_is_printed_and_a_missing_folder_refused(capsys, tmp_path):
    points = np.random.default_rng(0).uniform((0, -30, -1.8, 0), (60, 30, 1, 1), (5000, 4)).astype(np.float32)
    lines = table([points, points[:2500]], [points]).splitlines()
    assert lines[1].split() == ["returns", "3750", "[2500,", "5000]", "5000", "[5000,", "5000]"]
    assert len(lines) == 2 + 5 * 9
    assert main([str(tmp_path)]) == 2
    assert "give a folder of sweeps" in capsys.readouterr().err
