"""Runs all benchmarks, or the named ones: ``python -m benchmarks [name ...]``. Exits with 1 if one is not ok."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NOT_BENCHMARKS = ("__init__", "__main__", "report", "serve_peers", "train_peers")
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NOT_BENCHMARKS)


def main(names: list[str]) -> int:
    """Runs the scripts one after the other, each in its own process, and prints a summary line of each at the end."""
    if unknown := sorted(set(names) - set(SCRIPTS)):
        print(f"there is no benchmark {', '.join(unknown)}; the benchmarks are {', '.join(SCRIPTS)}", file=sys.stderr)
        return 2
    summaries = []
    for name in names or SCRIPTS:
        process = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True)
        print(process.stdout, flush=True)
        last_line = process.stdout.strip().splitlines()[-1] if process.stdout.strip() else "{}"
        result = json.loads(last_line) if last_line.startswith("{") else {}
        summaries.append(
            {"name": name, "ratio": result.get("ratio"), "ok": process.returncode == 0 and result.get("ok") is True}
        )
    for summary in summaries:
        print(json.dumps(summary))
    return 0 if all(summary["ok"] for summary in summaries) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
