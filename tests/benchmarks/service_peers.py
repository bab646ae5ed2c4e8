"""Other tools behind a plain FastAPI route, each in its usual way of use, to be compared with `udr serve`.

    python tests/benchmarks/service_peers.py NAME PORT POOL.jsonl ENCODER

langchain  SemanticSimilarityExampleSelector over its FAISS store
dspy       KNN over a training set
plain      sentence-transformers and a FAISS index
bare       the encoder alone, without a search: what no service can be quicker than
All take `{"query": …, "k": …}` at POST /retrieve. Needs: langchain-community, dspy, sentence-transformers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

K = 8  # the selectors of two peers fix it when they are made


class Body(BaseModel):
    query: str


def langchain(rows: list[dict[str, str]], model: SentenceTransformer) -> Callable[[str], list[Any]]:
    from langchain_community.vectorstores import FAISS
    from langchain_core.embeddings import Embeddings
    from langchain_core.example_selectors import SemanticSimilarityExampleSelector

    class Own(Embeddings):
        """As langchain-huggingface's class calls it."""

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return model.encode(texts, normalize_embeddings=True, show_progress_bar=False).tolist()

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    selector = SemanticSimilarityExampleSelector.from_examples(rows, Own(), FAISS, k=K, input_keys=["input"])
    return lambda query: selector.select_examples({"input": query})


def dspy(rows: list[dict[str, str]], model: SentenceTransformer) -> Callable[[str], list[Any]]:
    import dspy as package

    trainset = [package.Example(**row).with_inputs("input") for row in rows]
    vectorizer = package.Embedder(lambda texts: model.encode(texts, show_progress_bar=False))
    knn = package.KNN(k=K, trainset=trainset, vectorizer=vectorizer)
    return lambda query: [example.toDict() for example in knn(input=query)]


def plain(rows: list[dict[str, str]], model: SentenceTransformer) -> Callable[[str], list[Any]]:
    import faiss

    vectors = model.encode([r["input"] for r in rows], normalize_embeddings=True, show_progress_bar=False)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)

    def retrieve(query: str) -> list[Any]:
        _, places = index.search(model.encode([query], normalize_embeddings=True, show_progress_bar=False), K)
        return [rows[i] for i in places[0]]

    return retrieve


def bare(rows: list[dict[str, str]], model: SentenceTransformer) -> Callable[[str], list[Any]]:
    return lambda query: model.encode([query], normalize_embeddings=True, show_progress_bar=False)[0, :1].tolist()


def main(name: str, port: str, pool: str, encoder: str) -> None:
    rows = [
        {"id": str(i), "input": row["input"], "output": row["output"]}
        for i, row in enumerate(map(json.loads, Path(pool).read_text().splitlines()))
    ]
    make = {"langchain": langchain, "dspy": dspy, "plain": plain, "bare": bare}[name]
    retrieve = make(rows, SentenceTransformer(encoder, device="cpu"))
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/retrieve")
    def answer(body: Body) -> dict[str, Any]:
        return {"demonstrations": retrieve(body.query)}

    uvicorn.run(app, host="127.0.0.1", port=int(port), access_log=False, log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
