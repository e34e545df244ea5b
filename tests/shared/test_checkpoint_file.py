"""Public checkpoints are read as tensors and plain values, without executing code."""

import collections
import os
import pickle
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shared.checkpoint_file import Stub, read_checkpoint, read_state_dict
from shared.errors import InvalidInputError

WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.steps": torch.tensor(3)}


class HistoryBuffer:
    """Like mmengine's class: an object with numpy arrays and functions in its state."""

    def __init__(self):
        self._log_history = np.arange(3.0)
        self._statistics_methods = {"mean": np.mean}


class Hostile:
    """Asks its reader to call ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def assert_weights(found):
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())


@pytest.mark.parametrize("new_layout", [True, False])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "network"])
def test_weights_are_found_where_trainers_keep_them(tmp_path, new_layout, key):
    torch.save(WEIGHTS if key is None else {key: WEIGHTS, "epoch": 3}, tmp_path / "a.pth",
               _use_new_zipfile_serialization=new_layout)  # fmt: skip
    assert_weights(read_state_dict(tmp_path / "a.pth"))


@pytest.mark.parametrize("new_layout", [True, False])
def test_weights_are_read_despite_metadata_of_unknown_classes(tmp_path, new_layout):
    """In mmengine's layout, with both of torch's file formats: mmdet3d publishes checkpoints in the older one."""
    content = {
        "meta": {"epoch": 80, "experiment_name": "a", "seed": np.int64(4), "when": np.arange(2)},
        "state_dict": collections.OrderedDict(WEIGHTS),
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}},
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new_layout)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth", weights_only=True)
    assert_weights(read_state_dict(tmp_path / "a.pth"))
    found = read_checkpoint(tmp_path / "a.pth")
    assert found["meta"]["epoch"] == 80 and found["meta"]["experiment_name"] == "a"
    assert isinstance(found["message_hub"]["log_scalars"]["train/loss"], Stub)
    assert "HistoryBuffer" in type(found["message_hub"]["log_scalars"]["train/loss"]).stands_for


def test_parameters_and_views_keep_their_values(tmp_path):
    whole = torch.arange(12.0)
    content = {
        "state_dict": {"a": torch.nn.Parameter(whole[2:8].view(2, 3)), "b": whole[::2], "half": whole.bfloat16()},
        "meta": HistoryBuffer(),
    }
    torch.save(content, tmp_path / "a.pth")
    found = read_state_dict(tmp_path / "a.pth")
    assert torch.equal(found["a"], whole[2:8].view(2, 3)) and not found["a"].requires_grad
    assert torch.equal(found["b"], whole[::2]) and torch.equal(found["half"], whole.bfloat16())


@pytest.mark.parametrize("new_layout", [True, False])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("echo ran > {marker}",)),
        (eval, ("open({marker!r}, 'w')",)),
        (exec, ("open({marker!r}, 'w')",)),
        (open, ("{marker}", "w")),
        (os.mkdir, ("{marker}",)),
        (getattr, ("{marker}", "upper")),
        (__import__, ("this",)),
    ],
)
def test_functions_named_in_a_hostile_file_are_not_called(tmp_path, new_layout, function, arguments):
    marker = tmp_path / "ran"
    content = {"state_dict": WEIGHTS, "meta": Hostile(function, *(a.format(marker=str(marker)) for a in arguments))}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new_layout)
    sys.modules.pop("this", None)
    assert_weights(read_state_dict(tmp_path / "a.pth"))
    assert not marker.exists() and "this" not in sys.modules
    assert isinstance(read_checkpoint(tmp_path / "a.pth")["meta"], Stub)


def test_a_hostile_file_cannot_alter_the_reader_of_later_files(tmp_path):
    """The opcode BUILD with two dictionaries sets attributes: it could replace the defaults of a shared function."""
    rebuild = torch._utils._rebuild_tensor_v2
    before = rebuild.__defaults__
    opcodes = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x0c__defaults__)s\x86b."
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    (tmp_path / "a.pth").write_bytes(b"".join(head) + opcodes + pickle.dumps([], 2))
    with pytest.raises(InvalidInputError, match=r"a\.pth cannot be read"):
        read_state_dict(tmp_path / "a.pth")
    assert torch._utils._rebuild_tensor_v2 is rebuild and rebuild.__defaults__ == before


def test_a_hostile_file_cannot_have_torch_write_a_file(tmp_path):
    """In the old layout, torch saves a difference in a class's source as CLASS.patch, if the class asks for it."""
    target = tmp_path / "written"
    names = b"".join(pickle.dumps(name, 2)[2:-1] for name in ("__name__", str(target), "dump_patches"))
    function = b"ctorch._utils\n_rebuild_tensor\nN}(" + names + b"\x88u\x86b"
    source = b"".join(pickle.dumps(text, 2)[2:-1] for text in ("a.py", "#!/bin/sh\n"))
    module = b"\x80\x02(X\x06\0\0\0module" + function + source + b"tQ."
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    (tmp_path / "a.pth").write_bytes(b"".join(head) + module + pickle.dumps([], 2))
    with pytest.raises(InvalidInputError):
        read_state_dict(tmp_path / "a.pth")
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_safetensors_are_read(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert_weights(read_state_dict(tmp_path / "a.safetensors"))


def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    with pytest.raises(InvalidInputError, match="there is no file"):
        read_state_dict(path)
    for content in (b"", b"\x80\x02.", b"hello", bytes(range(200)), pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"a\.pth cannot be read"):
            read_state_dict(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(InvalidInputError, match="has no state dict"):
        read_state_dict(path)
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InvalidInputError, match=r"a\.pth cannot be read"):
        read_state_dict(path)
    (tmp_path / "a.safetensors").write_bytes(b"hello")
    with pytest.raises(InvalidInputError, match="cannot be read as a safetensors file"):
        read_state_dict(tmp_path / "a.safetensors")


@pytest.mark.parametrize("new_layout", [True, False])
def test_a_truncated_file_is_reported_as_truncated_wherever_it_ends(tmp_path, new_layout):
    path = tmp_path / "a.pth"
    content = {"state_dict": {f"{number}.weight": torch.rand(30, 30) for number in range(4)}}
    torch.save(content, path, _use_new_zipfile_serialization=new_layout)
    whole = path.read_bytes()
    header = (1, 3, 15, 21) if new_layout else ()
    for length in (*header, *range(1500, len(whole), 700), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidInputError, match=r"a\.pth cannot be read: it is truncated; copy or save it again$"):
            read_checkpoint(path)


def test_torchscript_and_the_oldest_layout_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        archive.add(__file__, "storages")
    with pytest.raises(InvalidInputError, match=r"before 0\.1\.10"):
        read_state_dict(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("b/constants.pkl", b"")
    with pytest.raises(InvalidInputError, match="TorchScript"):
        read_state_dict(tmp_path / "b.pt")
