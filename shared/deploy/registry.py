"""The registry: artifacts by name and version, in directories of Triton's repository layout."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from shared.deploy.artifact import MANIFEST, Artifact, manifest_bytes, open_artifact
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from shared.app import App

log = logging.getLogger("trivium.registry")


class Registry:
    """The artifacts below ``roots``, as ``<name>/<version>/``. Files are read when an artifact is asked for.

    A version whose manifest states another name or number than its folder has is left out, with a line in the log.
    A model in an earlier directory takes the place of the one of its name in a later directory, in all versions:
    what somebody trained comes before what was shipped. ``live`` says which version of a model is predicted with: the
    newest where it says None. Those that ``retired`` tells are not predicted with as partners.
    """

    def __init__(
        self,
        *roots: Path,
        live: Callable[[str], int | None] = lambda _: None,
        retired: Callable[[str, int], bool] = lambda name, version: False,
    ) -> None:
        self.roots = roots
        self._live, self._retired = live, retired
        self._opened: dict[Path, Artifact] = {}
        self._misplaced: dict[Path, str | None] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The models of which there is a version."""
        return sorted({path.parts[-2] for root in self.roots for path in self._versions_in(root, "*")})

    def versions(self, name: str) -> dict[int, Path]:
        """The directories of a model's versions, the oldest first; empty where there are none."""
        for root in self.roots:
            if found := {int(path.name): path for path in self._versions_in(root, name)}:
                return dict(sorted(found.items()))
        return {}

    def live(self, name: str) -> Artifact:
        """The version of a model that is predicted with; refuses where there is none, and what ``newest`` refuses."""
        version = self._live(name)
        path = None if version is None else self.versions(name).get(version)
        if version is not None and path is None:
            log.warning("the live version %d of %s is not in the registry; the newest takes its place", version, name)
        return self.newest(name) if path is None else self.open(path)

    def newest(self, name: str) -> Artifact:
        """The highest version of a model; refuses where there is none, and one that is incomplete or was altered."""
        versions = self.versions(name)
        if not versions:
            roots = " and ".join(map(str, self.roots))
            raise InvalidInputError(f"{roots} holds no version of {name}; `trivium export RUN` makes one")
        return self.open(versions[max(versions)])

    def open(self, path: Path) -> Artifact:
        """The artifact in a directory; its digests are checked the first time."""
        with self._lock:
            if path not in self._opened:
                self._opened[path] = open_artifact(path)
            return self._opened[path]

    def open_partner(self, path: Path) -> Artifact:
        """``open`` of what another model does without; where it is refused, the refusal says how to do so."""
        try:
            return self.open(path)
        except InvalidInputError as refusal:
            raise InvalidInputError(
                f"{refusal}. Or leave it out: `trivium versions {path.parent.name} --retire {path.name}` on a server, "
                f"else move the folder {path} away; the model that it goes with does without it",
                status=refusal.status,
            ) from refusal

    def serving(self, app: App) -> list[Artifact]:
        """What an application predicts with: the live version of each of its models, then their partners.

        Models in an earlier directory come first: what somebody trained serves by default, also where what was shipped
        has another name. Those in one directory are in the application's order.
        A partner is the live version where that belongs to one of the models, else the newest that does and is not
        retired; where none does there is none. Models of which there is no version are left out; refuses where that
        leaves none.
        """
        models = [name for name in app.models if name not in app.partners]
        held = sorted((name for name in models if self.versions(name)), key=self._place)
        found = [self.live(name) for name in held] or [self.newest(models[0])]
        for artifact in found:
            artifact.must_belong_to(app.name)
        partners: dict[Path, Artifact] = {}
        for name, belongs in app.partners.items():
            for model in found:
                candidates = map(self.open_partner, self._usable(name))
                if (partner := next((one for one in candidates if belongs(one, model)), None)) is not None:
                    partners[partner.path] = partner
        return [*found, *partners.values()]

    def _place(self, name: str) -> int:
        """The place among ``roots`` of the directory that a model's versions lie in."""
        return next(place for place, root in enumerate(self.roots) if self._versions_in(root, name))

    def _usable(self, name: str) -> list[Path]:
        """The versions of a model that are not retired, the live one first, then the newest, those shadowed last."""
        known = self.versions(name)
        live = self._live(name)
        kept = [number for number in sorted(known, reverse=True) if not self._retired(name, number)]
        found = [known[number] for number in sorted(kept, key=lambda number: number != live)]
        for root in self.roots:
            others = [path for path in self._versions_in(root, name) if path not in known.values()]
            found += sorted(others, key=lambda path: -int(path.name))
        return found

    def _versions_in(self, root: Path, name: str) -> list[Path]:
        return [path for path in _version_folders(root.glob(f"{name}/*/{MANIFEST}")) if self._is_what_it_says(path)]

    def _is_what_it_says(self, path: Path) -> bool:
        if path not in self._misplaced:
            self._misplaced[path] = fault = misplaced(path)
            if fault is not None:
                log.warning("%s; it is left out", fault)
        return self._misplaced[path] is None


def misplaced(path: Path) -> str | None:
    """Why the artifact in ``<name>/<version>`` is not the one that its folder says, or None.

    A manifest that cannot be read says nothing of the kind; it is refused where the artifact is opened.
    """
    try:
        manifest = json.loads(manifest_bytes(path))
        stated = f"{manifest['name']} version {manifest['version']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if stated == f"{path.parent.name} version {int(path.name)}":
        return None
    return f"{path} holds {stated} by its {MANIFEST}: it was copied or renamed; move it to that name and number"


def shipped(app: App) -> list[Artifact]:
    """The artifacts that come with the application, one for each of its models, the default first."""
    return Registry(app.weights).serving(app)


def newest_partner(name: str, belongs: Callable[[Artifact], bool], roots: Iterable[Path]) -> Artifact | None:
    """The newest version of the model ``name`` that ``belongs``, of the first of the registries ``roots`` that has one.

    None where none does. A registry may hold second stages of several detectors, or former ones, as versions.
    """
    for root in roots:
        registry = Registry(root)
        for _, path in sorted(registry.versions(name).items(), reverse=True):
            if belongs(artifact := registry.open_partner(path)):
                return artifact
    return None


def _version_folders(manifests: Iterable[Path]) -> list[Path]:
    return [path.parent for path in manifests if path.parent.name.isdecimal()]
