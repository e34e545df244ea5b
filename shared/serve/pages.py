"""The pages: the overview, every application's form, the description of the JSON interface, and errors."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unicodedata import bidirectional

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from jinja2 import ChoiceLoader, Environment, FileSystemLoader

from shared.app import App
from shared.serve.case_line import case_line
from shared.serve.known_keys import GroupDep
from shared.serve.middleware.security_headers import page_policy
from shared.serve.service import Service
from shared.serve.settings import Settings
from shared.store.reviews import ReviewLine

WEB = Path(__file__).resolve().parents[1] / "web"
_RECENT = 5
_REVIEWERS = 3
_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Characters that turn the letters after them round, by their bidirectional class."""


class Pages:
    """Renders templates: an application's own before the shared ones of the same name."""

    def __init__(self, services: Mapping[str, Service], settings: Settings) -> None:
        self._services, self._settings = services, settings
        self._apps = {name: service.app for name, service in services.items()}
        self._shared = _environment(WEB / "templates")
        self._own = {name: _environment(app.pages, WEB / "templates") for name, app in self._apps.items()}

    def render(self, template: str, *, app: App | None = None, status: int = 200, **context: Any) -> HTMLResponse:
        """A page with its content security policy."""
        nonce = secrets.token_urlsafe(16)
        environment = self._own[app.name] if app is not None else self._shared
        text = environment.get_template(template).render(
            app=app,
            apps=self._apps,
            nonce=nonce,
            lang="en",
            root=self._settings.root,
            max_upload_bytes=self._settings.max_upload_bytes,
            **context,
        )
        return HTMLResponse(text, status, headers={"Content-Security-Policy": page_policy(nonce)})

    def error(self, heading: str, sentence: str, status: int) -> HTMLResponse:
        """A page for an error."""
        return self.render("error.html", status=status, heading=heading, sentence=sentence)

    def router(self) -> APIRouter:
        """The routes of the pages, which the API description leaves out."""
        router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

        @router.api_route("/", methods=["GET", "HEAD"])
        def overview(group: GroupDep) -> HTMLResponse:
            entries = [_entry(service, group) for service in self._services.values()]
            return self.render("index.html", here="overview", entries=entries)

        @router.api_route("/docs", methods=["GET", "HEAD"])
        def docs() -> HTMLResponse:
            return self.render("docs.html", here="docs")

        for service in self._services.values():
            self._add_form(router, service)
        return router

    def _add_form(self, router: APIRouter, service: Service) -> None:
        app = service.app
        template = "form.html" if (app.pages / "form.html").is_file() else "default_form.html"

        @router.api_route(f"/{app.name}", methods=["GET", "HEAD"])
        def form() -> HTMLResponse:
            needed = service.samples.input_needed()
            samples = app.samples() if needed is None else ()
            return self.render(template, app=app, samples=samples, needed=needed, artifacts=service.manifests)


def _environment(*folders: Path) -> Environment:
    return Environment(
        loader=ChoiceLoader([FileSystemLoader(folder) for folder in folders]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _reviewed(reviews: Iterable[ReviewLine]) -> str:
    """By whom a case was reviewed, in words; empty for none."""
    found = list(reviews)
    if not found:
        return ""
    names = [_isolated(one.reviewer) for one in found if one.reviewer is not None]
    if not names:
        return "reviewed"
    others = len(names) - _REVIEWERS
    return f"reviewed by {', '.join(names[:_REVIEWERS])}{f' and {others} more' if others > 0 else ''}"


def _isolated(name: str) -> str:
    """A name that turns nothing beside it, whichever way its letters run (Unicode Standard Annex 9, section 2)."""
    plain = "".join(letter for letter in name if bidirectional(letter) not in _TURNING)
    runs_left = any(bidirectional(letter) in ("R", "AL", "AN") for letter in plain)
    return f"\u2068{plain}\u2069" if runs_left else plain


def _entry(service: Service, group: str | None) -> dict[str, Any]:
    recent = service.store.recent(service.app.name, _RECENT, group=group)
    reviews = service.store.reviews.lines(case.id for case in recent)
    cases = [
        {
            "id": case.id,
            "label": case_line(service, case),
            "created": case.created,
            "created_short": f"{case.created[:10]} {case.created[11:16]} UTC",
            "reviewed": _reviewed(reviews.get(case.id, ())),
        }
        for case in recent
    ]
    return {"app": service.app, "artifacts": service.manifests, "cases": cases}
