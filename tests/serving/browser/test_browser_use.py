"""The playground without a pointer, with assistive technology, on small windows, and after a reload."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.serving.browser.pages import VIEWS, find, visit

pytestmark = pytest.mark.browser


def test_a_reload_keeps_pool_and_view(page: Page, client: httpx2.Client) -> None:
    visit(page, client, "demonstrations")
    page.get_by_label("Pool", exact=True).select_option("empty")
    page.get_by_role("link", name="Upload").click()
    expect(page).to_have_url(f"{client.base_url}/#/empty/upload")
    page.reload()
    expect(page.locator("#view-upload")).to_be_visible()
    expect(page.get_by_label("Pool", exact=True)).to_have_value("empty")
    page.go_back()
    expect(page.locator("#view-demonstrations")).to_be_visible()
    expect(page.get_by_role("link", name="Demonstrations")).to_have_attribute("aria-current", "page")


def test_the_main_path_needs_no_pointer(page: Page, client: httpx2.Client) -> None:
    visit(page, client, "try")
    expect(page.get_by_label("Model that answers")).to_have_value("gemma")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Query", exact=True)).to_be_focused()
    page.keyboard.type("my printer smokes")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".column .rank").first).to_be_visible()
    unreached = set(page.evaluate(CONTROLS))
    assert len(unreached) > 15
    page.locator("main").focus()
    for _ in range(3 * len(unreached)):
        page.keyboard.press("Tab")
        unreached.discard(page.evaluate("document.activeElement.dataset.seen ?? ''"))
    assert not unreached


CONTROLS = """() => [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')]
  .filter(e => e.checkVisibility({contentVisibilityAuto: true}) && !e.disabled && !e.closest('dialog'))
  .map((e, i) => (e.dataset.seen = `${i} ${e.outerHTML.slice(0, 80)}`))"""


@pytest.mark.parametrize(("scheme", "rules"), [("light", {}), ("dark", {"runOnly": ["color-contrast"]})])
def test_axe_finds_nothing_to_mend(page: Page, client: httpx2.Client, scheme: Any, rules: dict[str, Any]) -> None:
    page.emulate_media(color_scheme=scheme)
    outcomes = [{"input": "a", "output": "Printer", "corrected_output": "billing"}]
    client.post("/v1/feedback", json={"pool": "tickets", "outcomes": outcomes}).raise_for_status()
    axe = Axe()
    for view in VIEWS:
        visit(page, client, view)
        page.wait_for_load_state("networkidle")
        if view == "try":
            find(page, "my printer smokes", "bm25")
            page.get_by_role("button", name="Ask gemma").first.click()
            page.get_by_text("Was it right?").wait_for()
        found = axe.run(page, options=rules)
        assert found.violations_count == 0, f"{view}: {found.generate_report()}"
    for opener, view in (("Key", "try"), ("New pool", "try"), ("Add a demonstration", "demonstrations")):
        visit(page, client, view)
        page.get_by_role("button", name=opener, exact=True).click()
        found = axe.run(page, options=rules)
        assert found.violations_count == 0, f"{opener}: {found.generate_report()}"
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize("width", [320, 400])
def test_no_view_is_wider_than_its_window(page: Page, client: httpx2.Client, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    client.post(
        "/v1/pools/tickets/demonstrations", json={"demonstrations": [{"input": "w" * 400, "output": "billing"}]}
    )
    for view in VIEWS:
        visit(page, client, view)
        page.wait_for_load_state("networkidle")
        if view == "try":
            find(page, "w" * 200, "bm25")
            expect(page.locator(".column .rank").first).to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
