"""The HTML pages: the overview, the form and the cases of every application, the API documentation, and errors."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import bidirectional

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from jinja2 import ChoiceLoader, Environment, FileSystemLoader

from shared.app import App
from shared.deploy.provenance import only_synthetic, training_brief, training_text
from shared.serve.case_line import case_line
from shared.serve.known_keys import GroupDep
from shared.serve.middleware.security_headers import page_policy
from shared.serve.service import Service
from shared.serve.settings import Settings
from shared.store.records import CaseSummary
from shared.store.reviews import ReviewLine

WEB = Path(__file__).resolve().parents[1] / "web"
_RECENT_CASES = 5
_CASES_PER_PAGE = 50
_MAX_REVIEWERS_SHOWN = 3
_DIRECTIONAL_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Bidirectional classes of the control characters that change the direction of the text after them."""


class Pages:
    """Renders templates. An application's own template takes precedence over a shared one of the same name."""

    def __init__(self, services: Mapping[str, Service], settings: Settings) -> None:
        self._services, self._settings = services, settings
        self._apps = {name: service.app for name, service in services.items()}
        self._shared_environment = _environment(WEB / "templates")
        self._app_environments = {name: _environment(app.pages, WEB / "templates") for name, app in self._apps.items()}

    def render(self, template: str, *, app: App | None = None, status: int = 200, **context: Any) -> HTMLResponse:
        """A rendered page, with its content security policy."""
        nonce = secrets.token_urlsafe(16)
        environment = self._app_environments[app.name] if app is not None else self._shared_environment
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
        return self.render("error.html", status=status, heading=heading, sentence=sentence)

    def router(self) -> APIRouter:
        """The routes of the pages, which are not part of the OpenAPI document."""
        router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

        @router.api_route("/", methods=["GET", "HEAD"])
        def overview(group: GroupDep) -> HTMLResponse:
            entries = [_overview_entry(service, group) for service in self._services.values()]
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
            samples = service.samples.available()
            return self.render(template, app=app, samples=samples, needed=needed, artifacts=service.manifests)

        @router.api_route(f"/{app.name}/cases", methods=["GET", "HEAD"])
        def cases(group: GroupDep, before: str | None = None) -> HTMLResponse:
            kept = service.store.recent(app.name, _CASES_PER_PAGE + 1, before, group)
            page = kept[:_CASES_PER_PAGE]
            jobs = service.jobs.recent(app.name, group=group) if before is None else []
            return self.render(
                "cases.html",
                app=app,
                cases=_case_entries(service, page),
                jobs=[job for job in jobs if job.state in ("queued", "running", "failed")],
                older=page[-1].id if len(kept) > len(page) else None,
                is_first=before is None,
            )


def _environment(*folders: Path) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([FileSystemLoader(folder) for folder in folders]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(training_text=training_text, training_brief=training_brief, short_time=_short_time)
    environment.tests["only_synthetic"] = only_synthetic
    return environment


def _review_text(reviews: Iterable[ReviewLine]) -> str:
    """Text that says who reviewed a case; empty if nobody did."""
    review_list = list(reviews)
    if not review_list:
        return ""
    names = [_isolate_direction(review.reviewer) for review in review_list if review.reviewer is not None]
    if not names:
        return "reviewed"
    more = len(names) - _MAX_REVIEWERS_SHOWN
    return f"reviewed by {', '.join(names[:_MAX_REVIEWERS_SHOWN])}{f' and {more} more' if more > 0 else ''}"


def _isolate_direction(name: str) -> str:
    """A name that cannot change the direction of the text around it (Unicode Standard Annex 9, section 2).

    Directional control characters are removed; a name with right-to-left letters is put between isolates.
    """
    plain = "".join(letter for letter in name if bidirectional(letter) not in _DIRECTIONAL_CONTROLS)
    has_right_to_left = any(bidirectional(letter) in ("R", "AL", "AN") for letter in plain)
    return f"\u2068{plain}\u2069" if has_right_to_left else plain


def _short_time(created: str) -> str:
    """A time in ISO 8601, UTC, to the minute."""
    return f"{created[:10]} {created[11:16]} UTC"


def _case_entries(service: Service, cases: Sequence[CaseSummary]) -> list[dict[str, str]]:
    """The cases as the pages list them: what they are, when they were made, and who reviewed them."""
    reviews = service.store.reviews.lines(case.id for case in cases)
    return [
        {
            "id": case.id,
            "label": case_line(service, case),
            "created": case.created,
            "reviewed": _review_text(reviews.get(case.id, ())),
        }
        for case in cases
    ]


def _overview_entry(service: Service, group: str | None) -> dict[str, Any]:
    recent = service.store.recent(service.app.name, _RECENT_CASES, group=group)
    return {"app": service.app, "artifacts": service.manifests, "cases": _case_entries(service, recent)}
