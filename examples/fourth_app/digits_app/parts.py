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

import trivium
from digits_app import app


class Images:  # a Dataset: images (N, 64) in [0, 1] and their digits (N)
    def __init__(self, rows: slice) -> None:
        images, digits = load_digits(return_X_y=True)
        self.image, self.digit = torch.tensor(images[rows] / 16).float(), torch.tensor(digits[rows])

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, indices: Any, key: Any) -> dict[str, Tensor]:
        return {"image": self.image[indices], "digit": self.digit[indices]}


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


@dataclass(frozen=True)
class Classify:  # a Task, and the TaskConfig that builds it
    def build(self) -> "Classify":
        return self

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch["image"]), batch["digit"])

    def evaluate(self, model: nn.Module, batch: Any, scores: trivium.MeanScores) -> None:
        logits = model(batch["image"])
        losses = nn.functional.cross_entropy(logits, batch["digit"], reduction="none")
        scores.add(loss=losses, accuracy=logits.argmax(1) == batch["digit"])

    def scores(self) -> trivium.MeanScores:
        return trivium.MeanScores()


def small() -> trivium.Recipe:
    """Trains in seconds on one core."""
    optimizer, limits = trivium.AdamW(learning_rate=0.01), trivium.Limits(epochs=20)
    return trivium.Recipe(model=Network(), data=Digits(), task=Classify(), optimizer=optimizer, limits=limits)


def dense(recipe: trivium.Recipe, network: nn.Module) -> trivium.DenseNetwork:
    """The part of the model that is exported as ONNX: all of it."""
    return trivium.DenseNetwork(module=network, inputs={"image": torch.rand(2, 64)}, outputs=("logits",))


class DigitPredictor:  # a Predictor: images (64,) in, digits and their probabilities out
    batching = True  # a batch takes little longer than one image, so the server predicts waiting requests together

    def __init__(self, artifacts: Sequence[Any], device: str) -> None:
        self.network = trivium.open_network(app, artifacts[0], device)
        self.programs = {"digits": self.network}

    def predict(self, batch: Sequence[Any], options: None = None) -> list[tuple[int, float]]:
        logits = self.network.arrays({"image": np.stack(batch)})["logits"]
        rows = np.exp(logits - logits.max(1, keepdims=True))
        return [(int(row.argmax()), float(row.max() / row.sum())) for row in rows]


def training_cases(data: Digits, input: Any, limit: int) -> Any:
    """Inputs of the predictor on which `trivium quantize` calibrates."""
    return iter(data.train(input).image[:limit].numpy())


def score(predictor: DigitPredictor, data: Digits, limit: int | None) -> list[trivium.DomainScore]:
    """The score that INT8 must keep."""
    images = data.validation(None)
    found = predictor.predict(list(images.image[:limit].numpy()))
    right = [digit == int(true) for (digit, _), true in zip(found, images.digit, strict=False)]
    description = data.fingerprint()["description"]
    return [
        trivium.DomainScore(
            name="accuracy", value=float(np.mean(right)), count=f"{len(right)} images", data=description
        )
    ]


class DigitCodec:  # a Codec: image files with a light digit on a dark background in; result.json and a picture out
    def decode(self, request: trivium.Request) -> trivium.Decoded[Any]:
        try:
            images = [Image.open(path).convert("L").resize((8, 8)) for path in request.files]
        except OSError as error:
            raise trivium.InvalidInputError(f"{request.files[0].name} is not an image") from error
        inputs = tuple(np.asarray(image, np.float32).ravel() / 255 for image in images)
        return trivium.Decoded(inputs=inputs, options=None, context=images[0].resize((256, 256)))

    def encode(self, decoded: trivium.Decoded[Any], outputs: Sequence[tuple[int, float]]) -> trivium.Response:
        decoded.context.save(picture := io.BytesIO(), "PNG")
        rows = [{"digit": digit, "probability": round(probability, 4)} for digit, probability in outputs]
        return trivium.Response(result={"digits": rows}, picture=picture.getvalue())
