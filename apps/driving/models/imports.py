"""Imports mmdet3d checkpoints as models of this application: weights only, matched by name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from apps.driving.models import AXES
from shared.app import Imported, Importer
from shared.errors import InvalidInputError
from shared.recipe_file import from_mapping

if TYPE_CHECKING:
    from torch import Tensor, nn

    from apps.driving.models.configurations import MMDet3DModel
    from apps.driving.types import CameraInput, LidarInput
    from shared.recipe import DataConfig, Recipe

MIN_SCORE = 0.3
"""The minimum score of the boxes that mmdet3d's inferencer shows (``pred_score_thr``); checkpoints hold no calibration.
"""
_MAX_INTENSITY = 65535
_MAX_FOCAL_PX = 1e5
_MAX_NAMES_SHOWN = 8


def load_mmdet3d(
    arguments: Sequence[str],
    data: DataConfig | None,
    *,
    axes: str | None = None,
    intensity: str | None = None,
    focal: str | None = None,
) -> Imported:
    """An mmdet3d detector with the weights of a checkpoint file.

    ``arguments`` are the configuration and the file. The configuration is the name of a shipped one, or the file of a
    resolved one; without it, the one that mmengine wrote into the checkpoint is used. For the user's own configuration
    the options state what it does not: for a LiDAR network ``axes`` (one of ``AXES``) and ``intensity``, the maximum
    intensity of its training points; for a camera network ``focal``, the focal length in pixels of its training images
    after their resize.

    Raises InvalidInputError with the names of weights that are missing or have other shapes. The fast path is compared
    with mmdet3d's own forward pass, which predictors use if they differ.
    """
    from apps.driving.models.library import version
    from apps.driving.models.parity import is_equal
    from apps.driving.recipes import RECIPES
    from shared.checkpoint_file import read_checkpoint, read_state_dict, state_dict_in

    *names, file = arguments
    path = Path(file)
    if not names and not path.is_file() and not path.suffix:
        raise InvalidInputError(
            f"there is no file {path}; give the checkpoint's file, after the configuration's name if you give one"
        )
    content = None if path.suffix == ".safetensors" else read_checkpoint(path)
    weights = read_state_dict(path) if content is None else state_dict_in(content, path.name)
    point_options, focal_px = _point_options(axes, intensity), _focal_px(focal)
    resolved = _resolve_network(names[0] if names else None, content, weights, path.name, point_options, focal_px)
    model, input = resolved.model, resolved.input
    network = model.build(input, max_parameters=sum(value.numel() for value in weights.values()))
    matched = match(weights, network.state_dict())
    matched.refuse_gaps(path.name, model.config)
    network.load_state_dict(matched.weights)
    parity = _measure_parity(model, network)
    model = replace(model, fast=is_equal(parity))
    recipe = RECIPES["full" if model.sensor == "lidar" else "fcos3d_full"]()
    return Imported(
        recipe=replace(recipe, model=model, input=input, data=recipe.data if data is None else data),
        network=network.eval(),
        source={
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "library": f"mmdet3d {version()}",
            "configuration": model.config,
            **resolved.provenance,
            "ignored_weights": sorted(matched.ignored),
            "remarks": remarks(model),
            "parity": parity,
        },
        calibration={
            "least_scores": {kind.name: MIN_SCORE for kind in input.classes},
            "source": "mmdet3d's default for showing boxes; calibrate on your data with `trivium calibrate`",
        },
    )


class ResolvedNetwork(NamedTuple):
    """A network, its input, and what the manifest records about where these were read from."""

    model: MMDet3DModel
    input: LidarInput | CameraInput
    provenance: Mapping[str, Any]


def _point_options(axes: str | None, intensity: str | None) -> dict[str, Any]:
    """The options ``axes`` and ``intensity``, checked, as keyword arguments of ``read_own_lidar``."""
    options: dict[str, Any] = {}
    if axes is not None:
        if axes not in AXES:
            raise InvalidInputError(f"--option axes={axes}; expected {', '.join(AXES)}")
        options["axes"] = axes
    if intensity is not None:
        try:
            options["max_intensity"] = float(intensity)
        except ValueError:
            options["max_intensity"] = math.nan
        if not 0 < options["max_intensity"] <= _MAX_INTENSITY:
            raise InvalidInputError(
                f"--option intensity={intensity}; expected the maximum intensity of its training points, such as 1 or "
                "255"
            )
    return options


def _focal_px(focal: str | None) -> float | None:
    """The option ``focal`` in pixels, checked; None if it is not given."""
    if focal is None:
        return None
    try:
        value = float(focal)
    except ValueError:
        value = math.nan
    if not 0 < value <= _MAX_FOCAL_PX:
        raise InvalidInputError(
            f"--option focal={focal}; expected pixels, such as 633: the camera's focal length times Resize's factor"
        )
    return value


def _resolve_network(
    named_config: str | None,
    content: Any,
    weights: Mapping[str, Tensor],
    file: str,
    point_options: Mapping[str, Any],
    focal_px: float | None,
) -> ResolvedNetwork:
    """The network of a checkpoint, from the configuration ``named_config``, or from the one in its metadata.

    ``point_options`` and ``focal_px`` are the user's options; raises InvalidInputError if the network does not need
    them.
    """
    from apps.driving.models.config_text import read_config_text
    from apps.driving.models.configurations import MMDet3DModel
    from apps.driving.models.families import ships
    from apps.driving.models.own_camera import OwnCamera
    from apps.driving.models.own_camera_reading import read_own_camera
    from apps.driving.models.own_lidar_reading import read_own_lidar
    from apps.driving.models.own_pipeline import model_settings, older_layout_error, type_name
    from apps.driving.models.own_settings import CAMERA_DETECTORS

    title, settings = file, None
    if named_config is not None:
        name, title = named_config.removesuffix(".py").rpartition("/")[2], Path(named_config).name
        settings = _resolved_file(Path(named_config), shipped=ships(name))
        if settings is None:
            model = MMDet3DModel(config=name)
            _refuse_point_options(point_options, f"the shipped configuration {name}")
            _refuse_focal(focal_px, f"the shipped configuration {name}")
            return ResolvedNetwork(model, _in_trained_class_order(model.input(), content, file), {})
    else:
        meta = content.get("meta") if isinstance(content, Mapping) else None
        text = meta.get("cfg") if isinstance(meta, Mapping) else None
        if not isinstance(text, str):
            if isinstance(meta, Mapping) and isinstance(meta.get("config"), str):
                raise older_layout_error(file)
            raise InvalidInputError(
                f"{file} contains no configuration (meta, cfg), as mmengine's Runner writes it; give the resolved one "
                f"from work_dirs, or the name of a shipped one: trivium import driving CONFIG {file}"
            )
        settings = read_config_text(text, file)
    classes = _trained_classes(content)
    if type_name(model_settings(settings, title)) in CAMERA_DETECTORS:
        _refuse_point_options(point_options, f"the camera network of {title}")
        parsed = read_own_camera(settings, classes, title)
    else:
        _refuse_focal(focal_px, f"the LiDAR network of {title}")
        parsed = read_own_lidar(settings, classes, weights, title, **point_options)
    own = parsed.own
    if isinstance(own, OwnCamera):
        own = replace(own, focal_px=focal_px)
    model = (
        MMDet3DModel(config=title, own_camera=own)
        if isinstance(own, OwnCamera)
        else MMDet3DModel(config=title, own=own)
    )
    return ResolvedNetwork(model, model.input(), {"read": list(parsed.read), "assumed": list(parsed.assumed)})


def _refuse_point_options(point_options: Mapping[str, Any], network: str) -> None:
    if point_options:
        raise InvalidInputError(
            f"--option axes and intensity are only for LiDAR networks in your own configurations, not for {network}; "
            "leave them out"
        )


def _refuse_focal(focal_px: float | None, network: str) -> None:
    if focal_px is not None:
        raise InvalidInputError(
            f"--option focal is only for camera networks in your own configurations, not for {network}; leave it out"
        )


def _resolved_file(path: Path, *, shipped: bool) -> dict[str, Any] | None:
    """The settings in a file that mmengine dumped; None for the name or the file of a shipped configuration, which is a
    program."""
    from apps.driving.models.config_text import read_config_text

    if path.suffix != ".py" or not path.is_file():
        return None
    try:
        settings = read_config_text(path.read_text(encoding="utf-8", errors="replace"), path.name)
    except InvalidInputError:
        if shipped:
            return None
        raise
    return None if shipped and "_base_" in settings else settings


def _measure_parity(model: MMDet3DModel, network: nn.Module) -> dict[str, Any]:
    """The result of ``parity``; raises InvalidInputError if mmdet3d builds the user's own network but cannot run it."""
    from apps.driving.models.parity import parity

    try:
        return parity(model, network)
    except Exception as error:
        if isinstance(error, InvalidInputError) or not model.is_own:
            raise
        message = str(error).strip().partition("\n")[0][:300]
        raise InvalidInputError(
            f"the network in {model.config} cannot be computed: {type(error).__name__}: {message}"
        ) from error


def remarks(model: MMDet3DModel) -> list[str]:
    """Remarks for the model's users: how frames may differ from its training data, and whether it is slower."""
    slower = [] if model.fast else ["mmdet3d's own modules compute it, more slowly, because the fast path differs"]
    if model.sensor == "camera":
        training_cameras = "the cameras that it was trained on" if model.is_own else model.family.data
        return [
            f"images keep their own focal length; the model learnt depths at that of {training_cameras}",
            *slower,
        ]
    from apps.driving.models.detectors import point_layout

    sweeps = point_layout(model).earlier_sweeps + 1
    if sweeps > 1:
        return [
            f"the model was trained on {sweeps} sweeps together; in frames with fewer it finds fewer objects, and the "
            "result has a remark",
            *slower,
        ]
    return slower


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """A checkpoint's tensors by a network's names, and the names that did not match."""

    weights: Mapping[str, Tensor]
    missing: tuple[str, ...]
    misshaped: tuple[str, ...]
    ignored: tuple[str, ...]

    def refuse_gaps(self, file: str, configuration: str) -> None:
        """Raises InvalidInputError if part of the network would keep its initial weights."""
        if not (self.missing or self.misshaped):
            return
        faults = [
            f"{len(names)} {problem}: {', '.join(names[:_MAX_NAMES_SHOWN])}"
            f"{', ...' if len(names) > _MAX_NAMES_SHOWN else ''}"
            for problem, names in (
                ("are missing", self.missing),
                ("have another shape", self.misshaped),
                ("are not in the configuration", self.ignored),
            )
            if names
        ]
        config_title = "the configuration in it" if configuration == file else configuration
        raise InvalidInputError(f"the weights in {file} do not match {config_title}: {'; '.join(faults)}")


def match(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Matched:
    """Matches a checkpoint's tensors with ``expected``, a network's state dict, by name.

    The prefix ``module.`` (from training on several GPUs) is removed. The copies of mmcv's EMA hook (``ema_...``) are
    dropped: at this point the plain names hold the averaged weights. Batch counters, which old files lack, keep the
    network's values.
    """
    named = {key.removeprefix("module."): value for key, value in weights.items()}
    copies = {"ema_" + key.replace(".", "_") for key in named}
    matching = {key: value for key, value in named.items() if key in expected and value.shape == expected[key].shape}
    counters = {
        key: value for key, value in expected.items() if key.endswith("num_batches_tracked") and key not in named
    }
    return Matched(
        weights={key: value.to(expected[key].dtype) for key, value in (matching | counters).items()},
        missing=tuple(sorted(expected.keys() - named.keys() - counters.keys())),
        misshaped=tuple(
            f"{key} ({tuple(named[key].shape)}, not {tuple(expected[key].shape)})"
            for key in sorted((expected.keys() & named.keys()) - matching.keys())
        ),
        ignored=tuple(sorted(named.keys() - expected.keys() - copies)),
    )


def _in_trained_class_order(input: LidarInput | CameraInput, content: Any, file: str) -> LidarInput | CameraInput:
    """``input`` with its classes in the order of the checkpoint's list, if it has one (as mmdet3d does)."""
    names = _trained_classes(content)
    by_name = {kind.name: kind for kind in input.classes}
    if names is None:
        return input
    if sorted(names) != sorted(by_name):
        raise InvalidInputError(
            f"{file} was trained for the classes {', '.join(names)}; the configuration has {', '.join(by_name)}"
        )
    return replace(input, classes=tuple(by_name[name] for name in names))


def _trained_classes(content: Any) -> list[str] | None:
    """The class names in a checkpoint's metadata: mmengine's ``dataset_meta``, or mmcv's older ``CLASSES``."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return None
    for holder in (meta.get("dataset_meta"), meta):
        for key in ("classes", "CLASSES"):
            names = holder.get(key) if isinstance(holder, Mapping) else None
            if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
                return [name.lower() for name in names]
    return None


def imported_recipe(settings: Mapping[str, Any]) -> Recipe:
    """A recipe with the network and input of a model that ``load_mmdet3d`` imported, for calibration."""
    from apps.driving.models.configurations import MMDet3DModel
    from apps.driving.recipes import RECIPES

    model = from_mapping(MMDet3DModel, settings["model"])
    recipe = RECIPES["full" if model.sensor == "lidar" else "fcos3d_full"]()
    return replace(recipe, model=model, input=model.read_input(settings["input"]))


def fine_tuned(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """``recipe`` with the network and input of an imported detector, to train it further.

    This is for the user's own configurations; for a shipped configuration ``recipe`` is returned unchanged, and its
    network must fit the weights. Raises InvalidInputError with the differing settings if the network is neither a
    PointPillars nor an FCOS3D that recipes here can build.
    """
    from apps.driving.models.configurations import MMDet3DModel
    from apps.driving.models.fcos3d import FCOS3D
    from apps.driving.models.own_training import as_fcos3d, as_pointpillars, check_shipped
    from apps.driving.models.pointpillars import PointPillars
    from apps.driving.types import CameraInput

    model = from_mapping(MMDet3DModel, settings["model"])
    fcos3d = None if model.own_camera is None else as_fcos3d(model)
    if not model.is_own:
        check_shipped(model)
    if not isinstance(recipe.model, FCOS3D if model.sensor == "camera" else PointPillars):
        kind, suitable = ("camera", "fcos3d_full") if model.sensor == "camera" else ("LiDAR", "full")
        raise InvalidInputError(
            f"{model.config} is a {kind} network; train it with a {kind} recipe: --recipe {suitable}"
        )
    if not model.is_own:
        return recipe
    if model.own_camera is not None and fcos3d is not None:
        assert isinstance(recipe.input, CameraInput)
        # Its test pipeline sets the image size but not the focal length: the user's option or the recipe does.
        focal_px = model.own_camera.focal_px or recipe.input.focal_px
        input = replace(recipe.input, classes=model.input().classes, focal_px=focal_px)
        return replace(recipe, model=fcos3d, input=input)
    assert isinstance(recipe.model, PointPillars)
    return replace(recipe, model=as_pointpillars(model, recipe.model), input=model.input())


IMPORTERS = {
    "mmdet3d": Importer(
        summary="a checkpoint of mmengine's Runner with the configuration in it, or weights for a configuration that "
        "mmdet3d ships (`trivium models driving` lists those that run)",
        arguments=("[CONFIG]", "CHECKPOINT.pth"),
        load=load_mmdet3d,
        options={"axes": "|".join(AXES), "intensity": "MAXIMUM", "focal": "PIXELS"},
        recipe=imported_recipe,
        fine_tuned=fine_tuned,
    )
}
