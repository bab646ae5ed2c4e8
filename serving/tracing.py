"""Spans of requests and SQL to an OpenTelemetry collector; an optional extra."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from udr.errors import MissingDependencyError

__all__ = ["Tracing"]


class Tracing:
    """Sends a span of each request, and of each SQL statement within it.

    Args:
        app: the application, before it starts.
        collector: where OTLP over HTTP is understood, as http://localhost:4318.

    Raises:
        MissingDependencyError: the extra is not installed.
    """

    def __init__(self, app: FastAPI, collector: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
            from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise MissingDependencyError("opentelemetry", "traces") from None
        self._provider = TracerProvider(resource=Resource.create({"service.name": "udr"}))
        exporter = OTLPSpanExporter(f"{collector.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._sql = SQLAlchemyInstrumentor()
        FastAPIInstrumentor.instrument_app(app, tracer_provider=self._provider, excluded_urls="livez,readyz,metrics")

    def watch(self, engine: Any) -> None:
        """Send spans of this database's statements too."""
        # it knows of SQLAlchemy 2.0 only, and the events that it listens to are the same in 2.1
        self._sql.instrument(engine=engine, tracer_provider=self._provider, skip_dep_check=True)

    def close(self) -> None:
        """Send what waits."""
        self._sql.uninstrument()
        self._provider.shutdown()
