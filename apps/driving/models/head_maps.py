"""The dense network of an imported LiDAR detector of any family: mmdet3d's own backbone, neck and head.

The head's maps are nested in lists and dictionaries, differently in each family. For export they become named tensors;
when a program computes them they are nested as before, so that mmdet3d decodes them itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apps.driving.models.library import dense_parts
from shared.app import DenseNetwork
from shared.deploy.programs.program import Program

PSEUDO_IMAGE = "pseudo_image"
_ANCHOR_MAPS = ("scores", "boxes", "directions")


class HeadMaps(nn.Module):
    """From a pseudo-image (B, C, rows, columns) to all maps of the head of ``detector``, in order.

    ``detector`` is a fast one (``fold_batch_norms``).
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(dense_parts(detector))

    def nested(self, pseudo_image: Tensor) -> Any:
        """The maps as the head returns them."""
        maps: Any = pseudo_image
        for part in self.parts:
            maps = part(maps)
        return maps

    def forward(self, pseudo_image: Tensor) -> tuple[Tensor, ...]:
        return tuple(map_ for _, map_ in _named(self.nested(pseudo_image)))


def dense_maps(detector: nn.Module) -> DenseNetwork:
    """The dense network of a fast LiDAR detector, on its own canvas.

    Outputs are scores, boxes and directions of the anchors, numbered by level if there are several; for CenterPoint
    the maps of each task, such as ``heatmap_0``.
    """
    maps = dict(_named(_nesting(detector)))
    example = torch.rand(2, *canvas_size(detector), generator=torch.Generator().manual_seed(0))
    return DenseNetwork(
        module=HeadMaps(detector).eval(),
        inputs={PSEUDO_IMAGE: example},
        outputs=tuple(maps),
        # SSN's scores have the classes in their last axis.
        logits=[name for name, map_ in maps.items() if name.startswith(("scores", "heatmap")) and map_.ndim == 4],
        traceable=True,
    )


def compute_by(program: Program, detector: nn.Module) -> None:
    """Lets ``program``, made from ``dense_maps``, compute the maps of a fast detector in the place of its layers."""
    nesting, head = _nesting(detector), _head(detector)
    backbone, *others = (name for name, _ in detector.named_children() if name.endswith(("backbone", "neck")))
    setattr(detector, backbone, _ProgramMaps(program, [name for name, _ in _named(nesting)], nesting))
    for name in others:
        setattr(detector, name, nn.Identity())
    head.forward = lambda maps: maps


def canvas_size(detector: nn.Module) -> tuple[int, int, int]:
    """Channels, rows and columns of the pseudo-image."""
    canvas: Any = getattr(detector, "pts_middle_encoder", None) or getattr(detector, "middle_encoder", None)
    return canvas.in_channels, canvas.ny, canvas.nx


class _ProgramMaps(nn.Module):
    """A program in the place of a backbone: its outputs, nested as the head would return them."""

    def __init__(self, program: Program, names: Sequence[str], nesting: Any) -> None:
        super().__init__()
        self.program, self.names, self.nesting = program, names, nesting

    def forward(self, pseudo_image: Tensor) -> Any:
        outputs = self.program({PSEUDO_IMAGE: pseudo_image})
        # Cloned, because mmdet3d's heads write into their maps.
        return _filled(self.nesting, iter([outputs[name].clone() for name in self.names]))


@torch.inference_mode()
def _nesting(detector: nn.Module) -> Any:
    """Maps as the head of a fast detector returns them, without content: on the device "meta" nothing is computed."""
    network = HeadMaps(copy.deepcopy(detector).to("meta"))
    nesting = network.nested(torch.zeros(1, *canvas_size(detector), device="meta"))
    if hasattr(network.parts[-1], "featmap_sizes"):
        # SSN's head notes them in its forward pass, which a program replaces.
        _head(detector).featmap_sizes = network.parts[-1].featmap_sizes
    return nesting


def _head(detector: nn.Module) -> Any:
    return dense_parts(detector)[-1]


def _named(nested: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a head's maps, with their names.

    Heads with anchors return a tuple of kinds of maps, each a list of levels; CenterPoint's a tuple of tasks, each a
    list of one dictionary.
    """
    for index, levels in enumerate(nested):
        for level, found in enumerate(levels):
            if isinstance(found, Mapping):
                yield from ((f"{name}_{index}", map_) for name, map_ in found.items())
            elif found is not None:
                name = _ANCHOR_MAPS[index]
                yield (f"{name}_{level}" if len(levels) > 1 else name), found


def _filled(nesting: Any, maps: Iterator[Tensor]) -> Any:
    """``nesting`` with the next of ``maps`` in the place of each tensor."""
    if isinstance(nesting, Tensor):
        return next(maps)
    if isinstance(nesting, Mapping):
        return {name: _filled(value, maps) for name, value in nesting.items()}
    if isinstance(nesting, (list, tuple)):
        return type(nesting)(_filled(value, maps) for value in nesting)
    return nesting
