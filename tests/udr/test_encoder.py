"""The bi-encoder against sentence-transformers, its truncation, and its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from udr.encoder import BiEncoder, build_encoder, length_batches, load_encoder
from udr.errors import ArtifactError, ConfigError, FingerprintMismatch
from udr.index import FlatIndex
from udr.types import Demonstration, FloatArray, Query

TEXTS = ["the film was a joy", "a", "shares of the bank fell " * 30, "", "zzz ?!", "one fish two fish"]
QUERIES = [Query(str(i), t) for i, t in enumerate(TEXTS)]
INSTRUCTION = "sentiment of the sentence:"


@pytest.fixture(scope="module")
def encoder(bert_folder: Path) -> BiEncoder:
    return build_encoder(str(bert_folder), device="cpu")


@pytest.fixture
def fresh(bert_folder: Path) -> BiEncoder:
    """Two towers that differ, for tests that change them."""
    made = build_encoder(str(bert_folder), shared=False, device="cpu")
    with torch.no_grad():
        next(made.demonstration_tower.parameters()).mul_(0.5)
    return made


def sentence_vectors(folder: Path, texts: list[str], unit_norm: bool) -> FloatArray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    vectors: FloatArray = model.encode(texts, normalize_embeddings=unit_norm, show_progress_bar=False)
    return vectors


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_those_of_sentence_transformers(
    bert_folder: Path, cls_bert_folder: Path, pooling: str, unit_norm: bool
) -> None:
    folder = {"mean": bert_folder, "cls": cls_bert_folder}[pooling]
    encoder = build_encoder(str(folder), unit_norm=unit_norm, device="cpu")
    assert encoder.pooling == pooling  # as the encoder's own files say
    expected = sentence_vectors(folder, TEXTS, unit_norm)
    np.testing.assert_allclose(encoder.encode_queries(QUERIES), expected, atol=2e-6)
    expected = sentence_vectors(folder, [f"{INSTRUCTION} {t}" for t in TEXTS], unit_norm)
    np.testing.assert_allclose(encoder.encode_queries(QUERIES, INSTRUCTION), expected, atol=2e-6)
    short = [Demonstration("1", "the film was a joy", "it was great"), Demonstration("2", "a", "")]
    expected = sentence_vectors(folder, [f"{INSTRUCTION} {d.input} {d.output}" for d in short], unit_norm)
    np.testing.assert_allclose(encoder.encode_demonstrations(short, INSTRUCTION), expected, atol=2e-6)


def test_pooling_that_is_asked_for_wins_and_earlier_files_are_understood(bert_folder: Path, tmp_path: Path) -> None:
    assert build_encoder(str(bert_folder), pooling="cls", device="cpu").pooling == "cls"
    old = tmp_path / "old"
    shutil.copytree(bert_folder, old)
    for flags, pooling in [({"pooling_mode_cls_token": True}, "cls"), ({"pooling_mode_cls_token": False}, "mean")]:
        (old / "1_Pooling" / "config.json").write_text(json.dumps(flags))
        assert build_encoder(str(old), device="cpu").pooling == pooling
    shutil.rmtree(old / "1_Pooling")
    assert build_encoder(str(old), device="cpu").pooling == "mean"


def test_a_text_has_one_vector_alone_or_in_a_batch(encoder: BiEncoder) -> None:
    together = encoder.encode_queries(QUERIES * 40)
    assert together.dtype == np.float32
    for i, query in enumerate(QUERIES):
        np.testing.assert_allclose(encoder.encode_queries([query])[0], together[i], atol=1e-6)
        np.testing.assert_allclose(together[i + 39 * len(QUERIES)], together[i], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)


def test_tokens_are_those_whose_mean_is_the_vector(encoder: BiEncoder) -> None:
    tokens, ids = encoder.encode_tokens(QUERIES, INSTRUCTION), encoder.query_ids(QUERIES, INSTRUCTION)
    assert [len(one) for one in tokens] == [len(one) for one in ids]
    means = np.stack([one.mean(0) for one in tokens])
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, encoder.encode_queries(QUERIES, INSTRUCTION), atol=1e-5)
    assert encoder.encode_tokens([]) == []


def test_no_texts_have_no_vectors(encoder: BiEncoder) -> None:
    assert encoder.encode_queries([]).shape == encoder.encode_demonstrations([]).shape == (0, 32)


def test_dropout_never_touches_an_encoded_vector_and_training_goes_on(fresh: BiEncoder) -> None:
    quiet = fresh.encode_queries(QUERIES)
    fresh.train()
    np.testing.assert_array_equal(fresh.encode_queries(QUERIES), quiet)
    assert fresh.training


def test_lower_precision_is_near_and_still_gives_float32(encoder: BiEncoder, bert_folder: Path) -> None:
    coarse = build_encoder(str(bert_folder), precision="bfloat16", device="cpu").encode_queries(QUERIES)
    exact = encoder.encode_queries(QUERIES)
    assert coarse.dtype == np.float32
    assert 0 < np.abs(coarse - exact).max() < 0.1


# truncation


words = st.integers(0, 80).map(lambda n: " ".join(["film"] * n))


@given(words, words, words, st.sampled_from([8, 16, 33, 64]), st.sampled_from([0, 5, 64]))
def test_no_sequence_is_too_long_and_the_input_is_cut_before_the_answer(
    encoder: BiEncoder, instruction: str, text: str, answer: str, max_tokens: int, instruction_tokens: int
) -> None:
    cut = BiEncoder(
        encoder.query_tower,
        encoder.demonstration_tower,
        encoder.tokenizer,
        max_tokens=max_tokens,
        instruction_tokens=instruction_tokens,
    )
    film, cls, sep = (encoder.tokenizer.convert_tokens_to_ids(t) for t in ("film", "[CLS]", "[SEP]"))
    lengths = [len(t.split()) for t in (instruction, text, answer)]
    answer = answer.replace("film", "joy")
    joy = encoder.tokenizer("joy", add_special_tokens=False)["input_ids"]
    (ids,) = cut.demonstration_ids([Demonstration("1", text, answer)], instruction)
    (query,) = cut.query_ids([Query("1", text)], instruction)
    assert len(ids) <= max_tokens
    assert len(query) <= max_tokens
    assert (ids[0], ids[-1], query[0], query[-1]) == (cls, sep, cls, sep)
    kept = (len(joy) * lengths[2]) if len(joy) * lengths[2] <= max_tokens // 2 else max_tokens // 2
    assert sum(i in joy for i in ids) == min(kept, 64)
    head = min(lengths[0], instruction_tokens, max_tokens // 4)
    assert ids.count(film) == min(head + lengths[1], max_tokens - 2 - min(kept, 64))
    assert query.count(film) == min(head + lengths[1], max_tokens - 2)
    both = [Demonstration("1", text, answer), Query("1", text)]
    whole = [lengths[1] + len(joy) * lengths[2], lengths[1]]
    left = [n - (len(made) - 2 - head) for n, made in zip(whole, (ids, query), strict=True)]
    assert cut.tokens_cut(both, instruction) == left
    assert cut.tokens_read([Query("1", text)], instruction) == [len(query)]


def test_the_answer_is_never_cut_by_a_long_input(encoder: BiEncoder) -> None:
    long = Demonstration("1", "the film was a joy " * 100, "it was great")
    (ids,) = encoder.demonstration_ids([long], INSTRUCTION)
    assert len(ids) == 64
    decoded = encoder.tokenizer.decode(ids)
    assert decoded.startswith("[CLS] sentiment of the sentence : the film was")
    assert decoded.endswith(" it was great [SEP]")
    other = Demonstration("1", long.input, "it was terrible")
    assert not np.allclose(*encoder.encode_demonstrations([long, other]), atol=1e-3)


def test_the_instruction_is_read_by_the_towers_that_are_asked_to(bert_folder: Path) -> None:
    queries, demonstrations = QUERIES[:1], [Demonstration("1", "the film", "great")]
    for q, d in [(True, True), (False, True), (False, False)]:
        encoder = build_encoder(str(bert_folder), query_instruction=q, demonstration_instruction=d, device="cpu")
        told = encoder.query_ids(queries, INSTRUCTION) != encoder.query_ids(queries)
        assert told is q
        assert (
            encoder.demonstration_ids(demonstrations, INSTRUCTION) != encoder.demonstration_ids(demonstrations)
        ) is d


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 120), st.floats(0, 2))
def test_batches_hold_every_text_once_and_bound_the_padded_tokens_and_the_padding(
    lengths: list[int], tokens: int, padding: float
) -> None:
    ids = [[0] * n for n in lengths]
    batches = list(length_batches(ids, tokens, padding))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[i] for i in batch) * len(batch)
        assert len(batch) == 1 or padded <= tokens
        assert len(batch) == 1 or padded <= (1 + padding) * sum(lengths[i] for i in batch)


def test_texts_of_like_length_pass_together() -> None:
    assert [len(b) for b in length_batches([[0] * n for n in (10, 40, 9, 11, 38, 10)], 1000, 0.2)] == [2, 4]


@pytest.mark.parametrize("towers", ["encoder", "fresh"])
def test_a_training_step_reads_both_sides_as_each_tower_would(request: pytest.FixtureRequest, towers: str) -> None:
    encoder: BiEncoder = request.getfixturevalue(towers).eval()  # shared, separate
    queries = encoder.query_ids(QUERIES, INSTRUCTION)
    demonstrations = encoder.demonstration_ids([Demonstration(str(i), t, "yes") for i, t in enumerate(TEXTS[::-1])])
    found = encoder.embed_both(queries, demonstrations)
    for ids, tower, vectors in zip(
        (queries, demonstrations), (encoder.query_tower, encoder.demonstration_tower), found, strict=True
    ):
        assert vectors.requires_grad
        torch.testing.assert_close(vectors, encoder.embed(ids, tower), atol=2e-6, rtol=0)


# towers and files


def test_shared_towers_are_one_network_and_separate_ones_start_alike(encoder: BiEncoder, bert_folder: Path) -> None:
    assert encoder.shared
    separate = build_encoder(str(bert_folder), shared=False, device="cpu")
    assert not separate.shared
    assert sum(1 for _ in separate.parameters()) == 2 * sum(1 for _ in encoder.parameters())
    query, demonstration = [Query("1", "the film")], [Demonstration("1", "the film", "")]
    np.testing.assert_array_equal(separate.encode_queries(query), separate.encode_demonstrations(demonstration))


def test_dropout_is_replaced(bert_folder: Path) -> None:
    encoder = build_encoder(str(bert_folder), dropout=0.25, device="cpu")
    assert {m.p for m in encoder.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}


@pytest.mark.parametrize("shared", [True, False])
def test_a_saved_encoder_gives_the_same_vectors_and_settings(
    fresh: BiEncoder, bert_folder: Path, tmp_path: Path, shared: bool
) -> None:
    settings = {"pooling": "cls", "unit_norm": False, "max_tokens": 20, "instruction_tokens": 3}
    made = BiEncoder(
        fresh.query_tower,
        fresh.query_tower if shared else fresh.demonstration_tower,
        fresh.tokenizer,
        query_instruction=False,
        read_outputs="options",
        **settings,  # type: ignore[arg-type]
    )
    made.save(tmp_path)
    loaded = load_encoder(tmp_path, device="cpu")
    assert loaded.settings == made.settings
    assert loaded.shared is shared
    assert loaded.fingerprint == made.fingerprint
    demonstrations = [Demonstration("1", "the film", "great")]
    np.testing.assert_array_equal(loaded.encode_queries(QUERIES, "x"), made.encode_queries(QUERIES, "x"))
    found = loaded.encode_demonstrations(demonstrations, "x")
    np.testing.assert_array_equal(found, made.encode_demonstrations(demonstrations, "x"))


@pytest.mark.parametrize("name", ["query/model.safetensors", "demonstration/model.safetensors", "query/tokenizer.json"])
def test_a_damaged_encoder_is_refused(fresh: BiEncoder, tmp_path: Path, name: str) -> None:
    fresh.save(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="the encoder's files differ from what was saved"):
        load_encoder(tmp_path)


def test_an_absent_or_half_written_encoder_is_refused(fresh: BiEncoder, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"encoder\.json: cannot be read"):
        load_encoder(tmp_path)
    fresh.save(tmp_path)
    stated = json.loads((tmp_path / "encoder.json").read_text())
    for broken in ({}, {**stated, "settings": None}, {**stated, "fingerprint": "0"}):
        (tmp_path / "encoder.json").write_text(json.dumps(broken))
        with pytest.raises(ArtifactError):
            load_encoder(tmp_path)


def test_a_full_disk_gives_an_artifact_error(fresh: BiEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fresh.demonstration_tower, "save_pretrained", full)
    with pytest.raises(ArtifactError, match="the encoder cannot be written"):
        fresh.save(tmp_path)


def test_the_fingerprint_changes_with_every_setting_and_with_the_weights(bert_folder: Path) -> None:
    changes: list[dict[str, object]] = [
        {},
        {"pooling": "cls"},
        {"unit_norm": False},
        {"max_tokens": 32},
        {"instruction_tokens": 3},
        {"query_instruction": False},
        {"demonstration_instruction": False},
        {"read_outputs": "options"},
        {"precision": "bfloat16"},
    ]
    encoders = [build_encoder(str(bert_folder), device="cpu", **c) for c in changes]  # type: ignore[arg-type]
    assert len({e.fingerprint for e in encoders}) == len(changes)
    assert build_encoder(str(bert_folder), device="cpu").fingerprint == encoders[0].fingerprint
    before = encoders[0].fingerprint
    with torch.no_grad():
        next(encoders[0].parameters())[0, 0] += 1
    encoders[0].refresh_fingerprint()
    assert encoders[0].fingerprint != before


def test_an_index_of_one_pooling_refuses_the_vectors_of_another(encoder: BiEncoder, bert_folder: Path) -> None:
    index = FlatIndex(encoder.dim, encoder.fingerprint)
    other = build_encoder(str(bert_folder), pooling="cls", device="cpu")
    with pytest.raises(FingerprintMismatch):
        index.add(np.arange(6), other.encode_queries(QUERIES), other.fingerprint)


def test_an_encoder_that_cannot_be_loaded_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.name: .*: cannot be loaded") as caught:
        build_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_cls_and_sep_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

    backend = AutoTokenizer.from_pretrained(bert_folder).backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]").save_pretrained(tmp_path)
    AutoModel.from_pretrained(bert_folder).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="its tokenizer has no CLS and SEP tokens; choose a BERT-like encoder"):
        build_encoder(str(tmp_path), device="cpu")


def test_dropout_and_length_fit_other_families_than_bert(tmp_path: Path, bert_folder: Path) -> None:
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    words = len(tokenizer)
    small = {"vocab_size": words, "max_position_embeddings": 40}
    models = {
        "distilbert": DistilBertModel(DistilBertConfig(**small, dim=16, hidden_dim=16, n_layers=1, n_heads=2)),
        "roberta": RobertaModel(
            RobertaConfig(**small, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        ),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        encoder = build_encoder(str(tmp_path / name), device="cpu", dropout=0.0, max_tokens=512)
        assert encoder.max_tokens == {"distilbert": 40, "roberta": 38}[name]
        encoder.train()
        long = [Query("q", "the film was a joy " * 40)]
        ids = encoder.query_ids(long)
        assert len(ids[0]) == encoder.max_tokens
        first, second = encoder.embed(ids, encoder.query_tower), encoder.embed(ids, encoder.query_tower)
        assert torch.equal(first, second)  # nothing is dropped
