"""Logs as JSON lines: the service's own, and those of the libraries it is made of."""

from __future__ import annotations

import logging
from typing import Any

import structlog

__all__ = ["LIBRARIES", "JSONLines", "configure_logs"]

_SHARED: list[Any] = [structlog.processors.TimeStamper(fmt="iso"), structlog.processors.format_exc_info]
_RENDER = structlog.processors.JSONRenderer(default=str)


class JSONLines(logging.Formatter):
    """What a library logs, as the service's own lines are."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        event: dict[str, Any] = {"event": record.getMessage(), "logger": record.name, "level": record.levelname.lower()}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        for process in _SHARED:
            event = process(None, "", event)
        return str(_RENDER(None, "", event))


LIBRARIES: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "serving.logs.JSONLines"}},
    "handlers": {"lines": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["lines"], "level": "WARNING"},
    "loggers": {"uvicorn": {"level": "INFO"}},
}
"""For `logging.config`."""


def configure_logs() -> None:
    """Have the service's own lines be JSON, in this process."""
    structlog.configure(
        processors=[structlog.processors.add_log_level, *_SHARED, _RENDER],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
