"""Which of mmdet3d's shipped configurations run here, and why the others do not. Imports no torch.

``trivium models driving`` prints this table; tests/apps/driving/test_families.py runs every row of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.app import Table
from shared.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Configurations that run in the same way.

    ``data`` is the data set that they were trained on, which sets the layout of points, the axes and the classes.
    """

    name: str
    sensor: Literal["lidar", "camera"]
    data: Literal["KITTI", "nuScenes"]
    configurations: tuple[str, ...]


FAMILIES = (
    Family(
        name="PointPillars, KITTI",
        sensor="lidar",
        data="KITTI",
        configurations=(
            "pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class",
            "pointpillars_hv_secfpn_8xb6-160e_kitti-3d-car",
            "hv_pointpillars_secfpn_3x8_100e_det3d_kitti-3d-car",
            "hv_pointpillars_secfpn_4x8_80e_pcdet_kitti-3d-3class",
        ),
    ),
    Family(
        name="PointPillars with dynamic voxelisation, KITTI",
        sensor="lidar",
        data="KITTI",
        configurations=("pointpillars_dv_secfpn_8xb6-160e_kitti-3d-car",),
    ),
    Family(
        name="PointPillars with FPN, nuScenes",
        sensor="lidar",
        data="nuScenes",
        configurations=(
            "pointpillars_hv_fpn_sbn-all_8xb4-2x_nus-3d",
            "pointpillars_hv_fpn_sbn-all_8xb2-amp-2x_nus-3d",
        ),
    ),
    Family(
        name="PointPillars with SECOND's FPN, nuScenes",
        sensor="lidar",
        data="nuScenes",
        configurations=(
            "pointpillars_hv_secfpn_sbn-all_8xb4-2x_nus-3d",
            "pointpillars_hv_secfpn_sbn-all_8xb2-amp-2x_nus-3d",
        ),
    ),
    Family(
        name="PointPillars with RegNet, nuScenes",
        sensor="lidar",
        data="nuScenes",
        configurations=(
            "pointpillars_hv_regnet-400mf_secfpn_sbn-all_8xb4-2x_nus-3d",
            "pointpillars_hv_regnet-400mf_fpn_sbn-all_8xb4-2x_nus-3d",
            "pointpillars_hv_regnet-1.6gf_fpn_sbn-all_8xb4-2x_nus-3d",
        ),
    ),
    Family(
        name="FreeAnchor, nuScenes",
        sensor="lidar",
        data="nuScenes",
        configurations=(
            "pointpillars_hv_fpn_head-free-anchor_sbn-all_8xb4-2x_nus-3d",
            "pointpillars_hv_regnet-400mf_fpn_head-free-anchor_sbn-all_8xb4-2x_nus-3d",
            "pointpillars_hv_regnet-1.6gf_fpn_head-free-anchor_sbn-all_8xb4-2x_nus-3d",
            "pointpillars_hv_regnet-1.6gf_fpn_head-free-anchor_sbn-all_8xb4-strong-aug-3x_nus-3d",
            "pointpillars_hv_regnet-3.2gf_fpn_head-free-anchor_sbn-all_8xb4-2x_nus-3d",
            "pointpillars_hv_regnet-3.2gf_fpn_head-free-anchor_sbn-all_8xb4-strong-aug-3x_nus-3d",
        ),
    ),
    Family(
        name="SSN, nuScenes",
        sensor="lidar",
        data="nuScenes",
        configurations=(
            "ssn_hv_secfpn_sbn-all_16xb2-2x_nus-3d",
            "ssn_hv_regnet-400mf_secfpn_sbn-all_16xb2-2x_nus-3d",
        ),
    ),
    Family(
        name="CenterPoint with pillars, nuScenes",
        sensor="lidar",
        data="nuScenes",
        configurations=(
            "centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d",
            "centerpoint_pillar02_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d",
        ),
    ),
    Family(
        name="CenterPoint with pillars and deformable convolution, nuScenes",
        sensor="lidar",
        data="nuScenes",
        configurations=(
            "centerpoint_pillar02_second_secfpn_head-dcn_8xb4-cyclic-20e_nus-3d",
            "centerpoint_pillar02_second_secfpn_head-dcn-circlenms_8xb4-cyclic-20e_nus-3d",
        ),
    ),
    Family(
        name="FCOS3D with ResNet-101 and deformable convolution, nuScenes",
        sensor="camera",
        data="nuScenes",
        configurations=(
            "fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d",
            "fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d_finetune",
        ),
    ),
    Family(
        name="PGD, nuScenes",
        sensor="camera",
        data="nuScenes",
        configurations=(
            "pgd_r101-caffe_fpn_head-gn_16xb2-1x_nus-mono3d",
            "pgd_r101-caffe_fpn_head-gn_16xb2-1x_nus-mono3d_finetune",
            "pgd_r101-caffe_fpn_head-gn_16xb2-2x_nus-mono3d",
            "pgd_r101-caffe_fpn_head-gn_16xb2-2x_nus-mono3d_finetune",
        ),
    ),
    Family(
        name="PGD, KITTI",
        sensor="camera",
        data="KITTI",
        configurations=("pgd_r101-caffe_fpn_head-gn_4xb3-4x_kitti-mono3d",),
    ),
    Family(
        name="SMOKE, KITTI",
        sensor="camera",
        data="KITTI",
        configurations=("smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d",),
    ),
)

_SPARSE = "sparse convolution (mmcv's get_indice_pairs_3d_forward), which exists only for GPUs"
_POINT_SET_OPERATORS = (
    "operators on point sets (mmcv's furthest_point_sampling_forward and others), which exist only for GPUs"
)

REFUSED = (
    (
        "SECOND, voxel CenterPoint, Part-A2, PV-RCNN, SA-SSD, MVX-Net, Cylinder3D",
        (
            "second_",
            "hv_second_",
            "centerpoint_voxel",
            "parta2_",
            "hv_PartA2_",
            "pv_rcnn_",
            "sassd_",
            "mvxnet_",
            "cylinder3d_",
        ),
        f"it needs {_SPARSE}",
    ),
    (
        "MinkUNet, SPVCNN, FCAF3D",
        ("minkunet", "spvcnn_", "fcaf3d_"),
        "it needs sparse convolution from MinkowskiEngine, TorchSparse or spconv, which are separate compiled packages",
    ),
    (
        "3DSSD, PointRCNN",
        ("3dssd_", "point-rcnn_"),
        f"it needs {_POINT_SET_OPERATORS}",
    ),
    (
        "VoteNet, ImVoteNet, H3DNet, Group-Free 3D, PointNet++, PAConv",
        ("votenet_", "imvotenet_", "h3dnet_", "groupfree3d_", "pointnet2_", "paconv_"),
        f"it is for indoor scenes, and needs {_POINT_SET_OPERATORS}",
    ),
    ("DGCNN", ("dgcnn_",), "it segments indoor scenes, and needs mmcv's knn_forward, which exists only for GPUs"),
    (
        "Any configuration for Waymo",
        ("pointpillars_hv_secfpn_sbn-all_16xb2-2x_waymo", "pgd_r101_fpn"),
        "it needs Waymo's data (the elongation of returns, or Waymo's cameras), which no reader here provides",
    ),
    (
        "Any configuration for Lyft",
        (
            "pointpillars_hv_fpn_sbn-all_8xb2-2x_lyft",
            "pointpillars_hv_secfpn_sbn-all_8xb2-2x_lyft",
            "pointpillars_hv_regnet-400mf_fpn_sbn-all_8xb2-2x_lyft",
            "pointpillars_hv_regnet-400mf_fpn_sbn-all_range100_8xb2-2x_lyft",
            "pointpillars_hv_regnet-400mf_secfpn_sbn-all_8xb2-2x_lyft",
            "pointpillars_hv_regnet-400mf_secfpn_sbn-all_range100_8xb2-2x_lyft",
            "ssn_hv_secfpn_sbn-all_16xb2-2x_lyft",
            "ssn_hv_regnet-400mf_secfpn_sbn-all_16xb1-2x_lyft",
        ),
        "it needs Lyft's frames, which no reader here provides",
    ),
    (
        "ImVoxelNet, multi-view FCOS3D",
        ("imvoxelnet_", "multiview-fcos3d_"),
        "it lifts images into a voxel grid, and no input for that is built from a frame here",
    ),
    (
        "nuImages' detectors",
        ("mask-rcnn_", "cascade-mask-rcnn", "htc_"),
        "it detects boxes and masks in the image plane, not 3D boxes",
    ),
)
"""Families that do not run: their names, the prefixes of their configurations' names, and the reason."""


def ships(configuration: str) -> bool:
    """Whether mmdet3d ships a configuration with this name that runs here."""
    return any(configuration in family.configurations for family in FAMILIES)


def family_of(configuration: str) -> Family:
    """The family of a shipped configuration; raises InvalidInputError with the reason if it does not run here."""
    for family in FAMILIES:
        if configuration in family.configurations:
            return family
    for _, prefixes, reason in REFUSED:
        if configuration.startswith(prefixes):
            raise InvalidInputError(f"mmdet3d's configuration {configuration} does not run here: {reason}")
    raise InvalidInputError(
        f"mmdet3d 1.4.0 ships no configuration {configuration!r}; `trivium models driving` lists those that run. For "
        "your own configuration give only the checkpoint, into which mmengine wrote it, or the resolved file from "
        "work_dirs; or give the shipped one that it derives from, if network, range and classes are the same"
    )


def table() -> Table:
    """The table of public models that ``trivium models driving`` prints."""
    running = [
        (name, family.name, "imported, run and compared" if number == 0 else "built")
        for family in FAMILIES
        for number, name in enumerate(family.configurations)
    ]
    refused = [
        (", ".join(f"{prefix}..." for prefix in prefixes), name, f"refused: {reason}")
        for name, prefixes, reason in REFUSED
    ]
    return Table(
        title="mmdet3d's configurations",
        columns=("configuration", "family", "tests"),
        rows=running + refused,
        notes=(
            "Built from the unmodified configuration in mmdet3d's wheel. `trivium import driving CONFIGURATION "
            "CHECKPOINT.pth` imports weights for one.",
            "For a detector with your own configuration, on pillars or images, `trivium import driving CHECKPOINT.pth` "
            "reads the configuration that mmengine wrote into the checkpoint.",
            "Tests run them with random weights; the published files were not available (docs/driving-models.md).",
        ),
    )
