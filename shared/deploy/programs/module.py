"""A program in the place of the network that it was made from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from shared.deploy.programs.program import Program


class ProgramModule(nn.Module):
    """A program with the call signature of its network: takes ``inputs`` and returns ``outputs``, in these orders.

    Several outputs are returned as a tuple, a single one by itself.
    """

    def __init__(self, program: Program, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.program, self.inputs, self.outputs = program, inputs, outputs

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The program's outputs for tensors of any shapes that it takes."""
        computed = self.program(dict(zip(self.inputs, inputs, strict=True)))
        outputs = tuple(computed[name] for name in self.outputs)
        return outputs if len(outputs) > 1 else outputs[0]
