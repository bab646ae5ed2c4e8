"""Files of each kind through the playground into a pool."""

from __future__ import annotations

import csv
import io
import json

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

from tests.serving.browser.pages import visit

pytestmark = pytest.mark.browser


def table(kind: str) -> bytes:
    """Three rows, the second without its output or with a label that the task has not; the third begins in line 5."""
    rows = [("a", 'says "hi",\nand more', "billing"), ("b", "x", "nothing"), ("c", "later", "printer")]
    if kind == "csv":
        text = io.StringIO()
        csv.writer(text).writerows([("id", "input", "output"), *rows])
        return text.getvalue().encode()
    if kind == "jsonl":
        return "\n".join(json.dumps(dict(zip(("id", "input", "output"), row, strict=True))) for row in rows).encode()
    out = io.BytesIO()
    pq.write_table(pa.table(dict(zip(("id", "input", "output"), zip(*rows, strict=True), strict=True))), out)
    return out.getvalue()


@pytest.mark.parametrize(("kind", "line"), [("jsonl", 2), ("csv", 4), ("parquet", 2)])
def test_a_file_is_loaded_and_its_bad_lines_are_told(page: Page, client: httpx2.Client, kind: str, line: int) -> None:
    visit(page, client, "upload", "empty")
    page.get_by_label("JSONL, CSV or Parquet").set_input_files(
        {"name": f"rows.{kind}", "mimeType": "application/octet-stream", "buffer": table(kind)}
    )
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_text("Done: 2 created, 0 replaced, 0 unchanged, 1 refused")).to_be_visible()
    cells = [c.inner_text() for c in page.locator("#refused td").all()]
    assert cells[0] == str(line)
    assert "label 'nothing'" in cells[1]
    assert page.get_by_label("Sent").evaluate("bar => bar.value / bar.max") == 1
    made = client.get("/v1/pools/empty/demonstrations").json()["demonstrations"]
    assert [(d["id"], d["input"]) for d in made] == [("a", 'says "hi",\nand more'), ("c", "later")]
    expect(page.locator("#jobs tbody tr")).to_have_count(1)
    page.get_by_role("link", name="Look at them").click()
    expect(page.locator("#demonstrations .card")).to_have_count(2)


def test_a_file_that_is_no_table_is_refused_before_it_is_sent(page: Page, client: httpx2.Client) -> None:
    visit(page, client, "upload", "empty")
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("Choose a file first")
    for name, content, words in [
        ("a.pdf", b"x", "expected one that ends in .jsonl"),
        ("a.csv", b"text,label\na,b\n", "no column “input”"),
        ("a.csv", b'input,output\n"a,b\n', "line 2: a quote is opened"),
        ("a.csv", b"input,output\na,b,c\n", "line 2: 3 fields"),
    ]:
        page.get_by_label("JSONL, CSV or Parquet").set_input_files({"name": name, "mimeType": "x/y", "buffer": content})
        page.get_by_role("button", name="Upload", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text(words)
    assert client.get("/v1/pools/empty/jobs").json()["jobs"] == []


def test_csv_is_read_as_pythons_csv_reads_it(page: Page, client: httpx2.Client) -> None:
    visit(page, client, "upload")
    texts = ["a,b\n1,2\n", 'a,"b ""x"" , y"\r\n"1\n2",\r\n', "a\n\nb", '"",x\n,\n', "é,\U0001f600", 'a,b\n"q"\n']
    read = "async text => [...(await import('/playground/csv.js')).records(text)].map(r => r.row)"
    for text in texts:
        expected = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        assert page.evaluate(read, text) == expected, text
