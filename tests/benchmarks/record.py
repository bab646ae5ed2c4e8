"""What every benchmark's JSON says beside its figures: when, where, and with what."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "faiss-cpu", "bm25s", "numpy")


def environment() -> dict[str, Any]:
    """Machine, versions and commit."""
    import torch

    command = [shutil.which("git") or "true", "rev-parse", "--short", "HEAD"]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": subprocess.run(
            command, cwd=RESULTS.parent, capture_output=True, text=True, check=False
        ).stdout.strip(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Write results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **figures}, indent=1, ensure_ascii=False) + "\n")
    return path
