"""Checkpoints of camera detectors with user-defined configurations, and mmdet3d's own test of them on an image file."""

import cv2
import numpy as np
import torch
from PIL import Image

from tests.apps.driving.own_checkpoints import CLASSES, shipped

SIZES = [[4.2, 1.6, 1.8], [8.0, 3.0, 2.5], [2.6, 2.1, 1.2], [0.7, 1.75, 0.7]]
"""Length, height and width of the classes, as mmdet3d's coders have them."""
RAISED = {"fcos3d": 2.6, "pgd": 3.0, "smoke": 3.15}
"""By how much the scores' biases are raised, so that random weights find a few boxes."""


def own_camera_config(kind, dataset="ForkliftDataset"):
    """FCOS3D, PGD or SMOKE with four other classes and without velocity, small, on images of another scale."""
    config = {"fcos3d": _fcos3d, "pgd": _pgd, "smoke": _smoke}[kind]()
    config.test_dataloader.dataset.update(type=dataset, metainfo={"classes": list(CLASSES)})
    config.model.bbox_head.num_classes = len(CLASSES)
    return config


def _resnet18(model, **neck):
    model.backbone = {"type": "mmdet.ResNet", "depth": 18, "base_channels": 16, "num_stages": 4,
                      "out_indices": (0, 1, 2, 3), "norm_cfg": {"type": "BN"}, "style": "pytorch"}  # fmt: skip
    model.neck.update(in_channels=[16, 32, 64, 128], out_channels=32, **neck)


def _head(model, regressed, **settings):
    model.bbox_head.update(
        in_channels=32, feat_channels=32, cls_branch=(32,), reg_branch=((32,),) * len(regressed), dir_branch=(32,),
        group_reg_dims=regressed, bbox_code_size=7, pred_velo=False, pred_attrs=False, **settings,
    )  # fmt: skip


def _fcos3d():
    config = shipped("fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d")
    _resnet18(config.model, start_level=0, num_outs=4)
    _head(config.model, (2, 1, 3, 1), strides=[4, 8, 16, 32], dcn_on_last_conv=False, centerness_branch=(32,))
    config.model.bbox_head.regress_ranges = ((-1, 48), (48, 96), (96, 192), (192, 100000000))
    config.model.bbox_head.bbox_coder = {"type": "FCOS3DBBoxCoder", "code_size": 7, "base_dims": SIZES,
                                         "base_depths": ((28.0, 16.0),)}  # fmt: skip
    config.test_dataloader.dataset.pipeline[1] = {"type": "mmdet.Resize", "scale_factor": 0.5}
    config.train_dataloader.dataset.pipeline[2] = {"type": "mmdet.Resize", "scale": (960, 600), "keep_ratio": True}
    return config


def _pgd():
    config = shipped("pgd_r101-caffe_fpn_head-gn_4xb3-4x_kitti-mono3d")
    _resnet18(config.model)
    _head(config.model, (2, 1, 3, 1, 16, 4), depth_branch=(32,), weight_branch=((32,),), centerness_branch=(32,))
    config.model.bbox_head.bbox_coder.base_dims = SIZES
    config.test_dataloader.dataset.pipeline[1] = {"type": "mmdet.Resize", "scale": (640, 200), "keep_ratio": True}
    return config


def _smoke():
    config = shipped("smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d")
    config.model.bbox_head.bbox_coder.base_dims = SIZES
    config.test_dataloader.dataset.pipeline[1].update(img_scale=(640, 192))
    return config


def mmdet3d_test(kind, detector, camera, folder):
    """Boxes (N, 7; gravity centre, camera's frame), scores and labels of mmdet3d's test on the image as a file.

    Its test pipelines (LoadImageFromFileMono3D, Resize or AffineResize) are written out: its ``datasets`` cannot be
    imported without packages that only they need.
    """
    from mmdet3d.structures import CameraInstance3DBoxes, Det3DDataSample

    Image.fromarray(np.asarray(camera.image_HWC)).save(folder / "image.png")
    image = cv2.imread(str(folder / "image.png"))
    high, wide = image.shape[:2]
    facts = {"cam2img": camera.intrinsics.tolist(), "box_type_3d": CameraInstance3DBoxes}
    if kind == "smoke":
        image = cv2.warpAffine(image, _affine(wide, high, 640, 192), (640, 192))
        facts["trans_mat"] = np.concatenate([_affine(wide, high, 160, 48), [[0, 0, 1]]]).astype(np.float32)
    else:
        image = cv2.resize(image, {"fcos3d": (480, 300), "pgd": (320, 200)}[kind])
        facts["scale_factor"] = (image.shape[1] / wide, image.shape[0] / high)
    sample = Det3DDataSample(metainfo=facts | {"img_shape": image.shape[:2]})
    tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    with torch.inference_mode():
        (found,) = detector.test_step({"inputs": {"img": [tensor]}, "data_samples": [sample]})
    found = found.pred_instances_3d
    boxes = torch.cat([found.bboxes_3d.gravity_center, found.bboxes_3d.tensor[:, 3:7]], dim=1)
    return boxes, found.scores_3d, found.labels_3d


def _affine(wide, high, to_wide, to_high):
    """mmdet3d's AffineResize from three points: the centre, one half a width above, and that turned by 90 degrees."""
    middle, target = np.float32([wide / 2, high / 2]), np.float32([to_wide / 2, to_high / 2])
    ends = [
        np.float32([centre, centre - [0, width / 2], centre - [width / 2, width / 2]])
        for centre, width in ((middle, wide), (target, to_wide))
    ]
    return cv2.getAffineTransform(*ends)
