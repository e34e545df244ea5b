"""Public checkpoints of mmdet3d, turned into models of this application: weights only, by name."""

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
"""From which score up mmdet3d's inferencer shows a box (``pred_score_thr``); no calibration comes with a checkpoint."""
_GREATEST_INTENSITY = 65535
_GREATEST_FOCAL_PX = 1e5
_LISTED = 8


def load_mmdet3d(
    words: Sequence[str],
    data: DataConfig | None,
    *,
    axes: str | None = None,
    intensity: str | None = None,
    focal: str | None = None,
) -> Imported:
    """A detector of mmdet3d with the weights of a checkpoint file.

    ``words`` are the configuration and the file: the name of one that mmdet3d ships, or the file of a resolved one;
    without it, the one that mmengine wrote into the checkpoint. ``axes`` (one of ``AXES``) and ``intensity``, the
    greatest that its points had, say of a LiDAR network in a configuration of one's own what that does not say;
    ``focal`` does of a camera network, the focal length in pixels at which it saw images, after their resize.

    Refuses a file in which weights are missing or have other shapes, and lists them. The fast path is compared with
    mmdet3d's own forward pass, which predictors use where they differ.
    """
    from apps.driving.models.library import version
    from apps.driving.models.parity import is_equal
    from apps.driving.recipes import RECIPES
    from shared.deploy.checkpoint_file import read_checkpoint, read_state_dict, state_dict_in

    *named, file = words
    path = Path(file)
    if not named and not path.is_file() and not path.suffix:
        raise InvalidInputError(
            f"there is no file {path}; after the name of a configuration name the checkpoint's file"
        )
    content = None if path.suffix == ".safetensors" else read_checkpoint(path)
    weights = read_state_dict(path) if content is None else state_dict_in(content, path.name)
    said, focal_px = _said(axes, intensity), _focal_px(focal)
    found = _described(named[0] if named else None, content, weights, path.name, said, focal_px)
    model, input = found.model, found.input
    network = model.build(input, most_parameters=sum(value.numel() for value in weights.values()))
    matched = match(weights, network.state_dict())
    matched.refuse_gaps(path.name, model.config)
    network.load_state_dict(matched.weights)
    compared = _parity(model, network)
    model = replace(model, fast=is_equal(compared))
    recipe = RECIPES["full" if model.sensor == "lidar" else "fcos3d_full"]()
    return Imported(
        recipe=replace(recipe, model=model, input=input, data=recipe.data if data is None else data),
        network=network.eval(),
        source={
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "library": f"mmdet3d {version()}",
            "configuration": model.config,
            **found.told,
            "ignored_weights": sorted(matched.ignored),
            "remarks": remarks(model),
            "parity": compared,
        },
        calibration={
            "least_scores": {kind.name: MIN_SCORE for kind in input.classes},
            "source": "mmdet3d's default for showing boxes; `trivium calibrate` sets it on your data",
        },
    )


class Described(NamedTuple):
    """A network, what it sees, and what the manifest tells of where that was read."""

    model: MMDet3DModel
    input: LidarInput | CameraInput
    told: Mapping[str, Any]


def _said(axes: str | None, intensity: str | None) -> dict[str, Any]:
    """What the options say of the points, as ``read_own`` takes it."""
    said: dict[str, Any] = {}
    if axes is not None:
        if axes not in AXES:
            raise InvalidInputError(f"--option axes={axes}; expected {', '.join(AXES)}")
        said["axes"] = axes
    if intensity is not None:
        try:
            said["greatest_intensity"] = float(intensity)
        except ValueError:
            said["greatest_intensity"] = math.nan
        if not 0 < said["greatest_intensity"] <= _GREATEST_INTENSITY:
            raise InvalidInputError(
                f"--option intensity={intensity}; expected the greatest of the points that it learnt from, as 1 or 255"
            )
    return said


def _focal_px(focal: str | None) -> float | None:
    """What the option says of the focal length."""
    if focal is None:
        return None
    try:
        found = float(focal)
    except ValueError:
        found = math.nan
    if not 0 < found <= _GREATEST_FOCAL_PX:
        raise InvalidInputError(
            f"--option focal={focal}; expected pixels, as 633: the camera's focal length times the factor of Resize"
        )
    return found


def _described(
    named: str | None,
    content: Any,
    weights: Mapping[str, Tensor],
    file: str,
    said: Mapping[str, Any],
    focal_px: float | None,
) -> Described:
    """The network of a checkpoint: of the configuration that is ``named``, or of the one in its metadata.

    ``said`` is what the user says of its points, ``focal_px`` of its camera; refuses them of what says so itself.
    """
    from apps.driving.models.config_text import read_config_text
    from apps.driving.models.configurations import MMDet3DModel
    from apps.driving.models.families import ships
    from apps.driving.models.own_camera import OwnCamera
    from apps.driving.models.own_camera_reading import read_own_camera
    from apps.driving.models.own_pipeline import model_of, older_layout, type_of
    from apps.driving.models.own_reading import read_own
    from apps.driving.models.own_settings import CAMERA_DETECTORS

    place, settings = file, None
    if named is not None:
        name, place = named.removesuffix(".py").rpartition("/")[2], Path(named).name
        settings = _resolved_file(Path(named), shipped=ships(name))
        if settings is None:
            model = MMDet3DModel(config=name)
            _refuse_said(said, f"the shipped configuration {name}")
            _refuse_focal(focal_px, f"the shipped configuration {name}")
            return Described(model, _with_trained_classes(model.input(), content, file), {})
    else:
        meta = content.get("meta") if isinstance(content, Mapping) else None
        text = meta.get("cfg") if isinstance(meta, Mapping) else None
        if not isinstance(text, str):
            if isinstance(meta, Mapping) and isinstance(meta.get("config"), str):
                raise older_layout(file)
            raise InvalidInputError(
                f"{file} holds no configuration (meta, cfg), as mmengine's Runner writes it; name the resolved one "
                f"from work_dirs, or one that mmdet3d ships: trivium import driving CONFIG {file}"
            )
        settings = read_config_text(text, file)
    classes = _trained_classes(content)
    if type_of(model_of(settings, place)) in CAMERA_DETECTORS:
        _refuse_said(said, f"the camera network of {place}")
        reading = read_own_camera(settings, classes, place)
    else:
        _refuse_focal(focal_px, f"the LiDAR network of {place}")
        reading = read_own(settings, classes, weights, place, **said)
    own = reading.own
    if isinstance(own, OwnCamera):
        own = replace(own, focal_px=focal_px)
    model = (
        MMDet3DModel(config=place, own_camera=own)
        if isinstance(own, OwnCamera)
        else MMDet3DModel(config=place, own=own)
    )
    return Described(model, model.input(), {"read": list(reading.read), "assumed": list(reading.assumed)})


def _refuse_said(said: Mapping[str, Any], network: str) -> None:
    if said:
        raise InvalidInputError(
            f"--option axes and intensity are for LiDAR networks in configurations of one's own; {network} needs none: "
            "leave them out"
        )


def _refuse_focal(focal_px: float | None, network: str) -> None:
    if focal_px is not None:
        raise InvalidInputError(
            f"--option focal is for camera networks in configurations of one's own; {network} needs none: leave it out"
        )


def _resolved_file(path: Path, *, shipped: bool) -> dict[str, Any] | None:
    """The settings in a file that mmengine dumped; None for what is the name of a shipped configuration, or its file,
    which is a program."""
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


def _parity(model: MMDet3DModel, network: nn.Module) -> dict[str, Any]:
    """What ``parity`` found; refuses a network of one's own that mmdet3d builds and cannot compute."""
    from apps.driving.models.parity import parity

    try:
        return parity(model, network)
    except Exception as error:
        if isinstance(error, InvalidInputError) or not model.is_own:
            raise
        said = str(error).strip().partition("\n")[0][:300]
        raise InvalidInputError(
            f"the network that {model.config} describes cannot be computed: {type(error).__name__}: {said}"
        ) from error


def remarks(model: MMDet3DModel) -> list[str]:
    """What whoever uses the model must know: sentences about how frames differ from what it learnt from."""
    slower = [] if model.fast else ["mmdet3d's own modules compute it, more slowly: the fast path differs from them"]
    if model.sensor == "camera":
        learnt = "the cameras that it was trained on" if model.is_own else model.family.data
        return [f"images are seen at their own focal length; the model learnt depths at that of {learnt}", *slower]
    from apps.driving.models.detectors import point_layout

    several = point_layout(model).earlier_sweeps + 1
    if several > 1:
        return [
            f"the model learnt from {several} sweeps together; where a frame has fewer it finds less, and says so",
            *slower,
        ]
    return slower


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """A checkpoint's tensors by a network's names, and what did not fit."""

    weights: Mapping[str, Tensor]
    missing: tuple[str, ...]
    misshaped: tuple[str, ...]
    ignored: tuple[str, ...]

    def refuse_gaps(self, file: str, configuration: str) -> None:
        """Refuses where the network would be left with weights of its own."""
        if not (self.missing or self.misshaped):
            return
        faults = [
            f"{len(names)} {what}: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
            for what, names in (
                ("are missing", self.missing),
                ("have another shape", self.misshaped),
                ("are not in the configuration", self.ignored),
            )
            if names
        ]
        described = "the configuration in it" if configuration == file else configuration
        raise InvalidInputError(f"the weights in {file} are not those of {described}. Of them {'; '.join(faults)}")


def match(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Matched:
    """A checkpoint's tensors by the names of ``own``, a network's state dict.

    ``module.`` before a name (from training on several GPUs) goes, and so do the copies that mmcv's EMA hook keeps
    under ``ema_``: the names proper hold the averaged weights by then. Counts of batches, which old files lack, stay.
    """
    named = {key.removeprefix("module."): value for key, value in weights.items()}
    copies = {"ema_" + key.replace(".", "_") for key in named}
    fits = {key: value for key, value in named.items() if key in own and value.shape == own[key].shape}
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked") and key not in named}
    return Matched(
        weights={key: value.to(own[key].dtype) for key, value in (fits | counters).items()},
        missing=tuple(sorted(own.keys() - named.keys() - counters.keys())),
        misshaped=tuple(
            f"{key} ({tuple(named[key].shape)}, not {tuple(own[key].shape)})"
            for key in sorted((own.keys() & named.keys()) - fits.keys())
        ),
        ignored=tuple(sorted(named.keys() - own.keys() - copies)),
    )


def _with_trained_classes(input: LidarInput | CameraInput, content: Any, file: str) -> LidarInput | CameraInput:
    """``input`` with its classes in the order of the checkpoint's own list, where it has one (as in mmdet3d)."""
    names = _trained_classes(content)
    known = {kind.name: kind for kind in input.classes}
    if names is None:
        return input
    if sorted(names) != sorted(known):
        raise InvalidInputError(
            f"{file} was trained for the classes {', '.join(names)}; the configuration has {', '.join(known)}"
        )
    return replace(input, classes=tuple(known[name] for name in names))


def _trained_classes(content: Any) -> list[str] | None:
    """The class names in a checkpoint's metadata: mmengine's ``dataset_meta``, or mmcv's ``CLASSES`` before it."""
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
    """The recipe of a model that ``load_mmdet3d`` made: its network and input, so that it can be calibrated."""
    from apps.driving.models.configurations import MMDet3DModel
    from apps.driving.recipes import RECIPES
    from apps.driving.types import CameraInput, LidarInput

    model = from_mapping(MMDet3DModel, settings["model"])
    input: LidarInput | CameraInput = (
        from_mapping(LidarInput, settings["input"])
        if model.sensor == "lidar"
        else from_mapping(CameraInput, settings["input"])
    )
    return replace(RECIPES["full" if model.sensor == "lidar" else "fcos3d_full"](), model=model, input=input)


def fine_tuned(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """``recipe`` with the network and the input of a detector of the user's own configuration, to be trained further.

    One of a shipped configuration is begun from by a recipe whose network fits its weights. Refuses an own one that
    is no PointPillars as recipes here build it, nor an FCOS3D as they train it, with the settings in which it differs.
    """
    from apps.driving.models.configurations import MMDet3DModel
    from apps.driving.models.fcos3d import FCOS3D
    from apps.driving.models.own_training import as_fcos3d, as_pointpillars
    from apps.driving.models.pointpillars import PointPillars
    from apps.driving.types import CameraInput

    model = from_mapping(MMDet3DModel, settings["model"])
    if not model.is_own:
        return recipe
    if model.own_camera is not None:
        made = as_fcos3d(model)
        if not isinstance(recipe.model, FCOS3D) or not isinstance(recipe.input, CameraInput):
            raise InvalidInputError(
                f"{model.config} looks at images; train it by a recipe for them: --recipe fcos3d_full"
            )
        # Its test says at which size it sees an image, and not at which focal length: that is the user's or recipe's.
        focal_px = model.own_camera.focal_px or recipe.input.focal_px
        seen = replace(recipe.input, classes=model.input().classes, focal_px=focal_px)
        return replace(recipe, model=made, input=seen)
    if not isinstance(recipe.model, PointPillars):
        raise InvalidInputError(f"{model.config} looks at LiDAR sweeps; train it by a recipe for them: --recipe full")
    return replace(recipe, model=as_pointpillars(model, recipe.model), input=model.input())


IMPORTERS = {
    "mmdet3d": Importer(
        summary="a checkpoint of mmengine's Runner by the configuration in it, or weights for one that mmdet3d ships "
        "(`trivium models driving` lists those that run)",
        arguments=("[CONFIG]", "CHECKPOINT.pth"),
        load=load_mmdet3d,
        options={"axes": "|".join(AXES), "intensity": "GREATEST", "focal": "PIXELS"},
        recipe=imported_recipe,
        fine_tuned=fine_tuned,
    )
}
