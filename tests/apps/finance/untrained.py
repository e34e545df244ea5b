"""A predictor with an untrained network: the detected events do not depend on the network's weights."""

from __future__ import annotations

import torch

from apps.finance.inference.scoring import Calibration
from apps.finance.models.settings import FinanceModel
from apps.finance.predictor import FinancePredictor
from apps.finance.service import FinanceCodec
from apps.finance.types import FinanceInput, Series
from shared.deploy.predictor import Decoded, Request, Response, answer


def untrained(threshold: float = 0.3) -> FinancePredictor:
    torch.manual_seed(0)
    model = FinanceModel(name="test", hidden=8, hidden_continuous=4, heads=1).build(FinanceInput(context=24, horizon=4))
    return FinancePredictor(
        model=model, calibration=Calibration(threshold=threshold), stride=4, device="cpu", name="untrained"
    )


def ask(predictor: FinancePredictor, request: Request) -> Response:
    """The response to a request, as over HTTP."""
    return answer(predictor, request, FinanceCodec(predictor))


def decode(predictor: FinancePredictor, request: Request) -> Decoded[Series]:
    """The series and options of a request."""
    return FinanceCodec(predictor).decode(request)
