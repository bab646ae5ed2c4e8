"""Pictures of the playground over a pool that this writes itself: `python -m tests.serving.browser.screenshots FOLDER`.

Each view at 1280 and 400 pixels, light and dark. They are looked at when the page changes, and are not kept.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import httpx2
from playwright.sync_api import Browser, Page

from serving.settings import Settings, packaged_encoder
from tests.serving.browser.chromium import chromium, picture
from tests.serving.browser.pages import VIEWS
from tests.serving.chat_server import chat_server
from tests.serving.tools import served

SUBJECTS = {
    "billing": ["the invoice of {} is wrong", "I was charged twice in {}", "please refund my payment of {}"],
    "printer": ["the printer in {} is on fire", "paper is jammed since {}", "it prints empty pages since {}"],
    "network": ["no wifi in {}", "the connection drops every hour since {}", "I cannot reach the server from {}"],
    "account": ["my password expired in {}", "I cannot log in since {}", "please delete my account of {}"],
}
PLACES = ["March", "room 12", "Monday", "the cellar", "last week", "Lisbon", "the library", "yesterday"]


def fill(url: str) -> None:
    """A pool of tickets, with a picture, outcomes that wait, and a load with bad lines."""
    rows = [
        {
            "id": f"ticket-{i}",
            "input": text.format(place),
            "output": label,
            "metadata": {"lang": "en", "year": 2020 + i % 5},
        }
        for i, ((label, texts), place) in enumerate(itertools.product(SUBJECTS.items(), PLACES))
        for text in [texts[i % 3]]
    ]
    rows[0]["media"] = [{"kind": "image", "uri": picture()}, {"kind": "image", "uri": "https://example.org/a.png"}]
    rows[1]["input"] = "<script>document.title = 'broken in'</script> is what the printer prints"
    outcomes = [
        {
            "input": "charged for March, three times",
            "output": "Printer",
            "corrected_output": "billing",
            "demonstrations": ["ticket-1"],
        },
        {"input": "wifi is slow at noon", "output": "Printer", "corrected_output": "network"},
    ]
    lines = b'{"input": "the scanner hums", "output": "printer"}\n{"input": "no output"}\nnot JSON\n'
    with httpx2.Client(base_url=url, timeout=60) as client:
        task = {"instruction": "Which team should read this?", "verbaliser": {k: k.capitalize() for k in SUBJECTS}}
        for name in ("tickets", "empty"):
            client.post("/v1/pools", json={"name": name, "task": task}).raise_for_status()
        client.post("/v1/pools/tickets/demonstrations", json={"demonstrations": rows}).raise_for_status()
        client.post("/v1/feedback", json={"pool": "tickets", "outcomes": outcomes}).raise_for_status()
        client.post(
            "/v1/pools/tickets/load", content=lines, headers={"content-type": "application/x-ndjson"}
        ).raise_for_status()


def shoot(browser: Browser, url: str, folder: Path) -> None:
    for width, scheme in itertools.product((1280, 400), ("light", "dark")):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        for view in VIEWS:
            page.goto(f"{url}/#/tickets/{view}")
            show(page, view)
            page.wait_for_load_state("networkidle")
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=folder / f"{view}-{width}-{scheme}.png", full_page=True)
        page.close()


def show(page: Page, view: str) -> None:
    """Bring a view to what is worth looking at."""
    if view == "try":
        page.get_by_label("Query", exact=True).fill("there is smoke coming out of the printer in Lisbon")
        page.get_by_label("Token budget").fill("260")
        page.get_by_label("Compare with").select_option("bm25")
        page.get_by_role("button", name="Find demonstrations").click()
        page.get_by_role("button", name="Ask gemma").first.click()
        page.get_by_text("Was it right?").wait_for()
    if view == "upload":
        rows = b"input,output,lang\nthe scanner hums,printer,en\nno label,nothing,en\n"
        page.get_by_label("JSONL, CSV or Parquet").set_input_files(
            {"name": "more.csv", "mimeType": "text/csv", "buffer": rows}
        )
        page.get_by_role("button", name="Upload", exact=True).click()
        page.get_by_text("refused line").wait_for()
    if view == "overview":
        page.get_by_role("application").focus()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    encoder = packaged_encoder() or "fake"
    with tempfile.TemporaryDirectory() as place, chat_server() as upstream, chromium() as browser:
        settings = Settings(database=f"sqlite:///{place}/u.sqlite", encoder=encoder, upstream=upstream.url)
        with served(settings) as url:
            fill(url)
            shoot(browser, url, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
