"""Reads weights that other libraries saved, with ``torch.save`` or as safetensors, without executing code.

A checkpoint is a pickle, and a pickle can name any function to call. ``torch.load(weights_only=True)`` rejects unknown
classes, and so rejects most public checkpoints because of their metadata (mmengine's ``HistoryBuffer``, Lightning's
hyperparameters, numpy's scalars). These are read with an unpickler that restores tensors, built-in containers and plain
values, and replaces every other class and function by an inert ``Stub``. Functions named in the file are never
imported, let alone called.
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

_ZIP_SIGNATURE = b"PK\x03\x04"
"""The first bytes of a zip archive, the format that torch saves in."""
_WEIGHT_KEYS = ("state_dict", "model_state_dict", "net", "model", "network", "network_weights")
"""Keys of the weights: mmengine, Lightning and timm; MONAI's tutorials (two); torchvision and MONAI; MONAI; nnU-Net."""


class Stub:
    """Replaces an object that is not restored. It accepts every operation that a pickle performs on an object.

    ``stands_for`` names the object's class. ``state`` is the pickled state: plain values, tensors and stubs.
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
    """Reads a file written by ``torch.save``, in the old or the new layout, with tensors on the CPU.

    Objects other than tensors, plain values and built-in containers become instances of ``Stub``. Raises
    ``InvalidInputError`` for a file that is not a checkpoint, for TorchScript, and for the tar layout of PyTorch before
    0.1.10.
    """
    if not path.is_file():
        raise InvalidInputError(f"there is no file {path}")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
                raise InvalidInputError(f"{path.name} is a TorchScript program; use a checkpoint of weights")
    elif tarfile.is_tarfile(path):
        raise InvalidInputError(
            f"{path.name} has the layout of PyTorch before 0.1.10; save it again with a newer version"
        )
    elif _starts_like_zip(path):
        raise _truncated_error(path)  # a zip archive has its table of contents at the end
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_RESTRICTED_PICKLE)
    except Exception as error:  # a damaged pickle can raise any error
        reason = str(error).partition("\n")[0]
        if isinstance(error, EOFError) or any(message in reason for message in _TRUNCATION_MESSAGES):
            raise _truncated_error(path) from error
        raise InvalidInputError(
            f"{path.name} cannot be read as a checkpoint that torch saved: {type(error).__name__}: {reason}"
        ) from error


_TRUNCATION_MESSAGES = ("central directory", "unexpected EOF", "data was truncated")
"""Parts of the messages of torch and pickle for a truncated file of either layout."""


def _starts_like_zip(path: Path) -> bool:
    """Whether the file starts with the first bytes of a zip archive, or with part of them if it is shorter."""
    with path.open("rb") as file:
        start = file.read(len(_ZIP_SIGNATURE))
    return len(start) > 0 and _ZIP_SIGNATURE.startswith(start)


def _truncated_error(path: Path) -> InvalidInputError:
    return InvalidInputError(f"{path.name} cannot be read: it is truncated; copy or save it again")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads the tensors by name of a checkpoint (``.pth``, ``.pt``, ``.ckpt``) or a ``.safetensors`` file, on the CPU.

    The state dict may be at the top level or under a key of ``_WEIGHT_KEYS``. Raises ``InvalidInputError`` if the file
    does not exist, cannot be read, or has no tensors by name.
    """
    if path.suffix == ".safetensors" and path.is_file():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state_dict: dict[str, Tensor] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InvalidInputError(f"{path.name} cannot be read as a safetensors file: {error}") from error
        return state_dict
    return state_dict_in(read_checkpoint(path), path.name)


def state_dict_in(content: Any, name: str) -> dict[str, Tensor]:
    """Finds the tensors by name in the content of a checkpoint; ``name`` is the file's name for the error message."""
    candidates = [content] + ([content.get(key) for key in _WEIGHT_KEYS] if isinstance(content, Mapping) else [])
    for candidate in reversed(candidates):
        if isinstance(candidate, Mapping):
            state_dict = {
                key: value.detach()
                for key, value in candidate.items()
                if isinstance(key, str) and isinstance(value, Tensor)
            }
            if state_dict:
                return state_dict
    raise InvalidInputError(
        f"{name} has no state dict, neither at the top level nor under {', '.join(_WEIGHT_KEYS)}; save that of the "
        "network, torch.save(model.state_dict(), FILE), not the network itself"
    )


def _make_bytearray(*values: Any) -> Any:
    """Makes a bytearray from bytes or text; returns a stub for other arguments, such as a size to allocate."""
    return bytearray(*values) if all(isinstance(value, (bytes, str)) for value in values) else Stub()


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "bytearray"): _make_bytearray,
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


class _Function:
    """A function without attributes that a pickle could set.

    If a checkpoint in the old layout gave a function another ``__name__`` and ``dump_patches``, torch would write text
    from the checkpoint to a file of that name.
    """

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class _Unpickler(pickle.Unpickler):
    """Restores the functions and classes above and torch's dtypes; any other name becomes a new subclass of ``Stub``.

    torch adds its storages in a subclass.
    """

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        module_name = {"__builtin__": "builtins"}.get(module_name, module_name)
        if function := _FUNCTIONS.get((module_name, global_name)):
            return _Function(function)  # a new one each time, because a pickle may replace its slot
        if cls := _CLASSES.get((module_name, global_name)):
            return cls
        if module_name == "torch" and isinstance(dtype := getattr(torch, global_name, None), torch.dtype):
            return dtype
        return type("Stub", (Stub,), {"stands_for": f"{module_name}.{global_name}"})


def _load(file: Any, **settings: Any) -> Any:
    return _Unpickler(file, **settings).load()


_RESTRICTED_PICKLE: Any = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="restricted pickle")
