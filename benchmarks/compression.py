"""A small training of each application with compressed gradients, against the same training without compression.

Two hosts (network namespaces) of one process each train every application's ``tiny`` recipe on its synthetic data for a
few epochs, from the same weights and on the same batches. The final validation losses are compared. PowerSGD has rank
1, because these matrices are small, and starts at the third step.

The bar: at most 10 % above the uncompressed loss. These are short trainings of tiny networks: they show that compressed
gradients work, not how compression affects a long training.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.report import progress, report
from shared.comms.shaped_network import Job, missing_privileges, shaped_network, succeed

TOLERANCE = 0.10
EPOCHS = {"medical": 4, "driving": 4, "finance": 2}
COMPRESSIONS = ("none", "fp16", "bf16", "powersgd")


def train(app: str, compression: str, folder: str) -> float:
    """Runs in each process: trains the recipe and returns the last validation loss."""
    import warnings

    from shared.app import find
    from shared.engine.loop import fit
    from shared.engine.run import Run
    from shared.recipes import named_recipe
    from shared.strategy import DDP

    recipe = named_recipe(find(app), "tiny")
    strategy = DDP(compression=compression, powersgd_rank=1, powersgd_start=2)  # type: ignore[arg-type]
    limits = replace(recipe.limits, epochs=EPOCHS[app], patience=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe = replace(recipe, strategy=strategy, limits=limits, precision="fp32")
        result = fit(recipe, Run(Path(folder) / f"{app}-{compression}", app, "tiny"), device="cpu", quiet=True)
    return result.history[-1]["loss"]


def main() -> None:
    """Trains and reports."""
    if reason := missing_privileges():
        report("compression", {}, ratio=0.0, ok=False, note=f"skipped: {reason}")
        return
    figures: dict[str, float] = {}
    misses: list[str] = []
    worst = 0.0
    with shaped_network(2, 1000) as hosts, tempfile.TemporaryDirectory() as folder:
        for app in EPOCHS:
            losses = {}
            for name in COMPRESSIONS:
                progress(f"{app}, compression {name}")
                losses[name] = succeed(Job(hosts, 1, train, app, name, folder).results(600))[0]
            for name, loss in losses.items():
                figures[f"{app}, {name}: validation loss"] = loss
                over = loss / losses["none"] - 1
                worst = max(worst, over)
                if over > TOLERANCE:
                    misses.append(f"{app} with {name} ends {over:.1%} above")
    note = f"worst {worst:+.1%} of the uncompressed loss, {TOLERANCE:.0%} allowed"
    report("compression", figures, ratio=1 / (1 + worst), ok=not misses, note="; ".join([*misses, note]))


if __name__ == "__main__":
    main()
