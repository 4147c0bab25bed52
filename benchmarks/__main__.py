"""Run every benchmark that a laptop can: `python -m benchmarks`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Each benchmark in a process of its own, so that none sees another's memory."""
    scripts = sorted(Path(__file__).parent.glob("bench_*.py"))
    return max(
        subprocess.run([sys.executable, "-m", f"benchmarks.{script.stem}"], check=False).returncode
        for script in scripts
    )


if __name__ == "__main__":
    sys.exit(main())
