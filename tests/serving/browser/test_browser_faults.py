"""The playground where something is missing, refused or hostile: it says so, and nothing that is stored runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Error, Page, expect

from serving.settings import Settings
from tests.serving.browser.pages import VIEWS, find, visit
from tests.serving.chat_server import ChatServer
from tests.serving.tools import served

pytestmark = pytest.mark.browser
ADMIN = {"authorization": "Bearer boss"}


def own(tmp_path: Path, **more: str) -> Settings:
    return Settings(database=f"sqlite:///{tmp_path}/u.sqlite", encoder="fake", **more)  # type: ignore[arg-type]


# -- the LLM server


@pytest.mark.parametrize(
    ("fault", "words"),
    [("refuse", "too much to do"), ("break", "broke off before its answer was whole"), ("error", "out of memory")],
)
def test_what_the_llm_server_does_wrong_is_said(
    page: Page, client: httpx2.Client, upstream: ChatServer, fault: str, words: str
) -> None:
    visit(page, client, "try")
    find(page, "my printer smokes")
    upstream.fault, upstream.pause = fault, 0.3
    page.get_by_role("button", name="Ask gemma").click()
    expect(page.get_by_role("alert")).to_contain_text(words)
    if fault == "refuse":
        expect(page.get_by_role("button", name="Try again in")).to_be_disabled()
        return
    expect(page.locator(".answer")).to_have_text("It is ")
    expect(page.get_by_text("Was it right?")).to_have_count(0)
    upstream.fault = ""
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer")).to_have_text("It is a Printer.")


def test_a_query_without_words_is_not_judged(page: Page, client: httpx2.Client, upstream: ChatServer) -> None:
    visit(page, client, "try")
    find(page, " ")
    page.get_by_role("button", name="Ask gemma").click()
    expect(page.get_by_role("alert")).to_contain_text("no text")
    expect(page.get_by_text("Was it right?")).to_have_count(0)


def test_without_an_llm_server_the_page_says_so(page: Page, tmp_path: Path) -> None:
    with served(own(tmp_path)) as url, httpx2.Client(base_url=url) as client:
        client.post("/v1/pools", json={"name": "tickets"})
        visit(page, client, "try")
        expect(page.locator("#no-model")).to_contain_text("No LLM server is configured")
        find(page, "a query")
        expect(page.get_by_role("region", name="Answer with")).to_contain_text("udr serve --upstream")
        expect(page.get_by_role("button", name="Ask")).to_have_count(0)


def test_a_dead_llm_server_is_named(page: Page, tmp_path: Path) -> None:
    with served(own(tmp_path, upstream="http://127.0.0.1:9")) as url, httpx2.Client(base_url=url) as client:
        client.post("/v1/pools", json={"name": "tickets"})
        visit(page, client, "try")
        expect(page.locator("#no-model")).to_contain_text("http://127.0.0.1:9 cannot be reached")


# -- the service


def test_an_empty_service_leads_to_the_first_pool_and_its_file(page: Page, tmp_path: Path) -> None:
    with served(own(tmp_path)) as url, httpx2.Client(base_url=url) as client:
        page.goto(url)
        page.get_by_role("button", name="Create a pool").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Name").fill("my tickets")
        dialog.get_by_role("button", name="Create").click()
        expect(dialog.get_by_role("alert")).to_contain_text("body.name")
        dialog.get_by_label("Name").fill("my-tickets")
        dialog.get_by_label("Instruction").fill("Which team?")
        dialog.get_by_label("Labels").fill("billing = Billing\nprinter")
        dialog.get_by_role("button", name="Create").click()
        expect(page).to_have_url(f"{url}/#/my-tickets/upload")
        task = client.get("/v1/pools/my-tickets").json()["task"]
        assert (task["instruction"], task["verbaliser"]) == (
            "Which team?",
            {"billing": "Billing", "printer": "printer"},
        )
        for view in VIEWS:  # none of them fails on an empty pool
            visit(page, client, view, "my-tickets")
            page.wait_for_load_state("networkidle")
            expect(page.get_by_role("alert").filter(visible=True)).to_have_count(0)


def test_a_problem_is_shown_with_its_title_and_detail(page: Page, client: httpx2.Client) -> None:
    visit(page, client, "try")
    page.get_by_label("Token budget").fill("5")
    find(page, "a query of more than five bytes")
    expect(page.get_by_role("alert")).to_contain_text("Prompt too long")
    expect(page.get_by_role("alert")).to_contain_text("5")
    page.get_by_label("Token budget").fill("")
    page.get_by_role("button", name="Find demonstrations").click()
    expect(page.get_by_role("alert")).to_contain_text("body.budget")


def test_a_pool_that_is_gone_leads_to_one_that_is_there(page: Page, client: httpx2.Client) -> None:
    for place, view in (("nothing/overview", "overview"), ("%/constructor", "try"), ("", "try")):
        page.goto(f"{client.base_url}/#/{place}")
        expect(page).to_have_url(f"{client.base_url}/#/empty/{view}")


def test_a_busy_service_is_asked_again_when_it_says(page: Page, tmp_path: Path) -> None:
    with served(own(tmp_path, key="boss", rate="1/second")) as url:
        page.add_init_script("sessionStorage.setItem('udr-key', 'boss')")
        page.goto(url)
        page.goto(url + "/?again")
        again = page.get_by_role("button", name="Try again in 1 s")
        expect(again).to_be_disabled()
        expect(page.get_by_role("alert")).to_contain_text("too many requests")
        page.get_by_role("button", name="Try again", exact=True).click()
        expect(page.get_by_role("heading", name="No pools yet")).to_be_visible()


def test_a_service_that_has_gone_is_told_and_found_again(page: Page, tmp_path: Path) -> None:
    with served(own(tmp_path)) as url, httpx2.Client(base_url=url) as client:
        client.post("/v1/pools", json={"name": "tickets"})
        visit(page, client, "try")
        expect(page.locator("#no-model")).to_be_visible()
    find(page, "a query")
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer")


# -- keys


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[httpx2.Client]:
    with served(own(tmp_path, key="boss")) as url, httpx2.Client(base_url=url, headers=ADMIN) as client:
        client.post("/v1/pools", json={"name": "tickets"}).raise_for_status()
        rows = [{"id": "1", "input": "a", "output": "b"}]
        client.post("/v1/pools/tickets/demonstrations", json={"demonstrations": rows}).raise_for_status()
        yield client


def test_a_key_is_asked_for_and_kept_in_this_tab_alone(page: Page, guarded: httpx2.Client) -> None:
    page.goto(f"{guarded.base_url}/#/tickets/demonstrations")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("This service asks for a key.")
    field = dialog.get_by_label("Key of this service")
    expect(field).to_be_focused()
    field.fill("wrong")
    field.press("Enter")
    expect(dialog).to_contain_text("does not know this key")
    field.fill("boss")
    dialog.get_by_role("button", name="Use it").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#demonstrations .card")).to_have_count(1)
    page.reload()
    expect(page.locator("#demonstrations .card")).to_have_count(1)
    assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [["boss"], 0, ""]
    page.get_by_role("button", name="Key").click()
    dialog.get_by_role("button", name="Forget it").click()
    expect(dialog).to_contain_text("This service asks for a key.")
    assert page.evaluate("sessionStorage.length") == 0


def test_a_key_for_reading_is_told_that_it_may_not_write(page: Page, guarded: httpx2.Client) -> None:
    made = guarded.post("/v1/keys", json={"name": "reader"}).json()
    page.add_init_script(f"sessionStorage.setItem('udr-key', '{made['key']}')")
    visit(page, guarded, "demonstrations")
    page.get_by_role("button", name="Delete 1").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.get_by_role("dialog")).to_contain_text("Not allowed: key 'reader' is for read alone; this needs write.")
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_contain_text("this needs write")
    expect(page.locator("#demonstrations .card")).to_have_count(1)


# -- what is stored is text


HOSTILE = [
    "<script>window.broken = 1</script>",
    '"><img src=x onerror="window.broken=1">',
    "<svg onload=window.broken=1><a href='javascript:window.broken=1'>click</a>",
    "</textarea></pre><iframe srcdoc='<script>parent.broken=1</script>'></iframe>",
    "{{constructor.constructor('window.broken=1')()}} ${window.broken=1} `+window.broken`",
]
URIS = ["javascript:window.broken=1", "https://example.org/x.png", "data:text/html,<script>window.broken=1</script>"]


def test_nothing_that_is_stored_runs_or_is_fetched(page: Page, client: httpx2.Client) -> None:
    drawing = "<svg xmlns='http://www.w3.org/2000/svg' onload='window.broken=1'><script>window.broken=1</script></svg>"
    svg = f"data:image/svg+xml,{drawing}"
    rows = [
        {
            "id": text,
            "input": f"{text} printer",
            "output": text,
            "choices": [text],
            "references": [text],
            "metadata": {text: text},
            "media": [{"kind": "image", "uri": uri} for uri in [*URIS, svg]],
        }
        for text in HOSTILE
    ]
    client.post("/v1/pools", json={"name": "hostile", "task": {"instruction": HOSTILE[1]}}).raise_for_status()
    client.post("/v1/pools/hostile/demonstrations", json={"demonstrations": rows}).raise_for_status()
    outcomes = [{"input": text, "output": text, "corrected_output": text, "demonstrations": [text]} for text in HOSTILE]
    client.post("/v1/feedback", json={"pool": "hostile", "outcomes": outcomes}).raise_for_status()
    shown = dict(zip(VIEWS, (".column .rank", ".card", "#waiting li", "#jobs p", "path"), strict=True))
    for view in VIEWS:
        visit(page, client, view, "hostile")
        if view == "try":
            find(page, HOSTILE[1] + " printer")
            page.get_by_text("As chat messages").click()
        expect(page.locator(f"#view-{view}").locator(shown[view]).first).to_be_attached()
        page.wait_for_load_state("networkidle")
        sources = page.evaluate("[...document.images].map(i => i.getAttribute('src'))")
        assert set(sources) <= {"/playground/icon.svg", svg}
        assert page.evaluate("document.querySelectorAll('script, iframe, [onerror], [onload]').length") == 1  # its own
        assert page.evaluate("window.broken") is None
    visit(page, client, "demonstrations", "hostile")
    expect(page.locator("#view-demonstrations .card").first).to_contain_text(HOSTILE[0])
    expect(page.locator("#view-demonstrations .address").nth(1)).to_have_text("image: https://example.org/x.png")
    page.get_by_role("button", name="Edit").first.click()
    assert page.get_by_role("dialog").get_by_label("Input").input_value() == f"{HOSTILE[0]} printer"
    assert page.evaluate("window.broken") is None


def test_no_text_becomes_markup_by_mistake(browser: Browser, client: httpx2.Client) -> None:
    page = browser.new_page()
    page.goto(str(client.base_url))
    with pytest.raises(Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")
    page.close()
