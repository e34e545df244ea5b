"""The default device: a server's setting is ``auto`` by default."""

from __future__ import annotations

import pytest
import torch

from shared.device import choose_device
from shared.errors import InvalidInputError
from shared.serve.settings import Settings


@pytest.mark.parametrize("there", [False, True])
def test_the_default_is_the_gpu_if_there_is_one(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    for asked in (None, "auto", Settings().device):
        assert choose_device(asked) == ("cuda" if there else "cpu")
    assert choose_device("cpu") == "cpu"
    if there:
        assert choose_device("cuda") == "cuda"
    else:
        with pytest.raises(InvalidInputError, match="torch finds no usable GPU"):
            choose_device("cuda")
