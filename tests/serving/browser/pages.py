"""What tests of the playground share: a pool, and the way to a view of it."""

from __future__ import annotations

from typing import Any

import httpx2
from playwright.sync_api import Page, expect

from tests.serving.browser.chromium import picture

__all__ = ["LABELS", "TICKETS", "VIEWS", "find", "visit"]

LABELS = {"billing": "Billing", "printer": "Printer"}
TICKETS: list[dict[str, Any]] = [
    {"id": "t1", "input": "the invoice is wrong", "output": "billing", "metadata": {"lang": "en", "year": "2019"}},
    {"id": "t2", "input": "the printer is on fire", "output": "printer", "metadata": {"lang": "en", "year": "2021"}},
    {"id": "t3", "input": "der printer brennt", "output": "printer", "metadata": {"lang": "de", "year": "2024"}},
    {"id": "t/4 é", "input": "charged twice", "output": "billing", "media": [{"kind": "image", "uri": picture()}]},
]
VIEWS = ("try", "demonstrations", "review", "upload", "overview")


def visit(page: Page, client: httpx2.Client, view: str, pool: str = "tickets") -> None:
    """Open a view of a pool, and wait until it is there."""
    page.goto(f"{client.base_url}/#/{pool}/{view}")
    expect(page.locator(f"#view-{view}")).to_be_visible()


def find(page: Page, query: str, other: str = "") -> None:
    """Ask for the demonstrations of a query; `other` names a second retriever."""
    page.get_by_label("Query", exact=True).fill(query)
    if other:
        page.get_by_label("Compare with").select_option(other)
    page.get_by_role("button", name="Find demonstrations").click()
