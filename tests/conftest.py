"""Tiny models made on the spot, shared by the tests of a session; nothing is downloaded."""

from __future__ import annotations

import os
import string
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are quicker on one thread, and the sums repeat
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a library that asks a hub for a name would wait for an answer
os.environ.setdefault("UDR_HOSTS", "testserver")  # the name that starlette's test client asks for

import pytest
from hypothesis import settings

from udr.tasks.spec import TaskSpec, Template
from udr.types import Demonstration

settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

SENTENCES = [
    "the film was a joy from the first scene to the last",
    "a dull plot and a worse cast made the evening long",
    "shares of the bank fell after the market closed on friday",
    "the striker scored twice and the club won the cup",
    "engineers built a faster chip for the new telescope",
    "It was great . It was terrible .",
    "Topic: Sports. Topic: Business. Topic: World.",
    "Sentiment of the sentence: great, good, okay, bad, terrible",
    "answer the question: yes or no? 0 1 2 3 4 5 6 7 8 9",
    "one fish\ttwo fish\nred fish\tblue fish\n",
]


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    return SENTENCES


@pytest.fixture
def sentiment() -> TaskSpec:
    """A task of the paper's form: two labels, a verbaliser, words around the answer."""
    return TaskSpec(
        name="toy_sentiment",
        family="sentiment",
        kind="classification",
        metric="accuracy",
        instruction="Sentiment of the sentence:",
        template=Template(answer="It was %s ."),
        verbaliser={"0": "terrible", "1": "great"},
    )


@pytest.fixture
def copying() -> TaskSpec:
    """A generation task without any words of its own."""
    return TaskSpec(name="toy_copy", family="toy", kind="generation", metric="exact_match", max_new_tokens=8)


@pytest.fixture
def choosing() -> TaskSpec:
    """A task whose rows bring their own choices."""
    return TaskSpec(
        name="toy_choice", family="toy", kind="multichoice", metric="accuracy", template=Template(answer="Answer: %s")
    )


@pytest.fixture
def reviews() -> list[Demonstration]:
    rows = [
        ("a", "the film was a joy", "1"),
        ("b", "the film was a bore", "0"),
        ("c", "a joy from first to last", "1"),
        ("d", "the plot was a bore and the cast was worse", "0"),
        ("e", "engineers built a joy of a telescope", "1"),
        ("f", "shares of the bank fell", "0"),
    ]
    return [Demonstration(*row) for row in rows]


def _tokenizer(kind: str) -> Any:
    """A tokenizer in the manner of the model's family, trained on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = {"gpt2": [], "llama": ["<unk>", "<s>", "</s>"], "gemma3": ["<pad>", "<eos>", "<bos>"]}[kind]
    tokenizer = Tokenizer(models.BPE())
    if kind == "gemma3":  # spaces become marks, none is put in front
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    elif kind == "llama":  # a space is invented in front of a text
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    letters = sorted(set("".join(SENTENCES)) | set(string.ascii_letters + "▁"))
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "gpt2" else letters
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if kind == "gpt2":  # its mark comes last: id 0 is a letter, and there is no padding
        tokenizer.add_special_tokens(["<|endoftext|>"])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=10**6
        )
    bos, eos = ("<bos>", "<eos>") if kind == "gemma3" else ("<s>", "</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    more = {"pad_token": "<pad>"} if kind == "gemma3" else {"unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, model_max_length=10**6, **more
    )


def _model(kind: str, vocabulary: int) -> Any:
    """Two layers of random weights, large enough that answers depend on every token of the context."""
    import torch
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig

    torch.manual_seed(7)
    common: dict[str, Any] = {"vocab_size": vocabulary, "initializer_range": 0.3, "tie_word_embeddings": False}
    config: Any
    if kind == "gpt2":
        config = GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            bos_token_id=vocabulary - 1,
            eos_token_id=vocabulary - 1,
            **common,
        )
    else:
        common |= {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 256,
        }
        if kind == "llama":
            config = LlamaConfig(bos_token_id=1, eos_token_id=2, pad_token_id=None, **common)
        else:
            config = Gemma3TextConfig(
                layer_types=["sliding_attention", "full_attention"],
                sliding_window=8,
                query_pre_attn_scalar=8,
                bos_token_id=2,
                eos_token_id=1,
                pad_token_id=0,
                **common,
            )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()


@pytest.fixture(scope="session")
def make_lm() -> Callable[..., Any]:
    """Make a tiny CausalLM of one kind (gemma3, llama, gpt2); models and tokenizers are made once."""
    from udr.scoring.causal_lm import CausalLM

    parts: dict[str, tuple[Any, Any]] = {}

    def make(kind: str, **settings: Any) -> Any:
        if kind not in parts:
            tokenizer = _tokenizer(kind)
            parts[kind] = _model(kind, len(tokenizer)), tokenizer
        return CausalLM(*parts[kind], f"tiny-{kind}", **settings)

    return make


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder of two layers as sentence-transformers saves it (mean pooling)."""
    return _sentence_encoder(tmp_path_factory.mktemp("bert"), "mean")


@pytest.fixture(scope="session")
def cls_bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same kind of encoder, pooled at CLS."""
    return _sentence_encoder(tmp_path_factory.mktemp("bert_cls"), "cls")


def _sentence_encoder(folder: Path, pooling: str) -> Path:
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789.,:!?")
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    fast.save_pretrained(folder / "plain")
    BertModel(config).save_pretrained(folder / "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # sentence-transformers' own
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Pooling, Transformer

        tower = Transformer(str(folder / "plain"))
        model = SentenceTransformer(modules=[tower, Pooling(32, pooling_mode=pooling)], device="cpu")
        model.save(str(folder / "sentence"))
    return folder / "sentence"
