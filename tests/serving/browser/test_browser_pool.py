"""What is kept of a pool, as the playground shows and changes it: demonstrations, corrections, the overview."""

from __future__ import annotations

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.serving.browser.pages import TICKETS, visit

pytestmark = pytest.mark.browser


def test_demonstrations_are_filtered_added_changed_and_deleted(page: Page, client: httpx2.Client) -> None:
    visit(page, client, "demonstrations")
    cards = page.locator("#demonstrations .card")
    expect(cards).to_have_count(4)
    page.locator("section:visible").get_by_label("Metadata", exact=True).fill("year>2020")
    page.get_by_role("button", name="Filter").click()
    expect(cards).to_have_count(2)
    page.locator("section:visible").get_by_label("Metadata", exact=True).fill("")
    page.get_by_label("Words").fill("invoice")
    page.get_by_label("Words").press("Enter")
    expect(cards.first).to_contain_text("the invoice is wrong")
    page.get_by_label("Words").fill("")
    page.get_by_label("Words").press("Enter")
    page.get_by_role("button", name="Add a demonstration").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Id").fill("new one")
    dialog.get_by_label("Input").fill("no toner")
    dialog.get_by_role("combobox", name="Output").select_option("printer")
    dialog.get_by_text("Choices, references").click()
    dialog.get_by_label("Metadata").fill("lang = en\nfloor = 3")
    dialog.get_by_role("button", name="Save").click()
    expect(cards).to_have_count(5)
    new = {"id": "new one", "input": "no toner", "output": "printer", "metadata": {"lang": "en", "floor": "3"}}
    assert client.get("/v1/pools/tickets/demonstrations/new one").json() == new
    page.get_by_role("button", name="Edit t/4 é").click()
    dialog.get_by_label("Input").fill("charged three times")
    dialog.get_by_role("button", name="Save").click()
    expect(cards.nth(4)).to_contain_text("charged three times")
    changed = client.get("/v1/pools/tickets/demonstrations/t%2F4 é").json()
    assert changed == {**TICKETS[3], "input": "charged three times"}  # its picture stays
    page.get_by_role("button", name="Delete t1").click()
    dialog.get_by_role("button", name="Cancel").click()
    assert client.get("/v1/pools/tickets/demonstrations/t1").status_code == 200
    page.get_by_role("button", name="Delete t1").click()
    dialog.get_by_role("button", name="Delete it").click()
    expect(cards).to_have_count(4)
    assert client.get("/v1/pools/tickets/demonstrations/t1").status_code == 404


def test_what_is_saved_unchanged_stays_as_it_is(page: Page, client: httpx2.Client) -> None:
    odd = {
        "id": "odd",
        "input": " two\r\n lines ",
        "output": " free\r\ntext ",
        "choices": [" a ", "b\nc"],
        "references": ["x\n\ny", " z"],
        "metadata": {"a = b": " v ", "k": "one\r\ntwo", "n": "3"},
    }
    client.post("/v1/pools", json={"name": "free"}).raise_for_status()
    client.post("/v1/pools/free/demonstrations", json={"demonstrations": [odd]}).raise_for_status()
    visit(page, client, "demonstrations", "free")
    dialog = page.get_by_role("dialog")
    for change in ({}, {"references": ["new"]}):
        page.get_by_role("button", name="Edit odd").click()
        if change:
            dialog.get_by_label("References").fill("new")
        with page.expect_response("**/demonstrations/odd"):
            dialog.get_by_role("button", name="Save").click()
        expect(dialog).to_be_hidden()
        assert client.get("/v1/pools/free/demonstrations/odd").json() == {**odd, **change}


def test_what_someone_else_changed_is_shown_before_it_is_replaced(page: Page, client: httpx2.Client) -> None:
    where = "/v1/pools/tickets/demonstrations/t1"
    visit(page, client, "demonstrations")
    dialog = page.get_by_role("dialog")
    page.get_by_role("button", name="Edit t1").click()
    dialog.get_by_label("Input").fill("mine")
    client.put(where, json={"input": "theirs", "output": "printer"}).raise_for_status()
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert")).to_contain_text('input is "theirs"; output is "printer"; metadata is empty')
    assert client.get(where).json()["input"] == "theirs"
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_be_hidden()
    assert client.get(where).json()["input"] == "mine"
    page.get_by_role("button", name="Delete t1").click()
    expect(dialog).to_contain_text("mine")
    client.put(where, json={"input": "theirs", "output": "printer"}).raise_for_status()
    dialog.get_by_role("button", name="Delete it").click()
    expect(page.get_by_role("alert")).to_contain_text("'t1' has changed since it was read")
    page.get_by_role("button", name="Try again").click()
    expect(dialog).to_contain_text("theirs")
    dialog.get_by_role("button", name="Delete it").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#demonstrations .card")).to_have_count(3)
    assert client.get(where).status_code == 404


def test_a_long_list_comes_in_pages(page: Page, client: httpx2.Client) -> None:
    rows = [{"input": f"ticket number {i}", "output": "billing"} for i in range(120)]
    client.post("/v1/pools/empty/demonstrations", json={"demonstrations": rows}).raise_for_status()
    visit(page, client, "demonstrations", "empty")
    for shown in (50, 100, 120):
        expect(page.locator("#demonstrations .card")).to_have_count(shown)
        if shown < 120:
            page.get_by_role("button", name="Show more").click()
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()


def test_corrections_are_accepted_changed_and_rejected(page: Page, client: httpx2.Client) -> None:
    outcomes = [{"input": f"case {i}", "output": "Printer", "corrected_output": "billing"} for i in range(3)]
    client.post("/v1/feedback", json={"pool": "tickets", "outcomes": outcomes}).raise_for_status()
    visit(page, client, "review")
    expect(page.get_by_text("3 corrections to review.")).to_be_visible()
    first = page.locator("#waiting > li").first
    first.get_by_role("button", name="Accept").click()
    expect(page.get_by_text("2 corrections to review.")).to_be_visible()
    expect(first.get_by_label("Correct output")).to_be_focused()
    first.get_by_label("Correct output").fill("nothing")
    first.get_by_role("button", name="Accept").click()
    expect(first.get_by_role("alert")).to_contain_text("label 'nothing'")
    first.get_by_label("Correct output").fill("printer")
    first.get_by_role("button", name="Accept").click()
    expect(page.get_by_text("1 correction to review.")).to_be_visible()
    first.get_by_role("button", name="Reject").click()
    expect(page.get_by_text("Nothing waits.")).to_be_visible()
    states = {f["input"]: f["state"] for f in client.get("/v1/pools/tickets/feedback").json()["feedback"]}
    assert states == {"case 0": "accepted", "case 1": "accepted", "case 2": "rejected"}
    made = {d["input"]: d["output"] for d in client.get("/v1/pools/tickets/demonstrations").json()["demonstrations"]}
    assert (made["case 0"], made["case 1"]) == ("billing", "printer")


def test_the_overview_counts_and_its_map_is_read_by_keys_and_pointer(page: Page, client: httpx2.Client) -> None:
    visit(page, client, "overview")
    expect(page.locator("#outputs")).to_contain_text("2 distinct outputs")
    expect(page.locator("#outputs")).to_contain_text("2 · 50.0 %")
    drawing = page.get_by_role("application")
    expect(drawing.locator("path")).to_have_count(4)
    drawing.focus()
    told = {page.locator(".point").inner_text()}
    for key in ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft"):
        drawing.press(key)
        told.add(page.locator(".point").inner_text())
    assert len(told) >= 3
    page.mouse.move(0, 0)
    for mark in drawing.locator("path").all():
        box = mark.bounding_box()
        assert box
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        told.add(page.locator(".point").inner_text())
    assert {t["input"] for t in TICKETS} == {t["input"] for t in TICKETS if any(t["input"] in text for text in told)}
    page.get_by_role("list", name="Outputs").get_by_role("button", name="billing").click()
    expect(drawing.locator(".faded")).to_have_count(2)


def test_a_pool_is_deleted_after_a_question(page: Page, client: httpx2.Client) -> None:
    visit(page, client, "overview")
    page.get_by_role("button", name="Delete this pool").click()
    expect(page.get_by_role("dialog")).to_contain_text("4 demonstrations")
    page.get_by_role("button", name="Delete it").click()
    expect(page).to_have_url(f"{client.base_url}/#/empty/overview")
    assert client.get("/v1/pools/tickets").status_code == 404
