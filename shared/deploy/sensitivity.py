"""Which layers of a network a quantised one owes its error to, measured at the outputs on inputs kept aside.

The error is taken where it matters: of the scores that a detector's logits give, and of its other outputs in the cells
where a score is high. Layers are tried one by one, and those left in floating point that take most of the error away,
as far as a budget of time goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shared.deploy.int8_network import SMOOTHING, in_floating_point, layers, quantised

if TYPE_CHECKING:
    from shared.deploy.programs.program import Arrays

TRIED_AGAIN, MAX_LAYERS = 6, 12
"""After one layer was chosen, so many of the next best are tried again; so many are chosen at most."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much longer layers in floating point may take in all, in parts of the time with none, and what each must
    take away of the remaining error.
    """

    time: float
    least_gain: float


BUDGETS = (Budget(0.2, 0.05), Budget(0.6, 0.02))
"""At first, and where the domain's score falls too far with that."""

FAR_WORSE = 2.0
"""Of the two ways to quantise activations, one that begins with so many times the other's error is not gone into."""

_TIMED = 3
Run = Callable[["Arrays"], dict[str, NDArray[Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8:
    """A quantised network: OpenVINO's model, the layers left in floating point, its error and milliseconds a call."""

    model: Any
    smoothing: float | None
    floating: tuple[str, ...]
    error: float
    milliseconds: float

    @property
    def described(self) -> str:
        """What of the network is not quantised."""
        return "nothing" if not self.floating else ", ".join(self.floating)


@dataclass(frozen=True, slots=True)
class Judge:
    """Compares models with the network on rows kept aside.

    ``expected`` are the network's outputs for ``rows``; ``logits`` names those that are logits of scores;
    ``compiled`` makes a model ready to compute as it will be in service.
    """

    rows: Sequence[Arrays]
    expected: Sequence[Arrays]
    logits: Sequence[str]
    compiled: Callable[[Any], Run]

    def error(self, run: Run) -> float:
        return output_error(self.expected, [run(row) for row in self.rows], self.logits)

    def milliseconds(self, *runs: Run) -> list[float]:
        """The least CPU time of a call with the last row, of each, taken in turns."""
        taken: list[list[float]] = [[] for _ in runs]
        for _ in range(_TIMED):
            for run, times in zip(runs, taken, strict=True):
                began = time.process_time()
                run(self.rows[-1])
                times.append(time.process_time() - began)
        return [1e3 * min(times) for times in taken]

    def judged(self, model: Any, smoothing: float | None, floating: Sequence[str]) -> Int8:
        run = self.compiled(model)
        return Int8(
            model=model,
            smoothing=smoothing,
            floating=tuple(floating),
            error=self.error(run),
            milliseconds=self.milliseconds(run)[0],
        )


def output_error(expected: Sequence[Arrays], found: Sequence[Arrays], logits: Sequence[str]) -> float:
    """The root mean square difference of the outputs, in parts of how much they vary, over the kinds of outputs.

    ``logits`` (B, C, ...) count as scores. In a cell, all else that outputs of the same sizes behind the channels say
    counts as much as the highest score there, by either network. Outputs that differ in a number at the end of their
    names, as the levels of a pyramid do, are one kind.
    """
    wanted, got = ([_with_scores(one, logits) for one in outputs] for outputs in (expected, found))
    highest = [
        [np.maximum(a[name], b[name]).max(axis=1, keepdims=True) for name in logits]
        for a, b in zip(wanted, got, strict=True)
    ]
    differing: dict[str, float] = {}
    varying: dict[str, float] = {}
    for name in expected[0]:
        kind = name.rstrip("0123456789")
        weights = [_weights(one[name], of_logits) for one, of_logits in zip(wanted, highest, strict=True)]
        pairs = [(w, a[name], b[name]) for w, a, b in zip(weights, wanted, got, strict=True)]
        axes = (0, *range(2, wanted[0][name].ndim))
        total = max(sum(float(w.sum()) for w in weights), 1e-12)
        mean = sum(np.sum(w * a, axis=axes, keepdims=True) for w, a, _ in pairs) / total
        differing[kind] = differing.get(kind, 0.0) + sum(float(np.sum(w * (a - b) ** 2)) for w, a, b in pairs)
        varying[kind] = varying.get(kind, 0.0) + sum(float(np.sum(w * (a - mean) ** 2)) for w, a, _ in pairs)
    return float(np.sqrt(np.mean([differing[kind] / max(varying[kind], 1e-12) for kind in differing])))


def _with_scores(outputs: Arrays, logits: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The outputs, with logits as scores."""
    return {
        name: 1 / (1 + np.exp(-np.clip(value, -60, 60))) if name in logits else value for name, value in outputs.items()
    }


def _weights(values: NDArray[Any], of_logits: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """(B, 1, ...) the highest score of a cell; ones where no logits are as large."""
    for one in of_logits:
        if values.ndim > 2 and one.shape[2:] == values.shape[2:]:
            return one
    return np.ones((len(values), 1, *values.shape[2:]), np.float32)


def candidates(
    model: Any,
    rows: Sequence[Arrays],
    judge: Judge,
    *,
    budgets: Sequence[Budget] = BUDGETS,
    say: Callable[[str], object] = lambda line: None,
) -> Iterator[Int8]:
    """``model`` quantised on ``rows``, with the worst layers in floating point; then with more of them.

    Which these are is found on a network with all layers quantised, by undoing one more of them at a time; each
    of ``budgets`` says how many. Smoothed or not, whichever has the smaller error
    then is taken; so are biases, corrected or as they are.
    """
    searches = []
    for smoothing in (None, SMOOTHING):
        whole = judge.judged(quantised(model, rows, smoothing=smoothing, correct_biases=False), smoothing, ())
        smoothed = "as they are" if smoothing is None else "smoothed"
        say(f"all layers in INT8, activations {smoothed}: {_figures(whole.error, whole.milliseconds)}")
        searches.append(Search(whole=whole, judge=judge, left=layers(model), now=whole.model, error=whole.error))
    least = min(one.error for one in searches)
    searches = [one for one in searches if one.error <= FAR_WORSE * least]
    for search in searches:
        search.undo(budgets[0], say)
    chosen = min(searches, key=lambda one: one.error)
    whole, tried = chosen.whole, 0
    for number, budget in enumerate(budgets):
        if number:
            chosen.left = [name for name in layers(model) if name not in chosen.floating]
            chosen.undo(budget, say)
            if len(chosen.floating) == tried:
                continue
        tried = len(chosen.floating)
        made = []
        for corrected in (True, False):
            try:
                mixed = quantised(
                    model, rows, smoothing=whole.smoothing, floating=chosen.floating, correct_biases=corrected
                )
            except KeyError as error:
                # NNCF 3.4 follows a path to a layer beyond the part of the network that it has cut out.
                if not corrected:
                    raise
                say(f"NNCF cannot correct the biases with these layers in floating point ({error})")
                continue
            made.append(judge.judged(mixed, whole.smoothing, chosen.floating))
            biases = "corrected" if corrected else "as they are"
            say(
                f"made with {tried} layers in floating point, biases {biases}: "
                f"{_figures(made[-1].error, made[-1].milliseconds)}"
            )
        yield min(made, key=lambda one: one.error)


@dataclass(kw_only=True, slots=True)
class Search:
    """Undoes the quantisation of a network layer by layer: ``left`` are those that may be, ``floating`` those that are.

    ``now`` is the model so far, ``error`` its error.
    """

    whole: Int8
    judge: Judge
    left: list[str]
    now: Any
    error: float
    floating: list[str] = field(default_factory=list)

    def undo(self, budget: Budget, say: Callable[[str], object]) -> None:
        """Leaves the layer in floating point that takes most of the error away, then the next, as ``budget`` allows."""
        run_whole = self.judge.compiled(self.whole.model)
        while self.left and len(self.floating) < MAX_LAYERS:
            errors = {
                name: self.judge.error(self.judge.compiled(in_floating_point(self.now, name))) for name in self.left
            }
            self.left = sorted(self.left, key=errors.__getitem__)[:TRIED_AGAIN]
            best = self.left.pop(0)
            if errors[best] > (1 - budget.least_gain) * self.error:
                break
            changed = in_floating_point(self.now, best)
            before, after = self.judge.milliseconds(run_whole, self.judge.compiled(changed))
            said = f"with {best} in floating point: {_figures(errors[best], after)} where all in INT8 take {before:.3g}"
            if after > (1 + budget.time) * before:
                say(f"too slow {said}")
                continue
            self.now, self.error = changed, errors[best]
            self.floating.append(best)
            say(said)


def _figures(error: float, milliseconds: float) -> str:
    return f"error of the outputs {error:.3g}, {milliseconds:.3g} CPU-ms"
