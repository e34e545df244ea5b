"""Checkpoints: written aside, renamed when complete, verified when read. No pickles.

A checkpoint is a directory: a safetensors file for the tensors of each part of the state (``model.safetensors``,
``optimizer.safetensors``, ...), ``state.json`` for all else, and ``digests.json`` with the SHA-256 of each of these.
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
from shared.comms.sharded_state import gather_tensors, is_spread, shard_like, shard_optimizer_state
from shared.errors import InvalidInputError

_STATE, _DIGESTS = "state.json", "digests.json"
_LOOKS = 20
Read = TypeVar("Read")


@runtime_checkable
class Stateful(Protocol):
    """What a checkpoint keeps: a model, an optimizer, a schedule, an average of weights, a communication hook."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass
class Progress:
    """All that a run knows about itself besides the state of its parts.

    ``step`` is the number of steps done, ``samples`` the length of the training data, ``history`` one entry for each
    evaluation, ``best_step`` that of the best of them; ``validate_every`` how many steps lie between two;
    ``device`` is where the last steps were computed, ``precision`` in which format all of them were.
    ``micro_batch`` is set where the memory was too small for ``micro_batch_asked`` samples at once (None: for all).
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
    """The checkpoints of a run: the last ``keep`` of them, and the best.

    ``save`` and ``load`` are called on every process of the run, for a state may be spread over them: its tensors are
    gathered one by one, and the process with ``writes`` writes whole ones. What is ``own`` each process writes into a
    file of its own, in the directory that all share.
    """

    def __init__(self, path: Path, *, recipe_digest: str, keep: int = 2, group: Group | None = None) -> None:
        self.path, self.recipe_digest, self.keep, self.group = path, recipe_digest, keep, group
        self.writes = group is None or group.leader

    def save(
        self,
        state: Mapping[str, Stateful],
        progress: Progress,
        also: Collection[int] = (),
        own: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves the state after ``progress.step`` steps.

        Of the older checkpoints the last ones stay, and those of the steps in ``also``. ``own`` is what this process
        alone keeps; where one process has it, all have.
        """
        states = {name: gather_tensors(part.state_dict(), keep=self.writes) for name, part in state.items()}
        aside = self.path / f".step-{progress.step:08d}"
        if self.writes:
            for torn in self.path.glob(".step-*"):
                shutil.rmtree(torn)
            aside.mkdir(parents=True)
        if own is not None and self.group is not None:
            self.group.barrier()
            name = _own_name(self.group.rank)
            (aside / f"{name}.json").write_text(json.dumps(_write_tensors(aside, name, own)), encoding="utf-8")
            self.group.barrier()
        if not self.writes:
            return
        try:
            outlines = {name: _write_tensors(aside, name, values) for name, values in states.items()}
            document = {"recipe_digest": self.recipe_digest, "progress": vars(progress), "state": outlines}
            (aside / _STATE).write_text(json.dumps(document), encoding="utf-8")
            digests = {file.name: _digest(file) for file in sorted(aside.iterdir())}
            (aside / _DIGESTS).write_text(json.dumps(digests, indent=1), encoding="utf-8")
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)  # half a checkpoint would fill what is left of a full disk
            raise
        final = self._at(progress.step)
        # What stands at this step or a later one was torn, or the run would have gone on from there.
        for beyond in self._steps():
            if beyond >= final:
                shutil.rmtree(beyond)
        publish(aside, final)
        kept = {self._at(step) for step in also}
        for old in self._steps()[: -self.keep]:
            if old not in kept:
                shutil.rmtree(old)

    def load(self, path: Path, state: Mapping[str, Stateful]) -> Progress:
        """Restores every part of ``state`` in place and returns the progress.

        Refuses a checkpoint of another recipe, and one with other parts.
        """
        document = json.loads((path / _STATE).read_text(encoding="utf-8"))
        if document["recipe_digest"] != self.recipe_digest:
            raise InvalidInputError(
                f"{path} was written by another recipe; go on with the settings in recipe.yaml, or name a new run"
            )
        if (held := document["state"].keys()) != state.keys():
            raise InvalidInputError(
                f"{path} holds {', '.join(sorted(held))}, and the run has {', '.join(sorted(state))}; name a new run"
            )
        for name, part in state.items():
            file = path / f"{name}.safetensors"
            read = _filled(document["state"][name], load_file(file) if file.exists() else {})
            if isinstance(part, Optimizer):
                part.load_state_dict(shard_optimizer_state(read, part))
                _match_memory_layout(part)
            else:
                part.load_state_dict(shard_like(read, part.state_dict()))
        return Progress(**document["progress"])

    def load_own(self, path: Path) -> Any:
        """What this process alone kept in the checkpoint, None where it holds nothing for its rank."""
        name = _own_name(0 if self.group is None else self.group.rank)
        if not (path / f"{name}.json").exists():
            return None
        outline = json.loads((path / f"{name}.json").read_text(encoding="utf-8"))
        file = path / f"{name}.safetensors"
        return _filled(outline, load_file(file) if file.exists() else {})

    def newest(self) -> tuple[Path | None, list[Path]]:
        """The newest whole checkpoint, and the torn or altered ones that are newer, which are passed over."""
        torn: list[Path] = []
        for path in reversed(self._steps()):
            if _complete(path):
                return path, torn
            torn.append(path)
        return None, torn

    def latest(self) -> Path | None:
        """The newest whole checkpoint; a torn or altered one is passed over for the one before."""
        return self.newest()[0]

    def best(self) -> Path | None:
        """The checkpoint with the best monitored score by what the newest one says, where there is a whole one."""
        latest = self.latest()
        path = None if latest is None else self._at(read_progress(latest).best_step)
        return path if path is not None and _complete(path) else None

    def _at(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def _steps(self) -> list[Path]:
        return sorted(self.path.glob("step-*"))


def read_progress(path: Path) -> Progress:
    """What the run knew about itself when it wrote the checkpoint."""
    return Progress(**json.loads((path / _STATE).read_text(encoding="utf-8"))["progress"])


def read_while_training(read: Callable[[], Read]) -> Read:
    """``read()`` of a run's checkpoints, again where a training that goes on has removed one meanwhile."""
    for _ in range(_LOOKS):
        try:
            return read()
        except FileNotFoundError:
            continue
    return read()


def best_weights(path: Path) -> dict[str, Tensor] | None:
    """The weights of the best checkpoint of the run at ``path``, or of its newest one; None where none is whole."""
    checkpoints = Checkpoints(path / "checkpoints", recipe_digest="")

    def read() -> dict[str, Tensor] | None:
        checkpoint = checkpoints.best() or checkpoints.latest()
        return None if checkpoint is None else model_state(checkpoint)

    return read_while_training(read)


def _own_name(rank: int) -> str:
    return f"process-{rank:05d}"


def _write_tensors(folder: Path, name: str, values: Any) -> Any:
    """Writes the tensors in ``values`` into ``name.safetensors``, where there are any, and returns the outline."""
    tensors: dict[str, Tensor] = {}
    outline = _outline(values, tensors, "")
    if tensors:
        file = folder / f"{name}.safetensors"
        try:
            save_file({key: _detached(value) for key, value in tensors.items()}, file)
        except SafetensorError as error:
            # Its own kind of error, whose number stands in its text alone.
            number = next((one for one in (errno.ENOSPC, errno.EDQUOT) if f"os error {one})" in str(error)), errno.EIO)
            raise OSError(number, str(error), str(file)) from error
    return outline


def _match_memory_layout(optimizer: Optimizer) -> None:
    """Gives the tensors of the state their parameter's strides, which files do not hold.

    Fused kernels go through memory as it lies: with a contiguous momentum a parameter in channels_last is updated by
    the momentum of others.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            same = isinstance(value, Tensor) and value.shape == parameter.shape and not is_spread(value)
            if same and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def model_state(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, by name: the averaged ones, where the run keeps an average (``ema_decay``)."""
    weights = dict(load_file(path / "model.safetensors"))
    if (average := path / "ema.safetensors").is_file():
        prefix = "average."
        averaged = load_file(average).items()
        weights |= {name.removeprefix(prefix): value for name, value in averaged if name.startswith(prefix)}
    return weights


def _complete(path: Path) -> bool:
    try:
        digests = json.loads((path / _DIGESTS).read_text(encoding="utf-8"))
        return bool(digests) and all(_digest(path / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _outline(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """``value`` in JSON types; its tensors go into ``tensors`` and leave their names.

    A plain dictionary stays one where its keys are strings. What JSON lacks is written as a dictionary of one key:
    ``$tensor``, ``$tuple``, and ``$items`` for a dictionary with other keys.
    """
    if isinstance(value, Tensor):
        while name in tensors:
            name += "'"
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, Mapping):
        items = {key: _outline(part, tensors, f"{name}.{key}" if name else str(key)) for key, part in value.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in items):
            return items
        return {"$items": [[key, part] for key, part in items.items()]}
    if isinstance(value, (list, tuple)):
        parts = [
            _outline(part, tensors, f"{name}.{number}" if name else str(number)) for number, part in enumerate(value)
        ]
        return {"$tuple": parts} if isinstance(value, tuple) else parts
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    raise TypeError(
        f"{name} is a {type(value).__name__}: a state holds tensors and JSON's types, for nothing is pickled"
    )


def _filled(outline: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value whose outline it is."""
    if isinstance(outline, list):
        return [_filled(part, tensors) for part in outline]
    if not isinstance(outline, dict):
        return outline
    if "$tensor" in outline:
        return tensors[outline["$tensor"]]
    if "$tuple" in outline:
        return tuple(_filled(part, tensors) for part in outline["$tuple"])
    if "$items" in outline:
        return {key: _filled(part, tensors) for key, part in outline["$items"]}
    if "$dtype" in outline:
        return getattr(torch, outline["$dtype"])
    return {key: _filled(part, tensors) for key, part in outline.items()}
