"""The nouns: what makes two of them the same, and that naming them costs nothing."""

from __future__ import annotations

import base64
import dataclasses
import subprocess
import sys
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udr.types import Demonstration, Dropped, Media, Prompt, Query

texts = st.text(max_size=3)
rows = st.tuples(texts, texts, st.lists(texts, max_size=3).map(tuple))


def test_a_query_is_its_input_whatever_its_id_and_choices() -> None:
    assert Query("1", "x").content_hash == Query("2", "x", ("a", "b")).content_hash
    assert Query("1", "x").content_hash != Query("1", "y").content_hash


def test_media_belong_to_the_identity_of_a_query() -> None:
    one, two = Media("image", data=b"1"), Media("image", data=b"2")
    hashes = {Query("q", "x", media=m).content_hash for m in [(), (one,), (two,), (one, two), (two, one)]}
    assert len(hashes) == 5


def test_media_have_an_address_even_if_they_are_bytes() -> None:
    assert Media("image", "http://x/y.png").address == "http://x/y.png"
    kinds: list[tuple[Literal["image", "video", "audio"], bytes, str]] = [
        ("image", b"\x89PNG", "image/png"),
        ("image", b"\xff\xd8\xff", "image/jpeg"),
        ("image", b"RIFF0000WEBP", "image/webp"),
        ("image", b"?", "application/octet-stream"),
        ("audio", b"RIFF0000WAVE", "audio/wav"),
        ("audio", b"OggS", "audio/ogg"),
        ("audio", b"\xff\xf3", "audio/mpeg"),
        ("video", b"RIFF0000AVI ", "video/x-msvideo"),
        ("video", b"OggS", "video/mp4"),
    ]
    for of, begin, kind in kinds:
        address = Media(of, data=begin + b"rest").address
        assert address == f"data:{kind};base64,{base64.b64encode(begin + b'rest').decode()}"


def test_media_are_known_by_their_bytes_and_else_by_their_address() -> None:
    assert Media("image", uri="a.png", data=b"1").content_hash == Media("image", uri="b.png", data=b"1").content_hash
    assert Media("image", uri="a.png").content_hash != Media("image", uri="b.png").content_hash


@given(rows, rows)
def test_two_demonstrations_have_one_hash_only_if_they_read_the_same(
    a: tuple[str, str, tuple[str, ...]], b: tuple[str, str, tuple[str, ...]]
) -> None:
    assert (Demonstration("1", *a).content_hash == Demonstration("2", *b).content_hash) == (a == b)


def test_text_moved_over_a_border_changes_the_hash() -> None:
    assert Demonstration("1", "ab", "c").content_hash != Demonstration("1", "a", "bc").content_hash
    assert Demonstration("1", "a", "", ("b",)).content_hash != Demonstration("1", "a", "b", ()).content_hash


def test_half_a_surrogate_pair_can_be_hashed() -> None:
    assert Query("1", "\ud800").content_hash != Query("1", "\ud801").content_hash


def test_the_query_of_a_demonstration_keeps_all_but_the_answer() -> None:
    media = (Media("audio", uri="a.wav"),)
    demonstration = Demonstration("7", "x", "y", ("y", "z"), ("also y",), media, {"source": "here"})
    assert demonstration.query == Query("7", "x", ("y", "z"), media)


def test_nouns_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Query("1", "x").input = "y"  # type: ignore[misc]


def test_a_prompt_is_truncated_when_a_demonstration_was_left_out() -> None:
    assert not Prompt("x", (), (), 1, 10).truncated
    assert Prompt("x", (), (Dropped("1", "needs 20 tokens", 20),), 1, 10).truncated


def test_types_and_errors_import_nothing_of_ours_and_nothing_heavy() -> None:
    code = "import sys, udr.types, udr.errors; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert {m for m in modules if m.split(".")[0] == "udr"} == {"udr", "udr.types", "udr.errors"}
    assert not modules & {"torch", "transformers", "faiss", "pydantic", "yaml"}
