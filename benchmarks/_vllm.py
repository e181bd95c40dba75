"""Where the benchmarks that run vLLM find it: in an environment of its own, outside of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = Path.home() / ".cache" / "corpusmill" / "benchmark-generation" / "environment"
SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR"}


def in_environment(given: str | None, arguments: list[str]) -> str:
    """The last line that Python in the environment prints, given these arguments; without one, it is made first."""
    folder = Path(given).resolve() if given else ENVIRONMENT
    if not given:
        made = [str(Path(__file__).parents[1] / "tests" / "vllm_environment.sh"), "--only-make"]
        own = {**os.environ, "VENV": str(folder), "PYTHON": sys.executable}
        subprocess.run(made, check=True, stdout=sys.stderr, env=own)
    command = [str(folder / "bin" / "python"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**SETTINGS, **os.environ}, check=True)
    return done.stdout.splitlines()[-1]
