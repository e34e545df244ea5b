"""The registry: artifacts by name and version, in directories of Triton's model repository layout."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from shared.atomic_files import FileState, file_state
from shared.deploy.artifact import MANIFEST, Artifact, manifest_bytes, open_artifact
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from shared.app import App

log = logging.getLogger("trivium.registry")


class Registry:
    """The artifacts in ``<name>/<version>/`` below the directories ``roots``. An artifact's files are read on request.

    A version whose manifest has another name or number than its folder is ignored, with a warning in the log. A model
    in an earlier root replaces, in all versions, the model of the same name in a later root: user-trained models
    precede shipped ones. ``live`` returns the version of a model to serve, or None for the newest. Versions for which
    ``retired`` returns True are not used as partners.
    """

    def __init__(
        self,
        *roots: Path,
        live: Callable[[str], int | None] = lambda _: None,
        retired: Callable[[str, int], bool] = lambda name, version: False,
    ) -> None:
        self.roots = roots
        self._live, self._retired = live, retired
        self._opened: dict[Path, tuple[FileState, Artifact]] = {}
        self._misplacements: dict[Path, tuple[FileState, str | None]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The names of the models that have at least one version."""
        return sorted({path.parts[-2] for root in self.roots for path in self._versions_in(root, "*")})

    def versions(self, name: str) -> dict[int, Path]:
        """The directories of a model's versions by number, oldest first; empty if there are none."""
        for root in self.roots:
            if found := {int(path.name): path for path in self._versions_in(root, name)}:
                return dict(sorted(found.items()))
        return {}

    def live(self, name: str) -> Artifact:
        """The live version of a model. Raises ``InvalidInputError`` as ``newest`` does."""
        version = self._live(name)
        path = None if version is None else self.versions(name).get(version)
        if version is not None and path is None:
            log.warning("the live version %d of %s is not in the registry; using the newest instead", version, name)
        return self.newest(name) if path is None else self.open(path)

    def newest(self, name: str) -> Artifact:
        """The highest version of a model. Raises ``InvalidInputError`` if there is none or it is damaged or altered."""
        versions = self.versions(name)
        if not versions:
            roots = " and ".join(map(str, self.roots))
            raise InvalidInputError(f"{roots} holds no version of {name}; `trivium export RUN` makes one")
        return self.open(versions[max(versions)])

    def open(self, path: Path) -> Artifact:
        """Opens the artifact in a directory; its digests are checked only the first time that its manifest is seen."""
        state = file_state(path / MANIFEST)
        with self._lock:
            if path not in self._opened or self._opened[path][0] != state:
                self._opened[path] = state, open_artifact(path)
            return self._opened[path][1]

    def open_partner(self, path: Path) -> Artifact:
        """As ``open``, for an artifact that another model can do without; the error also says how to leave it out."""
        try:
            return self.open(path)
        except InvalidInputError as error:
            raise InvalidInputError(
                f"{error}. This model is optional. To leave it out, run `trivium versions {path.parent.name} --retire "
                f"{path.name}` if a server is running, else move the folder {path} away",
                status=error.status,
            ) from error

    def serving(self, app: App) -> list[Artifact]:
        """The artifacts that an application serves: the live version of each of its models, then their partners.

        Models in an earlier root come first, so that a user-trained model is the default even if shipped models have
        other names. Models in the same root are in the application's order. Each model gets the live version of a
        partner if that belongs to the model, else the newest version that does and is not retired, or none. Models
        without a version are left out. Raises ``InvalidInputError`` if no model is left.
        """
        models = [name for name in app.models if name not in app.partners]
        present = sorted((name for name in models if self.versions(name)), key=self._root_index)
        artifacts = [self.live(name) for name in present] or [self.newest(models[0])]
        for artifact in artifacts:
            artifact.must_belong_to(app.name)
        partners: dict[Path, Artifact] = {}
        for name, belongs_to in app.partners.items():
            for model in artifacts:
                candidates = map(self.open_partner, self._usable_versions(name))
                if (
                    partner := next((candidate for candidate in candidates if belongs_to(candidate, model)), None)
                ) is not None:
                    partners[partner.path] = partner
        return [*artifacts, *partners.values()]

    def _root_index(self, name: str) -> int:
        """The index in ``roots`` of the directory that has a model's versions."""
        return next(index for index, root in enumerate(self.roots) if self._versions_in(root, name))

    def _usable_versions(self, name: str) -> list[Path]:
        """The versions of a model that are not retired: the live one, the others newest first, then shadowed ones."""
        versions = self.versions(name)
        live = self._live(name)
        not_retired = [number for number in sorted(versions, reverse=True) if not self._retired(name, number)]
        paths = [versions[number] for number in sorted(not_retired, key=lambda number: number != live)]
        for root in self.roots:
            shadowed = [path for path in self._versions_in(root, name) if path not in versions.values()]
            paths += sorted(shadowed, key=lambda path: -int(path.name))
        return paths

    def _versions_in(self, root: Path, name: str) -> list[Path]:
        folders = [manifest.parent for manifest in root.glob(f"{name}/*/{MANIFEST}")]
        return [path for path in folders if path.name.isdecimal() and self._is_in_its_folder(path)]

    def _is_in_its_folder(self, path: Path) -> bool:
        state = file_state(path / MANIFEST)
        if path not in self._misplacements or self._misplacements[path][0] != state:
            self._misplacements[path] = state, (problem := misplacement(path))
            if problem is not None:
                log.warning("%s; it is ignored", problem)
        return self._misplacements[path][1] is None


def misplacement(path: Path) -> str | None:
    """Describes a mismatch between the folder ``<name>/<version>`` and its artifact's manifest; None if they match.

    An unreadable manifest is no mismatch here; it is refused when the artifact is opened.
    """
    try:
        manifest = json.loads(manifest_bytes(path))
        stated_version = f"{manifest['name']} version {manifest['version']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if stated_version == f"{path.parent.name} version {int(path.name)}":
        return None
    return (
        f"{path} was copied or renamed: its {MANIFEST} says {stated_version}; move it to the folder of that name "
        "and number"
    )


def ships_models(app: App) -> bool:
    """Whether any model ships with the application."""
    registry = Registry(app.weights)
    return any(registry.versions(name) for name in app.models)


def shipped(app: App) -> list[Artifact]:
    """The artifacts that ship with the application, one for each of its models, the default first.

    Raises ``InvalidInputError`` if there are none.
    """
    if not ships_models(app):
        raise InvalidInputError(
            f"{app.name} ships no model; train one and name the artifact that `trivium export RUN` makes"
        )
    return Registry(app.weights).serving(app)


def newest_partner(name: str, belongs_to: Callable[[Artifact], bool], roots: Iterable[Path]) -> Artifact | None:
    """The newest version of the model ``name`` for which ``belongs_to`` is True, from the first root that has one.

    Returns None if there is none. The versions in a registry may be second stages of several or earlier detectors.
    """
    for root in roots:
        registry = Registry(root)
        for _, path in sorted(registry.versions(name).items(), reverse=True):
            if belongs_to(artifact := registry.open_partner(path)):
                return artifact
    return None
