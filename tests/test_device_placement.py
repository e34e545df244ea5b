"""Every network trains and predicts with all its tensors on the device that it was given, on a fake or real GPU."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from apps.medical.adapters.nifti import nifti
from shared.app import find
from shared.comms.group import Group
from shared.data.dataset import to_device
from shared.deploy.predictor import Request, answer
from shared.deploy.registry import shipped
from shared.engine.losses import combine
from shared.precision import autocast, autocast_dtype, cpu_runs_recurrent_layers
from tests.apps.medical.chests import chest
from tests.fake_cuda import FakeCudaTensor, fake_cuda

pytestmark = pytest.mark.filterwarnings("ignore")

RECIPES = [("medical", "tiny"), ("driving", "tiny"), ("driving", "fcos3d_tiny"), ("finance", "tiny")]


def test_the_fake_gpu_refuses_to_mix_devices() -> None:
    on_cpu = torch.ones(3)
    with fake_cuda() as device:
        on_gpu = torch.arange(3.0, device="cuda")
        assert on_gpu.device == device and on_gpu.is_cuda and isinstance(on_gpu.to("cuda"), FakeCudaTensor)
        assert type((on_gpu * 2).cpu()) is Tensor and (on_gpu * 2).cpu().tolist() == [0, 2, 4]
        with pytest.raises(RuntimeError, match=r"expected all tensors to be on cuda:0, and found \(3,\) on cpu"):
            on_gpu + on_cpu
        with pytest.raises((RuntimeError, TypeError)):
            on_gpu.numpy()
        on_gpu[[0, 2]] = 5.0
        assert torch.where(on_gpu > 1, on_gpu, -1.0).tolist() == [5, -1, 5]
    assert not isinstance(torch.tensor([1.0]), FakeCudaTensor)


@pytest.mark.parametrize("gpu", ["fake", "real"])
@pytest.mark.parametrize(("app", "name"), RECIPES)
def test_a_training_step_on_the_gpu_equals_one_on_the_cpu(app: str, name: str, gpu: str) -> None:
    if gpu == "real" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    recipe = find(app).recipes()[name]()
    task, data = recipe.task.build(), recipe.data.validation(recipe.input)
    indices = np.arange(recipe.limits.batch, dtype=np.int64)

    def train_one_step(device: torch.device) -> tuple[float, float, dict[str, float]]:
        torch.manual_seed(0)
        model = recipe.model.build(recipe.input).to(device).train()
        optimizer = recipe.optimizer.build(model)
        torch.manual_seed(1)
        loss_terms = task.loss(model, to_device(data.batch(indices, None), device))
        loss = combine(loss_terms, 1.0, Group(0, 1, device))
        assert loss.device == device
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scores = task.scores()
        with torch.no_grad():
            task.evaluate(model.eval(), to_device(data.batch(indices, None), device), scores)
        return loss.item(), norm.item(), scores.summary()

    expected = train_one_step(torch.device("cpu"))
    with fake_cuda() if gpu == "fake" else nullcontext(torch.device("cuda", 0)) as device:
        found = train_one_step(device)
    if gpu == "real":
        # The kernels differ: the loss agrees, but gradients and scores need not agree in every digit.
        assert found[0] == pytest.approx(expected[0], rel=2e-2)
        return
    assert found[0] == pytest.approx(expected[0], rel=1e-5) and found[1] == pytest.approx(expected[1], rel=1e-3)
    assert found[2] == pytest.approx(expected[2], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("app", "name"), RECIPES)
def test_a_training_step_in_bf16_has_nearly_the_loss_of_one_in_fp32(app: str, name: str) -> None:
    """Training on a GPU uses bf16 by default; this test makes the same casts on the CPU."""
    recipe = find(app).recipes()[name]()
    task, cpu = recipe.task.build(), torch.device("cpu")
    batch = recipe.data.validation(recipe.input).batch(np.arange(recipe.limits.batch, dtype=np.int64), None)
    losses = []
    if app == "finance" and not cpu_runs_recurrent_layers(torch.bfloat16):
        pytest.skip("this CPU has no recurrent layers in bf16")
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        model = recipe.model.build(recipe.input).train()
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("conv_cls.bias"):
                # FCOS3D scales sizes by those of the most likely class. In an untrained network all classes are almost
                # equally likely, so bf16 would pick other classes than fp32.
                parameter.data[0] += 1.0
        torch.manual_seed(1)
        with autocast(autocast_dtype(precision, cpu), cpu):
            loss_terms = task.loss(model, batch)
        loss = combine(loss_terms, 1.0, Group(0, 1, cpu))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        assert norm > 0 and all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
        with torch.no_grad(), autocast(autocast_dtype(precision, cpu), cpu):
            task.evaluate(model.eval(), batch, task.scores())
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=3e-2)
    assert losses[1] != losses[0]


@pytest.mark.parametrize("app", ["medical", "driving", "finance"])
def test_a_prediction_on_the_fake_gpu_equals_one_on_the_cpu(app: str, tmp_path: Path) -> None:
    request = Request(files=files_for(app, tmp_path), options={})
    on_cpu = find(app).predictor(shipped(find(app)), "cpu")
    expected = answer(on_cpu, request, find(app).codec(on_cpu)).result
    with fake_cuda():
        on_gpu = find(app).predictor(shipped(find(app)), "cuda")
        found = answer(on_gpu, request, find(app).codec(on_gpu)).result
    assert found == rounded(expected)
    assert found[{"medical": "findings", "driving": "boxes", "finance": "events"}[app]]


def files_for(app: str, folder: Path) -> list[Path]:
    """The synthetic sample; for medical a small chest, as the phantom takes half a minute and runs the same code."""
    if app == "medical":
        (folder / "chest.nii.gz").write_bytes(nifti(chest()))
        return [folder / "chest.nii.gz"]
    return list(next(sample for sample in find(app).samples() if sample.synthetic).files(folder))


def rounded(value: Any) -> Any:
    """A result to compare to three digits: a GPU gets other batch sizes, which round differently."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return pytest.approx(value, rel=2e-3, abs=1e-3) if isinstance(value, float) else value
