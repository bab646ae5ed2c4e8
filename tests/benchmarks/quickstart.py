"""How long the quickstart takes, how much memory it needs, and its table.

    python tests/benchmarks/quickstart.py OUT

Runs `udr quickstart --out OUT` in a process of its own; OUT must not exist, for a resumed run would look fast.
Result: results/quickstart.json.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import yaml
from record import write_result


def main() -> None:
    out = Path(sys.argv[1])
    if out.exists():
        sys.exit(f"{out} exists; give a new folder")
    started = time.monotonic()
    subprocess.run([str(Path(sys.executable).parent / "udr"), "quickstart", "--out", str(out)], check=True)
    seconds = round(time.monotonic() - started)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # kilobytes of the largest child
    config = yaml.safe_load((out / "run" / "config.yaml").read_text())
    queries = {part: config[part]["queries"] for part in ("mining", "evaluation")}  # a task (and round)
    table = json.loads((out / "run" / "evaluation" / "table.json").read_text())
    print(
        write_result(
            "quickstart", {"seconds": seconds, "peak_memory_gb": round(peak / 1e6, 2), "queries": queries, **table}
        )
    )


if __name__ == "__main__":
    main()
