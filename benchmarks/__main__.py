"""Runs every benchmark, or those named: ``python -m benchmarks [name ...]``. Fails where one of them is not ok."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NO_SCRIPTS = ("__init__", "__main__", "report", "serve_peers", "train_peers")
SCRIPTS = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NO_SCRIPTS)


def main(names: list[str]) -> int:
    """Runs the scripts one after the other, each in a process of its own, and prints their last lines together."""
    if unknown := sorted(set(names) - set(SCRIPTS)):
        print(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(SCRIPTS)}", file=sys.stderr)
        return 2
    lines = []
    for name in names or SCRIPTS:
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "{}"
        result = json.loads(last) if last.startswith("{") else {}
        lines.append(
            {"name": name, "ratio": result.get("ratio"), "ok": done.returncode == 0 and result.get("ok") is True}
        )
    for line in lines:
        print(json.dumps(line))
    return 0 if all(line["ok"] for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
