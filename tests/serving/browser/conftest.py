from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from playwright.sync_api import Browser, Page

from serving.settings import Settings
from tests.serving.browser.chromium import chromium, executable
from tests.serving.browser.pages import LABELS, TICKETS
from tests.serving.chat_server import ChatServer, chat_server
from tests.serving.tools import served


@pytest.fixture(scope="module")  # playwright's event loop runs until it is closed, and asyncio allows no other one
def browser() -> Iterator[Browser]:
    """A headless Chromium; each test opens a page of its own in it."""
    if executable() is None:
        pytest.skip("Chromium is not installed")
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def llm() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture
def upstream(llm: ChatServer) -> ChatServer:
    """The LLM server without a fault."""
    llm.fault, llm.pause = "", 0.05
    return llm


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory, llm: ChatServer) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("browser")
    with served(Settings(database=f"sqlite:///{folder}/u.sqlite", encoder="fake", upstream=llm.url)) as url:
        yield url


@pytest.fixture
def client(url: str, upstream: ChatServer) -> Iterator[httpx2.Client]:
    """The service with the pool `tickets` as it is at the beginning, and the pool `empty`."""
    with httpx2.Client(base_url=url) as client:
        for pool in client.get("/v1/pools").json()["pools"]:
            client.delete(f"/v1/pools/{pool['name']}")
        for name in ("tickets", "empty"):
            client.post("/v1/pools", json={"name": name, "task": {"verbaliser": LABELS}}).raise_for_status()
        client.post("/v1/pools/tickets/demonstrations", json={"demonstrations": TICKETS}).raise_for_status()
        yield client


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that asks nobody but the service and opens no dialog of the browser's.

    On its console stand at most the statuses of refused requests, which tests look at themselves.
    """
    context = browser.new_context(reduced_motion="reduce", permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(5000)
    said: list[str] = []
    page.on("console", lambda m: m.text.startswith("Failed to load resource") or said.append(m.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda r: r.url.startswith(("http://127.0.0.1:", "data:", "blob:")) or said.append(r.url))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    yield page
    context.close()
    assert said == []
