"""The default device: a server's setting is ``auto`` by default."""

from __future__ import annotations

import pytest
import torch

from shared.device import choose_device
from shared.errors import InvalidInputError
from shared.serve.settings import Settings


@pytest.mark.parametrize("available", [False, True])
def test_the_default_is_the_gpu_if_there_is_one(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    for requested in (None, "auto", Settings().device):
        assert choose_device(requested) == ("cuda" if available else "cpu")
    assert choose_device("cpu") == "cpu"
    if available:
        assert choose_device("cuda") == "cuda"
    else:
        with pytest.raises(InvalidInputError, match="torch finds no usable GPU"):
            choose_device("cuda")
