"""The forms behind a reverse proxy that serves them under a path."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page

from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.browser.three_forms import go_through, three_apps
from tests.conftest import serving
from tests.shared.nginx import documented, nginx

pytestmark = [
    pytest.mark.browser,
    # pytorch-forecasting and Lightning warn when they are imported and when a network is built.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module`"),
]


def test_forms_viewers_files_and_jobs_work_behind_nginx_under_a_path(page: Page, tmp_path: Path) -> None:
    settings = Settings(store=tmp_path / "store", warm=False, device="cpu", root_path="/trivium")
    with (
        serving(create_app(settings, three_apps(tmp_path))) as server,
        nginx(tmp_path / "nginx", documented(server)) as address,
    ):
        go_through(page, f"{address}/trivium")
        page.wait_for_load_state("networkidle")
