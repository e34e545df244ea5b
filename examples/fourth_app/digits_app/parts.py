"""The parts of the application: scikit-learn's digits, a network, its task and recipe, the predictor and the codec."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from shared.app import DenseNetwork
from shared.deploy.artifact import Artifact, load_weights
from shared.deploy.predictor import Decoded, Request, Response
from shared.errors import InvalidInputError
from shared.optimizers import AdamW
from shared.recipe import Limits, Recipe


class Images:  # a Dataset: images (N, 64) in [0, 1] and their digits (N)
    def __init__(self, rows: slice) -> None:
        images, digits = load_digits(return_X_y=True)
        self.image, self.digit = torch.tensor(images[rows] / 16).float(), torch.tensor(digits[rows])

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, indices: Any, key: Any) -> dict[str, Tensor]:
        return {"image": self.image[indices.copy()], "digit": self.digit[indices.copy()]}


@dataclass(frozen=True, kw_only=True)
class Digits:  # a DataConfig: its fields are flags of `trivium train digits`, such as --data.held-out
    held_out: int = 297

    def train(self, input: Any) -> Images:
        return Images(slice(None, -self.held_out))

    def validation(self, input: Any) -> Images:
        return Images(slice(-self.held_out, None))

    def fingerprint(self) -> dict[str, Any]:
        return {"description": f"scikit-learn's digits without the last {self.held_out}", "synthetic": False}


@dataclass(frozen=True, kw_only=True)
class Network:  # a ModelConfig
    width: int = 32

    def build(self, input: Any = None) -> nn.Module:
        return nn.Sequential(nn.Linear(64, self.width), nn.ReLU(), nn.Linear(self.width, 10))


@dataclass
class Accuracy:  # the Scores of one process; the engine merges those of several processes
    correct: int = 0
    total: int = 0

    def merge(self, other: "Accuracy") -> None:
        self.correct, self.total = self.correct + other.correct, self.total + other.total

    def summary(self) -> dict[str, float]:
        return {"accuracy": self.correct / self.total, "loss": 1 - self.correct / self.total}


@dataclass(frozen=True)
class Classify:  # a Task, and the TaskConfig that builds it
    def build(self) -> "Classify":
        return self

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch["image"]), batch["digit"])

    def evaluate(self, model: nn.Module, batch: Any, scores: Accuracy) -> None:
        scores.correct += int((model(batch["image"]).argmax(1) == batch["digit"]).sum())
        scores.total += len(batch["digit"])

    def scores(self) -> Accuracy:
        return Accuracy()


def small() -> Recipe:
    """Trains in seconds on one core."""
    optimizer, limits = AdamW(learning_rate=0.01), Limits(epochs=20)
    return Recipe(model=Network(), data=Digits(), task=Classify(), optimizer=optimizer, limits=limits)


def dense(recipe: Recipe, network: nn.Module) -> DenseNetwork:
    """The part of the model that is exported as ONNX: all of it."""
    return DenseNetwork(module=network, inputs={"image": torch.rand(2, 64)}, outputs=("logits",))


class DigitPredictor:  # a Predictor: images (64,) in, digits and their probabilities out
    batching = True  # a batch takes little longer than one image, so the server predicts waiting requests together

    def __init__(self, artifacts: Sequence[Artifact], device: str) -> None:
        artifact = artifacts[0]
        settings = artifact.recipe()["recipe"]["model"]
        self.network, self.device = load_weights(Network(width=settings["width"]).build(), artifact, device), device

    @torch.no_grad()
    def predict(self, batch: Sequence[Any], options: None = None) -> list[tuple[int, float]]:
        rows = self.network(torch.tensor(np.stack(batch)).to(self.device)).softmax(1).cpu()
        return [(int(row.argmax()), float(row.max())) for row in rows]


class DigitCodec:  # a Codec: image files with a light digit on a dark background in; result.json and a picture out
    def decode(self, request: Request) -> Decoded[Any]:
        try:
            images = [Image.open(path).convert("L").resize((8, 8)) for path in request.files]
        except OSError as error:
            raise InvalidInputError(f"{request.files[0].name} is not an image") from error
        inputs = tuple(np.asarray(image, np.float32).ravel() / 255 for image in images)
        return Decoded(inputs=inputs, options=None, context=images[0].resize((256, 256)))

    def encode(self, decoded: Decoded[Any], outputs: Sequence[tuple[int, float]]) -> Response:
        decoded.context.save(picture := io.BytesIO(), "PNG")
        rows = [{"digit": digit, "probability": round(probability, 4)} for digit, probability in outputs]
        return Response(result={"digits": rows}, picture=picture.getvalue())
