"""Initialises a model by name from the weights of an artifact, a run or a file. Loads weights only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shared.checkpoint_file import read_state_dict
from shared.engine.checkpoint import best_weights
from shared.errors import InvalidInputError
from shared.recipe import ClassAxes, HasClassAxes, InputSpec, ModelConfig
from shared.recipe_file import read_recipe_file

_WEIGHTS = "weights.safetensors"
_HUGGING_FACE = "model.safetensors"
"""The file that ``save_pretrained`` of transformers writes."""
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""The prefixes that DistributedDataParallel and torch.compile add to every name."""


class SharedClasses(NamedTuple):
    """The class axes of the tensors in the weights that are loaded, and in the model that loads them."""

    weights: ClassAxes
    model: ClassAxes


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """The result of loading weights by name. Tensors in ``missing`` and ``other_shape`` keep the model's values.

    ``extra`` are in the weights but not in the model. Tensors in ``by_class`` received the values of the classes that
    the weights and the model have in common.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    other_shape: tuple[str, ...]
    by_class: tuple[str, ...] = ()

    def summary(self) -> str:
        """What was loaded and what was not, for the log."""
        total = len(self.loaded) + len(self.by_class) + len(self.missing) + len(self.other_shape)
        parts = [f"{len(self.loaded)} of {total} tensors start from these weights"]
        names_by_title = {
            "loaded for the classes in common": self.by_class,
            "missing": self.missing,
            "extra": self.extra,
            "of a different shape": self.other_shape,
        }
        for title, names in names_by_title.items():
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                parts.append(f"{title}: {', '.join(names[:5])}{more}")
        return "; ".join(parts)


def load_initial_weights(model: nn.Module, path: Path, classes: SharedClasses | None = None) -> LoadedWeights:
    """Loads the weights at ``path`` into ``model`` by name and returns what was loaded and what was not.

    If no name matches, the name of the one attribute that holds the model, such as ``net.``, is left out.

    The model may have a new head: tensors that are missing or of a different shape keep their values. With ``classes``,
    the tensors that it names receive the values of the classes in common. Raises ``InvalidInputError`` if no tensor
    matches in name and shape.
    """
    found = {_without_wrapper_prefix(name): value for name, value in read_weights(path).items()}
    own = model.state_dict()
    found = _without_attribute_name(found, own)
    by_class = {} if classes is None else _match_classes(found, own, classes)
    # Tensors with a class axis are matched by class only: with the same shape, a row may belong to a different class.
    by_name = found if classes is None else {name: value for name, value in found.items() if name not in classes.model}
    fits = {name: value for name, value in by_name.items() if name in own and own[name].shape == value.shape}
    if not fits:
        raise InvalidInputError(
            f"{path}: none of its {len(found)} tensors fits this model; the file has names such as "
            f"{', '.join(list(found)[:3])}, and the model has names such as {', '.join(list(own)[:3])}"
        )
    model.load_state_dict(fits | by_class, strict=False)
    return LoadedWeights(
        loaded=tuple(fits),
        missing=tuple(name for name in own if name not in found),
        extra=tuple(name for name in found if name not in own),
        other_shape=tuple(name for name in found if name in own and name not in fits and name not in by_class),
        by_class=tuple(by_class),
    )


def _match_classes(found: Mapping[str, Tensor], own: Mapping[str, Tensor], classes: SharedClasses) -> dict[str, Tensor]:
    """The model's tensors with a class axis, filled with the loaded values for the classes in common."""
    filled = {}
    for name, axis in classes.model.items():
        if name not in found or name not in own or name not in classes.weights:
            continue
        value, source, source_axis = own[name].clone(), found[name], classes.weights[name]
        expected = list(value.shape)
        expected[axis.number] = len(source_axis.places)
        if list(source.shape) != expected or value.shape[axis.number] != len(axis.places):
            continue
        source_index = {place: number for number, place in enumerate(source_axis.places)}
        pairs = [(index, source_index[place]) for index, place in enumerate(axis.places) if place in source_index]
        if pairs:
            target_rows, source_rows = (torch.tensor(numbers) for numbers in zip(*pairs, strict=True))
            value.index_copy_(axis.number, target_rows, source.index_select(axis.number, source_rows).to(value.dtype))
            filled[name] = value
    return filled


def shared_classes(path: Path, model: ModelConfig, input: InputSpec) -> SharedClasses | None:
    """The class axes of the weights at ``path`` and of the network of ``model``, if their classes differ.

    None if the classes are the same or are not known on both sides.
    """
    own, found = _class_names(getattr(input, "classes", ())), _read_class_names(path)
    if not isinstance(model, HasClassAxes) or not own or not found or own == found:
        return None
    return SharedClasses(model.class_axes(found), model.class_axes(own))


def new_classes(path: Path, input: InputSpec, *, by_name: bool = False) -> str | None:
    """A message about the classes of ``input`` that the artifact or run at ``path`` was not trained on at their index.

    None if it was trained on the same classes or does not state its classes. ``by_name``: the values of the classes in
    common were loaded by class name. Otherwise classes are matched by index: the head is new if the number of classes
    differs, and ``InvalidInputError`` is raised if a class in common has a different index.
    """
    run_names, trained_names = _class_names(getattr(input, "classes", ())), _read_class_names(path)
    if not trained_names or not run_names or trained_names == run_names:
        return None
    if by_name:
        changes = {
            "keeps {}": [name for name in run_names if name in trained_names],
            "learns {} from scratch": [name for name in run_names if name not in trained_names],
            "drops {}": [name for name in trained_names if name not in run_names],
        }
        summary = "; ".join(phrase.format(", ".join(names)) for phrase, names in changes.items() if names)
        return f"it was trained on the classes {', '.join(trained_names)}: this run {summary}"
    if len(trained_names) != len(run_names):
        remedy = (
            f"; --data.classes {' '.join(trained_names)} keeps them" if set(trained_names) <= set(run_names) else ""
        )
        return (
            f"it was trained on the classes {', '.join(trained_names)}, and this run has {', '.join(run_names)}: the "
            f"number of classes differs, so the last layers learn all of them from scratch{remedy}"
        )
    if any(name in trained_names and trained_names.index(name) != place for place, name in enumerate(run_names)):
        fresh = iter([name for name in run_names if name not in trained_names])
        order = [name if name in run_names else next(fresh) for name in trained_names]
        raise InvalidInputError(
            f"{path} was trained on the classes {', '.join(trained_names)} in this order, and this run has "
            f"{', '.join(run_names)}: a class would start from the weights of another. Name them in the order "
            f"{' '.join(order)}"
        )
    replaced = ", ".join(
        f"{new} in place of {old}" for new, old in zip(run_names, trained_names, strict=True) if new != old
    )
    return f"classes that start from the weights of other classes: {replaced}"


def _read_class_names(path: Path) -> list[str]:
    """The class names of the artifact or run at ``path``, or of the artifact whose weights file it is.

    Empty if they are not known.
    """
    file = (path.parent if path.name == _WEIGHTS else path) / "recipe.yaml"
    if not file.is_file():
        return []
    return _class_names((read_recipe_file(file)["recipe"].get("input") or {}).get("classes", ()))


def _class_names(classes: Sequence[Any]) -> list[str]:
    """The names of classes that are strings, mappings with ``name`` or objects with an attribute ``name``."""
    return [str(kind["name"] if isinstance(kind, Mapping) else getattr(kind, "name", kind)) for kind in classes or ()]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name, on the CPU, of an artifact's directory, a run's (its best checkpoint) or a weights file.

    A file is safetensors or a checkpoint of any trainer that used ``torch.save``; it is read without executing code,
    and what is neither a tensor nor a plain value in it is ignored. A directory may also be one that Hugging Face's
    ``save_pretrained`` wrote. Raises ``InvalidInputError`` if there are no weights to read.
    """
    path = Path(path)
    if not path.is_dir():
        return read_state_dict(path)
    if (file := next((path / name for name in (_WEIGHTS, _HUGGING_FACE) if (path / name).is_file()), None)) is not None:
        return read_state_dict(file)
    if (best := best_weights(path)) is None:
        raise InvalidInputError(
            f"{path} is neither an artifact ({_WEIGHTS}), nor a run with an intact checkpoint, nor a folder with "
            f"{_HUGGING_FACE}"
        )
    return best


def _without_attribute_name(found: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a module that holds the model in an attribute (``net.`` in a LightningModule), by its own names.

    Nothing is renamed if a tensor already has a name of the model, or if two attributes fit equally well.
    """
    if any(name in own for name in found):
        return found
    fits: dict[str, int] = {}
    for name, value in found.items():
        attribute, _, rest = name.partition(".")
        fits[attribute] = fits.get(attribute, 0) + (rest in own and own[rest].shape == value.shape)
    best = max(fits.values(), default=0)
    if best == 0 or list(fits.values()).count(best) > 1:
        return found
    prefix = next(attribute for attribute, number in fits.items() if number == best) + "."
    return {name.removeprefix(prefix): value for name, value in found.items()}


def _without_wrapper_prefix(name: str) -> str:
    for wrapper in _WRAPPER_PREFIXES:
        name = name.removeprefix(wrapper)
    return name
