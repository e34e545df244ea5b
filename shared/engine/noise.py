"""The noise inside a model, such as dropout: keyed by the step and the process, so that a resume repeats it."""

from __future__ import annotations

import hashlib

import torch

from shared.comms.group import Group


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds the generators that a step draws from, as ``torch.manual_seed`` does: that takes 200 times as long."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def noise_seed(seed: int, step: int, group: Group) -> int:
    """The seed of one step on one process."""
    words = hashlib.blake2b(f"{seed} {step} {group.rank} {group.world}".encode(), digest_size=8).digest()
    return int.from_bytes(words, "little") >> 1
