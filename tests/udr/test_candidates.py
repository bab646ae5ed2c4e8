"""Candidate lists: ranks, merging, and their files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udr.candidates import read_candidates, union, with_ranks, write_candidates
from udr.errors import ArtifactError, DataError
from udr.types import Candidate, CandidateList

scored = st.dictionaries(st.text("abc", min_size=1, max_size=2), st.sampled_from([-2.5, -1.0, -0.5]), min_size=1)


@given(scored)
def test_ranks_follow_the_score_and_ties_go_to_the_smaller_id(scores: dict[str, float]) -> None:
    candidates = [Candidate(i, 0.5, s) for i, s in scores.items()]
    ranked = with_ranks(candidates)
    assert [c.rank for c in ranked] == list(range(1, len(scores) + 1))
    assert [(-scores[c.demonstration_id], c.demonstration_id) for c in ranked] == sorted(
        (-s, i) for i, s in scores.items()
    )
    assert with_ranks(candidates[::-1]) == ranked


def test_a_candidate_without_a_score_cannot_be_ranked() -> None:
    with pytest.raises(DataError, match="candidate b has no LM score yet; run: udr score"):
        with_ranks([Candidate("a", lm_score=-1.0), Candidate("b")])


def test_a_union_holds_each_demonstration_once_with_its_latest_score_and_new_ranks() -> None:
    first = [CandidateList("t", "q", with_ranks([Candidate("a", 3.0, -1.0), Candidate("b", 2.0, -2.0)]))]
    second = [
        CandidateList("t", "q", with_ranks([Candidate("c", 9.0, -1.5), Candidate("b", 8.0, -0.5)])),
        CandidateList("u", "q", with_ranks([Candidate("a", 1.0, -4.0)])),
    ]
    assert union([first, second]) == [
        CandidateList(
            "t", "q", (Candidate("b", 8.0, -0.5, 1), Candidate("a", 3.0, -1.0, 2), Candidate("c", 9.0, -1.5, 3))
        ),
        CandidateList("u", "q", (Candidate("a", 1.0, -4.0, 1),)),
    ]


candidate = st.builds(
    Candidate,
    st.text(st.characters(exclude_categories=["Cs"])),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.integers(1, 50),
)
names = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.builds(CandidateList, names, names, st.lists(candidate, max_size=3).map(tuple)), max_size=3))
def test_a_file_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, lists: list[CandidateList]
) -> None:
    path = tmp_path_factory.getbasetemp() / "lists.jsonl"
    write_candidates(path, lists)
    assert read_candidates(path) == lists


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '{"task": "t"}', '{"task": "t", "query": "q", "candidates": [["a", 1]]}']
)
def test_a_line_that_is_no_list_is_refused_with_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "lists.jsonl"
    write_candidates(path, [CandidateList("t", "q", ())])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"lists\.jsonl:2: not a candidate list"):
        read_candidates(path)


def test_a_cut_last_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl"
    write_candidates(path, [CandidateList("t", "q", (Candidate("a"),))] * 2)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r":2: not a candidate list"):
        read_candidates(path)


def test_an_absent_file_and_text_that_is_not_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl"
    with pytest.raises(DataError, match="cannot be read"):
        read_candidates(path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_candidates(path)


def test_a_folder_that_cannot_be_written_gives_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError):
        write_candidates(tmp_path / "file" / "lists.jsonl", [])
