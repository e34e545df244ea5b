"""Reads checkpoints that other libraries saved with ``torch.save``. Tensors and plain values; nothing is executed.

A checkpoint is a pickle, and a pickle can name any function to call. ``torch.load(weights_only=True)`` refuses what it
does not know, and so refuses most public checkpoints for the sake of their metadata (mmengine's ``HistoryBuffer``,
Lightning's hyperparameters, numpy's scalars). Those are read by an unpickler that restores tensors, built-in
containers and plain values, and puts an inert ``Stub`` in the place of every other class and function: what the file
wants called is never imported, let alone called.
"""

from __future__ import annotations

import pickle
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from shared.errors import InvalidInputError

_ZIP = b"PK\x03\x04"
"""How a zip archive begins, as which torch saves."""
_NESTED = ("state_dict", "model_state_dict", "model", "network")
"""Where trainers keep the weights: mmengine and Lightning, MONAI's tutorials, timm and MONAI's bundles, MONAI."""


class Stub:
    """What stands in the place of an object that is not restored. It takes whatever a pickle does to it.

    ``stands_for`` names its class, ``state`` is what the pickle would have restored: plain values, tensors and stubs.
    """

    stands_for = ""
    state: Any = None

    def __new__(cls, *_: object, **__: object) -> Stub:
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __call__(self, *_: object, **__: object) -> Stub:
        return self

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, _: object, __: object) -> None: ...

    def append(self, _: object) -> None: ...

    def extend(self, _: object) -> None: ...

    def add(self, _: object) -> None: ...


def read_checkpoint(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote, old layout or new, with tensors on the CPU.

    Objects of other classes than tensors, plain values and built-in containers are instances of ``Stub``. Raises
    ``InvalidInputError`` for a file that is none, for TorchScript, and for the tar layout of PyTorch before 0.1.10.
    """
    if not path.is_file():
        raise InvalidInputError(f"there is no file {path}")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
                raise InvalidInputError(f"{path.name} is TorchScript, a program; a checkpoint of weights is needed")
    elif tarfile.is_tarfile(path):
        raise InvalidInputError(f"{path.name} is in the layout of PyTorch before 0.1.10; load and save it with a newer")
    elif _begins_as_archive(path):
        raise _cut_short(path)  # such an archive ends with its table of contents
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_RESTRICTED)
    except Exception as error:  # a damaged pickle raises anything
        reason = str(error).partition("\n")[0]
        if isinstance(error, EOFError) or any(said in reason for said in _SAID_OF_A_CUT):
            raise _cut_short(path) from error
        raise InvalidInputError(
            f"{path.name} cannot be read as a checkpoint that torch saved: {type(error).__name__}: {reason}"
        ) from error


_SAID_OF_A_CUT = ("central directory", "unexpected EOF", "data was truncated")
"""By torch and by pickle, of a file of either layout that ends before it should."""


def _begins_as_archive(path: Path) -> bool:
    """Whether the first bytes, or all that there are, are those of a zip archive."""
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    return len(start) > 0 and _ZIP.startswith(start)


def _cut_short(path: Path) -> InvalidInputError:
    return InvalidInputError(f"{path.name} cannot be read: it is cut short; copy or save it again")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors by name of a checkpoint (``.pth``, ``.pt``, ``.ckpt``) or of a ``.safetensors`` file, on the CPU.

    A state dict is looked for at the top and below the keys under which mmengine, Lightning and MONAI keep it. Raises
    ``InvalidInputError`` where there is no file, where it cannot be read, or where it holds no tensors by name.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found: dict[str, Tensor] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InvalidInputError(f"{path.name} cannot be read as a safetensors file: {error}") from error
        return found
    return state_dict_in(read_checkpoint(path), path.name)


def state_dict_in(content: Any, name: str) -> dict[str, Tensor]:
    """The tensors by name in what ``read_checkpoint`` returned; ``name`` says in a refusal which file it was."""
    candidates = [content] + ([content.get(key) for key in _NESTED] if isinstance(content, Mapping) else [])
    for candidate in reversed(candidates):
        if isinstance(candidate, Mapping):
            found = {
                key: value.detach()
                for key, value in candidate.items()
                if isinstance(key, str) and isinstance(value, Tensor)
            }
            if found:
                return found
    raise InvalidInputError(f"{name} holds no weights by name (a state dict, at the top or below {', '.join(_NESTED)})")


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "bytearray"): lambda *values: _byte_array(*values),
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, requires_grad, hooks, state: data,
}
_CLASSES: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "slice"): slice,
    ("builtins", "complex"): complex,
}


def _byte_array(*values: Any) -> Any:
    """Bytes as a pickle has them; a stub for what was made of one, and never a mere size to set aside."""
    return bytearray(*values) if all(isinstance(value, (bytes, str)) for value in values) else Stub()


class _Unpickler(pickle.Unpickler):
    """Knows the functions and classes above and torch's dtypes; everything else is a class of its own under ``Stub``.

    (torch adds its storages in a subclass.)
    """

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        module_name = {"__builtin__": "builtins"}.get(module_name, module_name)
        if known := _FUNCTIONS.get((module_name, global_name)):
            # A function of its own: a pickle may set attributes of what it is given.
            return lambda *arguments: known(*arguments)
        if cls := _CLASSES.get((module_name, global_name)):
            return cls
        if module_name == "torch" and isinstance(dtype := getattr(torch, global_name, None), torch.dtype):
            return dtype
        return type("Stub", (Stub,), {"stands_for": f"{module_name}.{global_name}"})


def _load(file: Any, **settings: Any) -> Any:
    return _Unpickler(file, **settings).load()


_RESTRICTED: Any = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="restricted pickle")
