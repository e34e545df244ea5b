"""Finds the layers whose quantisation causes most of a network's output error, measured on held-out inputs.

The error is measured where it matters: on the scores computed from a detector's logits, and on its other outputs in the
cells where a score is high. Layers are tried one by one; those that reduce the error most are left in floating point,
within a time budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shared.deploy.int8_network import SMOOTHING_ALPHA, layer_names, quantise, with_floating_point_layer

if TYPE_CHECKING:
    from shared.deploy.programs.program import Arrays

MAX_RETRIED_LAYERS, MAX_LAYERS = 6, 12
"""How many of the next best layers are tried again after each choice, and how many layers are chosen at most."""


@dataclass(frozen=True, slots=True)
class SearchBudget:
    """The limits of a search: the maximum relative slowdown by all layers in floating point together, and the minimum
    fraction of the remaining error that each of them must remove.
    """

    max_slowdown: float
    min_gain: float


SEARCH_BUDGETS = (SearchBudget(0.2, 0.05), SearchBudget(0.6, 0.02))
"""The first budget, and the budget if the domain's score falls too far with the first."""

MAX_ERROR_RATIO = 2.0
"""Smoothed or plain quantisation is not searched further if its error is more than this many times the other's."""

_TIMED_RUNS = 3
ArrayFunction = Callable[["Arrays"], dict[str, NDArray[Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8Candidate:
    """A quantised network: the OpenVINO model, its layers in floating point, its output error and its latency."""

    model: Any
    smoothing: float | None
    floating: tuple[str, ...]
    error: float
    milliseconds: float

    @property
    def floating_layers(self) -> str:
        """The names of the layers that are not quantised, for messages."""
        return "nothing" if not self.floating else ", ".join(self.floating)


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Compares models with the original network on held-out rows.

    ``expected`` are the network's outputs for ``rows``; ``logits`` names the outputs that are logits of scores.
    ``compile_model`` compiles a model as for serving.
    """

    rows: Sequence[Arrays]
    expected: Sequence[Arrays]
    logits: Sequence[str]
    compile_model: Callable[[Any], ArrayFunction]

    def error(self, run: ArrayFunction) -> float:
        return output_error(self.expected, [run(row) for row in self.rows], self.logits)

    def milliseconds(self, *runs: ArrayFunction) -> list[float]:
        """The minimum CPU time, in milliseconds, of a call with the last row, for each of the runs, taken in turns."""
        seconds: list[list[float]] = [[] for _ in runs]
        for _ in range(_TIMED_RUNS):
            for run, times in zip(runs, seconds, strict=True):
                start = time.process_time()
                run(self.rows[-1])
                times.append(time.process_time() - start)
        return [1e3 * min(times) for times in seconds]

    def evaluate(self, model: Any, smoothing: float | None, floating: Sequence[str]) -> Int8Candidate:
        run = self.compile_model(model)
        return Int8Candidate(
            model=model,
            smoothing=smoothing,
            floating=tuple(floating),
            error=self.error(run),
            milliseconds=self.milliseconds(run)[0],
        )


def output_error(expected: Sequence[Arrays], found: Sequence[Arrays], logits: Sequence[str]) -> float:
    """The root mean square, over the kinds of outputs, of the difference relative to the outputs' standard deviation.

    ``logits`` (B, C, ...) are converted to scores. In each cell, these scores and all outputs with the same spatial
    size are weighted by the highest score there, of either network. Outputs whose names differ only in a trailing
    number, such as the levels of a pyramid, are one kind.
    """
    expected_scores, found_scores = (
        [_logits_to_scores(outputs_of_row, logits) for outputs_of_row in outputs] for outputs in (expected, found)
    )
    highest = [
        [np.maximum(a[name], b[name]).max(axis=1, keepdims=True) for name in logits]
        for a, b in zip(expected_scores, found_scores, strict=True)
    ]
    squared_error: dict[str, float] = {}
    variance: dict[str, float] = {}
    for name in expected[0]:
        kind = name.rstrip("0123456789")
        weights = [
            _cell_weights(outputs_of_row[name], of_logits)
            for outputs_of_row, of_logits in zip(expected_scores, highest, strict=True)
        ]
        pairs = [(w, a[name], b[name]) for w, a, b in zip(weights, expected_scores, found_scores, strict=True)]
        axes = (0, *range(2, expected_scores[0][name].ndim))
        total = max(sum(float(w.sum()) for w in weights), 1e-12)
        mean = sum(np.sum(w * a, axis=axes, keepdims=True) for w, a, _ in pairs) / total
        squared_error[kind] = squared_error.get(kind, 0.0) + sum(float(np.sum(w * (a - b) ** 2)) for w, a, b in pairs)
        variance[kind] = variance.get(kind, 0.0) + sum(float(np.sum(w * (a - mean) ** 2)) for w, a, _ in pairs)
    return float(np.sqrt(np.mean([squared_error[kind] / max(variance[kind], 1e-12) for kind in squared_error])))


def _logits_to_scores(outputs: Arrays, logits: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Returns the outputs with logits converted to scores."""
    return {
        name: 1 / (1 + np.exp(-np.clip(value, -60, 60))) if name in logits else value for name, value in outputs.items()
    }


def _cell_weights(values: NDArray[Any], of_logits: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The weights of the cells, (B, 1, ...): their highest scores, or ones if no logits have the same spatial size."""
    for scores in of_logits:
        if values.ndim > 2 and scores.shape[2:] == values.shape[2:]:
            return scores
    return np.ones((len(values), 1, *values.shape[2:]), np.float32)


def find_candidates(
    model: Any,
    rows: Sequence[Arrays],
    evaluator: Evaluator,
    *,
    budgets: Sequence[SearchBudget] = SEARCH_BUDGETS,
    report: Callable[[str], object] = lambda line: None,
) -> Iterator[Int8Candidate]:
    """Yields ``model`` quantised on ``rows`` with the worst layers in floating point, then with more of them.

    The layers are found by undoing the quantisation of a fully quantised network one layer at a time, for each of
    ``budgets``. Of smoothed and plain quantisation, and of corrected and original biases, the variant with the smaller
    error is used.
    """
    searches = []
    for smoothing in (None, SMOOTHING_ALPHA):
        fully_quantised = evaluator.evaluate(
            quantise(model, rows, smoothing=smoothing, correct_biases=False), smoothing, ()
        )
        smoothed = "not smoothed" if smoothing is None else "smoothed"
        figures = _format_figures(fully_quantised.error, fully_quantised.milliseconds)
        report(f"all layers in INT8, activations {smoothed}: {figures}")
        searches.append(
            LayerSearch(
                fully_quantised=fully_quantised,
                evaluator=evaluator,
                remaining=layer_names(model),
                current=fully_quantised.model,
                error=fully_quantised.error,
            )
        )
    smallest_error = min(search.error for search in searches)
    searches = [search for search in searches if search.error <= MAX_ERROR_RATIO * smallest_error]
    for search in searches:
        search.undo(budgets[0], report)
    best_search = min(searches, key=lambda search: search.error)
    fully_quantised, num_floating = best_search.fully_quantised, 0
    for index, budget in enumerate(budgets):
        if index:
            best_search.remaining = [name for name in layer_names(model) if name not in best_search.floating]
            best_search.undo(budget, report)
            if len(best_search.floating) == num_floating:
                continue
        num_floating = len(best_search.floating)
        variants = []
        for corrected in (True, False):
            try:
                model_variant = quantise(
                    model,
                    rows,
                    smoothing=fully_quantised.smoothing,
                    floating=best_search.floating,
                    correct_biases=corrected,
                )
            except KeyError as error:
                # NNCF 3.4 follows a path to a layer outside the part of the network that it has extracted.
                if not corrected:
                    raise
                report(f"NNCF cannot correct the biases with these layers in floating point ({error})")
                continue
            variants.append(evaluator.evaluate(model_variant, fully_quantised.smoothing, best_search.floating))
            biases = "corrected" if corrected else "not corrected"
            report(
                f"made with {num_floating} layers in floating point, biases {biases}: "
                f"{_format_figures(variants[-1].error, variants[-1].milliseconds)}"
            )
        yield min(variants, key=lambda variant: variant.error)


@dataclass(kw_only=True, slots=True)
class LayerSearch:
    """Undoes the quantisation of a network layer by layer.

    ``remaining`` are the layers still to be tried, ``floating`` those moved to floating point. ``current`` is the
    current model, ``error`` its output error.
    """

    fully_quantised: Int8Candidate
    evaluator: Evaluator
    remaining: list[str]
    current: Any
    error: float
    floating: list[str] = field(default_factory=list)

    def undo(self, budget: SearchBudget, report: Callable[[str], object]) -> None:
        """Moves the layer that reduces the error most to floating point, then the next, within ``budget``."""
        run_fully_quantised = self.evaluator.compile_model(self.fully_quantised.model)
        while self.remaining and len(self.floating) < MAX_LAYERS:
            errors = {
                name: self.evaluator.error(self.evaluator.compile_model(with_floating_point_layer(self.current, name)))
                for name in self.remaining
            }
            self.remaining = sorted(self.remaining, key=errors.__getitem__)[:MAX_RETRIED_LAYERS]
            best = self.remaining.pop(0)
            if errors[best] > (1 - budget.min_gain) * self.error:
                break
            candidate_model = with_floating_point_layer(self.current, best)
            before, after = self.evaluator.milliseconds(
                run_fully_quantised, self.evaluator.compile_model(candidate_model)
            )
            figures = _format_figures(errors[best], after)
            description = f"with {best} in floating point: {figures} (all in INT8: {before:.3g})"
            if after > (1 + budget.max_slowdown) * before:
                report(f"too slow {description}")
                continue
            self.current, self.error = candidate_model, errors[best]
            self.floating.append(best)
            report(description)


def _format_figures(error: float, milliseconds: float) -> str:
    return f"error of the outputs {error:.3g}, {milliseconds:.3g} CPU-ms"
