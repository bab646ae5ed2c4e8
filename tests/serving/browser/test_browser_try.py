"""A query in the playground: what is shown is what the service answers, and the answer streams."""

from __future__ import annotations

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.serving.browser.chromium import picture, png
from tests.serving.browser.pages import TICKETS, find, visit
from tests.serving.chat_server import ChatServer

pytestmark = pytest.mark.browser


def test_a_query_shows_what_the_service_answers(page: Page, client: httpx2.Client) -> None:
    visit(page, client, "try")
    page.get_by_role("spinbutton", name="Demonstrations").fill("1")
    page.get_by_label("Token budget").fill("90")
    find(page, "my printer smokes", "bm25")
    for i, retriever in enumerate(("", "bm25")):
        asked = {"pool": "tickets", "queries": ["my printer smokes"], "k": 1, "budget": 90, "retriever": retriever}
        answer = client.post("/v1/prompt", json={**asked, "explain": True}).json()
        (result,) = answer["results"]
        column = page.locator(".column").nth(i)
        expect(column.get_by_role("heading", level=2).first).to_have_text(answer["retriever"])
        cards = (
            column.get_by_role("list", name="Demonstrations by rank")
            .get_by_role("listitem")
            .filter(has=page.locator(".rank"))
        )
        ranked = sorted(result["demonstrations"], key=lambda d: d["rank"])
        expect(cards).to_have_count(len(ranked))
        for card, d in zip(cards.all(), ranked, strict=True):
            text = card.inner_text()
            assert all(
                part in text
                for part in (d["id"], d["input"], d["output"], f"{d['similarity']:.3f}", f"{d['tokens']} tokens")
            )
        assert column.get_by_label("The prompt as text").text_content() == result["text"]
        assert f"{result['tokens']} of 90 tokens" in column.inner_text()
        column.get_by_text("As chat messages").click()
        turns = [[t.locator("h4").inner_text(), t.locator("p").text_content()] for t in column.locator(".turn").all()]
        assert turns == [[m["role"], m["content"]] for m in result["messages"]]
        column.get_by_text(f"Passed over ({len(result['passed_over'])})").click()
        first = result["passed_over"][0]
        left = column.locator(f'[data-id="{first["id"]}"]')
        expect(left).to_contain_text(first["reason"])
        expect(left).to_contain_text(next(t["input"] for t in TICKETS if t["id"] == first["id"]))
    page.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_text("Copied.").first).to_be_attached()


def test_what_does_not_fit_is_told(page: Page, client: httpx2.Client) -> None:
    visit(page, client, "try")
    page.get_by_label("Token budget").fill("50")
    find(page, "my printer smokes")
    page.get_by_text("Did not fit the budget (").click()
    expect(page.locator(".fold [data-id]").first).to_contain_text("token")


def test_an_answer_streams_with_the_prompt_that_is_shown(
    page: Page, client: httpx2.Client, upstream: ChatServer
) -> None:
    front = {"k": 1, "threshold": 0.9, "considered": 1, "where": {"lang": "de"}, "order": "descending", "reserve": 8}
    client.put("/v1/pools/tickets/front", json=front).raise_for_status()  # is not what the page's user asked for
    visit(page, client, "try")
    page.get_by_role("spinbutton", name="Demonstrations").fill("2")
    find(page, "my printer smokes")
    page.get_by_text("As chat messages").click()
    shown = [t.text_content() for t in page.locator(".turn p").all()]
    upstream.fault, upstream.pause = "slow", 0.1
    page.get_by_role("button", name="Ask gemma").click()
    expect(page.locator(".answer")).to_contain_text("It is")  # before the answer has ended
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Ask gemma")).to_be_focused()
    upstream.fault = ""
    page.get_by_role("button", name="Ask gemma").click()
    page.get_by_text("Was it right?").wait_for()
    expect(page.locator(".answer")).to_have_text("It is a Printer.")
    assert [m["content"] for m in upstream.body["messages"]] == shown
    assert upstream.body["model"] == "gemma"
    page.locator(".outcome").get_by_label("Correct output").fill("printer")
    page.get_by_role("button", name="Send to review").click()
    expect(page.get_by_text("it waits under Review")).to_be_visible()
    (kept,) = client.get("/v1/pools/tickets/feedback").json()["feedback"]
    assert (kept["output"], kept["corrected_output"], kept["score"]) == ("It is a Printer.", "printer", 0.0)


def test_settings_go_with_the_query(page: Page, client: httpx2.Client) -> None:
    visit(page, client, "try")
    page.get_by_text("More settings").click()
    page.locator("section:visible").get_by_label("Metadata", exact=True).fill('lang=en year>=2020 lang!="de, at"')
    page.get_by_label("Selection").select_option("mmr")
    page.get_by_label("Order in the prompt").select_option("descending")
    page.get_by_label("Least similarity").fill("-1")
    page.get_by_label("Leave out copies").check()
    with page.expect_request("**/v1/prompt") as asked:
        find(page, "printer")
    body = asked.value.post_data_json
    assert body["where"] == {"lang": {"eq": "en", "ne": "de, at"}, "year": {"gte": 2020}}
    assert (body["selection"], body["order"], body["threshold"], body["without_copies"]) == (
        "mmr",
        "descending",
        -1,
        True,
    )
    expect(page.locator(".column .rank")).to_have_count(1)
    page.locator("section:visible").get_by_label("Metadata", exact=True).fill("lang")
    page.get_by_role("button", name="Find demonstrations").click()
    expect(page.get_by_role("alert")).to_contain_text("“lang” is no condition")


def test_a_picture_goes_with_the_query_and_is_made_to_fit(
    page: Page, client: httpx2.Client, upstream: ChatServer
) -> None:
    visit(page, client, "try")
    field = page.get_by_label("Add a picture").first
    field.set_input_files({"name": "small.png", "mimeType": "image/png", "buffer": png(8, 8)})
    expect(page.locator("#picture-said")).to_contain_text("taken as it is")
    field.set_input_files({"name": "large.png", "mimeType": "image/png", "buffer": png(900, 700, level=0)})
    expect(page.locator("#picture-said")).to_contain_text("made smaller")
    expect(page.locator("#query-pictures img")).to_have_count(2)
    with page.expect_request("**/v1/prompt") as asked:
        find(page, "printer")
    media = asked.value.post_data_json["queries"][0]["media"]
    assert media[0] == {"kind": "image", "uri": picture(8, 8)}
    assert media[1]["uri"].startswith("data:image/jpeg;base64,")
    expect(page.locator(".turns .turn:last-child img")).to_have_count(2)
    page.get_by_role("button", name="Ask gemma").click()
    page.get_by_text("Was it right?").wait_for()
    parts = upstream.body["messages"][-1]["content"]
    assert [p["type"] for p in parts] == ["text", "image_url", "image_url"]
    page.get_by_role("button", name="Remove").first.click()
    expect(page.locator("#query-pictures img")).to_have_count(1)
    field.set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"no"})
    expect(page.locator("#picture-said")).to_contain_text("is no picture")


def test_a_picture_can_be_dropped_on_the_query(page: Page, client: httpx2.Client) -> None:
    visit(page, client, "try")
    dropped = page.evaluate_handle(
        """bytes => { const d = new DataTransfer();
        d.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"})); return d; }""",
        list(png(8, 8)),
    )
    page.dispatch_event("#query", "drop", {"dataTransfer": dropped})
    expect(page.locator("#query-pictures img")).to_have_attribute("src", picture(8, 8))
