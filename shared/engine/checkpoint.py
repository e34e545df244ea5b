"""Checkpoints: written to a temporary directory, renamed when complete, verified when read. No pickles.

A checkpoint is a directory with one safetensors file for the tensors of each component (``model.safetensors``,
``optimizer.safetensors``, ...), ``state.json`` for everything else, and ``digests.json`` with the SHA-256 of each file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from shared.atomic_files import publish
from shared.comms.group import Group
from shared.comms.sharded_state import gather_tensors, is_sharded, shard_like, shard_optimizer_state
from shared.errors import DISK_FULL, InvalidInputError

_STATE, _DIGESTS = "state.json", "digests.json"
_READ_ATTEMPTS = 20
Contents = TypeVar("Contents")


@runtime_checkable
class Stateful(Protocol):
    """A component that a checkpoint saves: model, optimizer, schedule, averaged weights, communication hook."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass
class Progress:
    """The progress of a run: everything in a checkpoint besides the state of its components.

    step               number of completed steps
    samples            number of training samples
    history            one entry for each evaluation
    best_step          step of the best evaluation
    validate_every     number of steps between two evaluations
    device             device of the last steps
    precision          number format of all steps
    micro_batch        the reduced micro-batch if the memory was too small for the requested one, else None
    micro_batch_asked  the requested micro-batch; None is the whole batch of the process
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    best_step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    validate_every: int = 0
    device: str = ""
    precision: str = ""
    micro_batch: int | None = None
    micro_batch_asked: int | None = None


class Checkpoints:
    """The checkpoints of a run: the last ``keep`` and the best.

    Every process of the run must call ``save`` and ``load``, because the state may be sharded: its tensors are gathered
    one by one, and the process with ``is_writer`` writes the full tensors. Each process writes its ``process_state`` to
    a separate file in the shared directory.
    """

    def __init__(self, path: Path, *, recipe_digest: str, keep: int = 2, group: Group | None = None) -> None:
        self.path, self.recipe_digest, self.keep, self.group = path, recipe_digest, keep, group
        self.is_writer = group is None or group.leader

    def save(
        self,
        state: Mapping[str, Stateful],
        progress: Progress,
        keep_steps: Collection[int] = (),
        process_state: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves the state after ``progress.step`` steps and deletes old checkpoints.

        Keeps the last checkpoints and those of ``keep_steps``. ``process_state`` is the state that only this process
        has; either all processes pass it or none.
        """
        states = {name: gather_tensors(part.state_dict(), keep=self.is_writer) for name, part in state.items()}
        temporary = self.path / f".step-{progress.step:08d}"
        if self.is_writer:
            for incomplete in self.path.glob(".step-*"):
                shutil.rmtree(incomplete)
            temporary.mkdir(parents=True)
        if process_state is not None and self.group is not None:
            self.group.barrier()
            name = _process_file_stem(self.group.rank)
            (temporary / f"{name}.json").write_text(
                json.dumps(_write_tensors(temporary, name, process_state)), encoding="utf-8"
            )
            self.group.barrier()
        if not self.is_writer:
            return
        try:
            encoded_states = {name: _write_tensors(temporary, name, values) for name, values in states.items()}
            document = {"recipe_digest": self.recipe_digest, "progress": vars(progress), "state": encoded_states}
            (temporary / _STATE).write_text(json.dumps(document), encoding="utf-8")
            digests = {file.name: _digest(file) for file in sorted(temporary.iterdir())}
            (temporary / _DIGESTS).write_text(json.dumps(digests, indent=1), encoding="utf-8")
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)  # a partial checkpoint would fill the rest of a full disk
            raise
        final = self._step_path(progress.step)
        # Checkpoints of this step or later ones are damaged, else the run would have resumed from them.
        for existing in self._all_paths():
            if existing >= final:
                shutil.rmtree(existing)
        publish(temporary, final)
        retained = {self._step_path(step) for step in keep_steps}
        for old in self._all_paths()[: -self.keep]:
            if old not in retained:
                shutil.rmtree(old)

    def load(self, path: Path, state: Mapping[str, Stateful]) -> Progress:
        """Restores every component of ``state`` in place and returns the progress.

        Raises ``InvalidInputError`` if the checkpoint has a different recipe or different components.
        """
        document = json.loads((path / _STATE).read_text(encoding="utf-8"))
        if document["recipe_digest"] != self.recipe_digest:
            raise InvalidInputError(
                f"{path} was written with a different recipe; use the settings in recipe.yaml, or name a new run"
            )
        if (saved := document["state"].keys()) != state.keys():
            raise InvalidInputError(
                f"{path} contains {', '.join(sorted(saved))}, and the run has {', '.join(sorted(state))}; name a new "
                "run"
            )
        for name, part in state.items():
            file = path / f"{name}.safetensors"
            values = _decode(document["state"][name], load_file(file) if file.exists() else {})
            if isinstance(part, Optimizer):
                part.load_state_dict(shard_optimizer_state(values, part))
                _match_memory_layout(part)
            else:
                part.load_state_dict(shard_like(values, part.state_dict()))
        return Progress(**document["progress"])

    def load_process_state(self, path: Path) -> Any:
        """The state that only this process saved in the checkpoint; None if there is none for its rank."""
        name = _process_file_stem(0 if self.group is None else self.group.rank)
        if not (path / f"{name}.json").exists():
            return None
        encoded = json.loads((path / f"{name}.json").read_text(encoding="utf-8"))
        file = path / f"{name}.safetensors"
        return _decode(encoded, load_file(file) if file.exists() else {})

    def latest_and_damaged(self) -> tuple[Path | None, list[Path]]:
        """The newest intact checkpoint, and the newer ones that are incomplete or altered."""
        damaged: list[Path] = []
        for path in reversed(self._all_paths()):
            if _is_intact(path):
                return path, damaged
            damaged.append(path)
        return None, damaged

    def latest(self) -> Path | None:
        """The newest intact checkpoint; incomplete or altered ones are skipped. None if there is none."""
        return self.latest_and_damaged()[0]

    def best(self) -> Path | None:
        """The checkpoint that the newest one records as the best; None if it is missing or damaged."""
        latest = self.latest()
        path = None if latest is None else self._step_path(read_progress(latest).best_step)
        return path if path is not None and _is_intact(path) else None

    def _step_path(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def _all_paths(self) -> list[Path]:
        return sorted(self.path.glob("step-*"))


def read_progress(path: Path) -> Progress:
    """The progress of the run when it wrote the checkpoint at ``path``."""
    return Progress(**json.loads((path / _STATE).read_text(encoding="utf-8"))["progress"])


def read_while_training(read: Callable[[], Contents]) -> Contents:
    """Calls ``read()`` on a run's checkpoints, and retries if the running training has deleted one in the meantime."""
    for _ in range(_READ_ATTEMPTS):
        try:
            return read()
        except FileNotFoundError:
            continue
    return read()


def best_weights(path: Path) -> dict[str, Tensor] | None:
    """The weights of the best checkpoint of the run at ``path``, else of its newest one; None if none is intact."""
    checkpoints = Checkpoints(path / "checkpoints", recipe_digest="")

    def read() -> dict[str, Tensor] | None:
        checkpoint = checkpoints.best() or checkpoints.latest()
        return None if checkpoint is None else model_state(checkpoint)

    return read_while_training(read)


def _process_file_stem(rank: int) -> str:
    return f"process-{rank:05d}"


def _write_tensors(folder: Path, name: str, values: Any) -> Any:
    """Writes the tensors in ``values`` to ``name.safetensors``, if there are any, and returns the encoded values."""
    tensors: dict[str, Tensor] = {}
    encoded = _encode(values, tensors, "")
    if tensors:
        file = folder / f"{name}.safetensors"
        try:
            save_file({key: _contiguous_copy(value) for key, value in tensors.items()}, file)
        except SafetensorError as error:
            # safetensors raises its own error, which contains the error number only in its text.
            number = next((code for code in DISK_FULL if f"os error {code})" in str(error)), errno.EIO)
            raise OSError(number, str(error), str(file)) from error
    return encoded


def _match_memory_layout(optimizer: Optimizer) -> None:
    """Gives the tensors of the optimizer state the strides of their parameters, which files do not store.

    Fused kernels ignore strides and read memory in order: if a parameter is channels_last and its momentum is
    contiguous, each element is updated with the momentum of another.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            comparable = isinstance(value, Tensor) and value.shape == parameter.shape and not is_sharded(value)
            if comparable and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def model_state(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, by name: the averaged weights if the run has them (``ema_decay``)."""
    weights = dict(load_file(path / "model.safetensors"))
    if (average := path / "ema.safetensors").is_file():
        prefix = "average."
        averaged = load_file(average).items()
        weights |= {name.removeprefix(prefix): value for name, value in averaged if name.startswith(prefix)}
    return weights


def _is_intact(path: Path) -> bool:
    try:
        digests = json.loads((path / _DIGESTS).read_text(encoding="utf-8"))
        return bool(digests) and all(_digest(path / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _contiguous_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _encode(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """``value`` in JSON types. Adds its tensors to ``tensors`` and puts their names in their place.

    A dictionary with string keys stays a dictionary. Types that JSON lacks become a dictionary with one key:
    ``$tensor``, ``$tuple``, ``$dtype``, and ``$items`` for a dictionary with other keys.
    """
    if isinstance(value, Tensor):
        while name in tensors:
            name += "'"
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, Mapping):
        items = {key: _encode(part, tensors, f"{name}.{key}" if name else str(key)) for key, part in value.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in items):
            return items
        return {"$items": [[key, part] for key, part in items.items()]}
    if isinstance(value, (list, tuple)):
        parts = [
            _encode(part, tensors, f"{name}.{number}" if name else str(number)) for number, part in enumerate(value)
        ]
        return {"$tuple": parts} if isinstance(value, tuple) else parts
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    raise TypeError(
        f"{name} is a {type(value).__name__}: a state may contain only tensors and JSON types, nothing is pickled"
    )


def _decode(encoded: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of ``_encode``."""
    if isinstance(encoded, list):
        return [_decode(part, tensors) for part in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if "$tensor" in encoded:
        return tensors[encoded["$tensor"]]
    if "$tuple" in encoded:
        return tuple(_decode(part, tensors) for part in encoded["$tuple"])
    if "$items" in encoded:
        return {key: _decode(part, tensors) for key, part in encoded["$items"]}
    if "$dtype" in encoded:
        return getattr(torch, encoded["$dtype"])
    return {key: _decode(part, tensors) for key, part in encoded.items()}
