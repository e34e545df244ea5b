"""Starting from weights that are there: an artifact's, a run's, or those in a file. By name, and weights only."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.engine.checkpoint import best_weights
from shared.errors import InvalidInputError
from shared.recipe import ClassAxes, Classed, InputSpec, ModelConfig
from shared.recipe_file import read_recipe_file

_WEIGHTS = "weights.safetensors"
_NESTED = ("state_dict", "model_state_dict", "model", "network_weights")
"""Under which keys mmengine, Lightning, MONAI, torchvision and nnU-Net keep the weights in a checkpoint."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What wrapping for several processes and compiling put before every name."""


class SharedClasses(NamedTuple):
    """The axes by class of the weights that are there and of the model that begins with them."""

    found: ClassAxes
    own: ClassAxes


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """Which of a model's weights were found, by name; those of ``missing`` and ``other_shape`` keep their values.

    Those ``by_class`` have the values of the classes that both know.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    other_shape: tuple[str, ...]
    by_class: tuple[str, ...] = ()

    def summary(self) -> str:
        """What was loaded, and what was not, for the log."""
        total = len(self.loaded) + len(self.by_class) + len(self.missing) + len(self.other_shape)
        parts = [f"{len(self.loaded)} of {total} tensors start from these weights"]
        listed = {
            "of the classes that both know": self.by_class,
            "missing": self.missing,
            "extra": self.extra,
            "of another shape": self.other_shape,
        }
        for title, names in listed.items():
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                parts.append(f"{title}: {', '.join(names[:5])}{more}")
        return "; ".join(parts)


def load_initial_weights(model: nn.Module, path: Path, classes: SharedClasses | None = None) -> LoadedWeights:
    """Gives ``model`` the weights at ``path``, by name, and says which were not found.

    A new head is allowed: what is missing or of another shape keeps the values that it has. With ``classes`` the
    tensors that they name are given the values of the classes that both know. Refuses a file in which no name and
    shape fits.
    """
    found = {_bare(name): value for name, value in read_weights(path).items()}
    own = model.state_dict()
    by_class = {} if classes is None else _by_class(found, own, classes)
    # A tensor by class has the places of others where its shape is the same.
    placed = found if classes is None else {name: value for name, value in found.items() if name not in classes.own}
    fits = {name: value for name, value in placed.items() if name in own and own[name].shape == value.shape}
    if not fits:
        raise InvalidInputError(
            f"{path}: none of its {len(found)} tensors fits this model; it has names such as "
            f"{', '.join(list(found)[:3])}, and the model such as {', '.join(list(own)[:3])}"
        )
    model.load_state_dict(fits | by_class, strict=False)
    return LoadedWeights(
        loaded=tuple(fits),
        missing=tuple(name for name in own if name not in found),
        extra=tuple(name for name in found if name not in own),
        other_shape=tuple(name for name in found if name in own and name not in fits and name not in by_class),
        by_class=tuple(by_class),
    )


def _by_class(found: Mapping[str, Tensor], own: Mapping[str, Tensor], classes: SharedClasses) -> dict[str, Tensor]:
    """The model's tensors that keep classes, with the values of those that both know; others keep their own."""
    carried = {}
    for name, axis in classes.own.items():
        if name not in found or name not in own or name not in classes.found:
            continue
        value, theirs, mine = own[name].clone(), found[name], classes.found[name]
        expected = list(value.shape)
        expected[axis.number] = len(mine.places)
        if list(theirs.shape) != expected or value.shape[axis.number] != len(axis.places):
            continue
        at = {place: number for number, place in enumerate(mine.places)}
        pairs = [(to, at[place]) for to, place in enumerate(axis.places) if place in at]
        if pairs:
            to, source = (torch.tensor(numbers) for numbers in zip(*pairs, strict=True))
            value.index_copy_(axis.number, to, theirs.index_select(axis.number, source).to(value.dtype))
            carried[name] = value
    return carried


def shared_classes(path: Path, model: ModelConfig, input: InputSpec) -> SharedClasses | None:
    """Where the weights at ``path`` and the network of ``model`` keep their classes, if these differ and both say
    which they are; None where they are the same, or not known."""
    own, found = _class_names(getattr(input, "classes", ())), _classes_of(path)
    if not isinstance(model, Classed) or not own or not found or own == found:
        return None
    return SharedClasses(model.class_axes(found), model.class_axes(own))


def new_classes(path: Path, input: InputSpec, *, by_name: bool = False) -> str | None:
    """A sentence on the classes of ``input`` that the artifact or run at ``path`` has not learnt in their places; None
    where it has learnt all, or does not say which. ``by_name`` where those that both know were carried over.

    A head that is not carried over by name has its classes by their places, and is another where their number is;
    then a class that both know, and that stands in another place, is refused.
    """
    names, own = _class_names(getattr(input, "classes", ())), _classes_of(path)
    if not own or not names or own == names:
        return None
    if by_name:
        told = {
            "goes on with": [name for name in names if name in own],
            "learns anew": [name for name in names if name not in own],
            "leaves out": [name for name in own if name not in names],
        }
        listed = "; ".join(f"{what} {', '.join(which)}" for what, which in told.items() if which)
        return f"it learnt the classes {', '.join(own)}: this run {listed}"
    if len(own) != len(names):
        kept = f"; --data.classes {' '.join(own)} keeps it" if set(own) <= set(names) else ""
        return (
            f"it learnt the classes {', '.join(own)}, and this run has {', '.join(names)}: their number differs, so "
            f"that the last layers learn all of them from the beginning{kept}"
        )
    if any(name in own and own.index(name) != place for place, name in enumerate(names)):
        fresh = iter([name for name in names if name not in own])
        order = [name if name in names else next(fresh) for name in own]
        raise InvalidInputError(
            f"{path} learnt the classes {', '.join(own)} in this order, and this run has {', '.join(names)}: a class "
            f"would begin with another's weights. Name them in the order {' '.join(order)}"
        )
    replaced = ", ".join(f"{new} in place of {old}" for new, old in zip(names, own, strict=True) if new != old)
    return f"classes that begin with the weights of others: {replaced}"


def _classes_of(path: Path) -> list[str]:
    """The classes of an artifact or a run, or of the artifact whose file of weights is named; none where not known."""
    file = (path.parent if path.name == _WEIGHTS else path) / "recipe.yaml"
    if not file.is_file():
        return []
    return _class_names((read_recipe_file(file)["recipe"].get("input") or {}).get("classes", ()))


def _class_names(classes: Sequence[Any]) -> list[str]:
    """Classes are names, or have one."""
    return [str(kind["name"] if isinstance(kind, Mapping) else getattr(kind, "name", kind)) for kind in classes or ()]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name in an artifact's directory, a run's (its best checkpoint), or a file of weights.

    Files are safetensors, or what ``torch.load`` reads with ``weights_only=True``.
    """
    path = Path(path)
    if path.is_dir():
        if (path / _WEIGHTS).is_file():
            return read_weights(path / _WEIGHTS)
        if (best := best_weights(path)) is None:
            raise InvalidInputError(f"{path} is neither an artifact ({_WEIGHTS}) nor a run with a whole checkpoint")
        return best
    if not path.is_file():
        raise InvalidInputError(f"{path} does not exist; name an artifact, a run or a file of weights")
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except SafetensorError as error:
        raise InvalidInputError(f"{path} is no whole safetensors file: {error}") from error
    except Exception as error:  # of a file that is none of its own, torch raises errors of any kind
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise InvalidInputError(
                f"{path} holds more than weights, which is not loaded; `trivium import` takes the checkpoints that it "
                "names"
            ) from error
        raise InvalidInputError(f"{path} is no file of weights that torch reads") from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    weights = (
        {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not weights:
        raise InvalidInputError(f"{path} holds no tensors by name, neither at its top nor under {', '.join(_NESTED)}")
    return weights


def _bare(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
