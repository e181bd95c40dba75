"""Kill a run again and again, then let it finish: the same mixture, and nothing computed twice that had been committed.

    python benchmarks/kill.py [CORPUS] [--kills 10] [--workers 2] [--seed 0] [--folder FOLDER] [--json]

CORPUS holds one folder of shards per source; a small sample corpus is made if none is given. First the recipe (rules,
exact dedupe, a fitted tokenizer, a quantile, a mixture) runs undisturbed. Then it runs in another folder and is killed
with SIGKILL whenever the folder holds one of `--kills` random numbers of committed files, by turns the launcher alone
and the launcher with its workers. Each time the next command goes on from what is there.

    digest_equal   the mixture's digest is that of the undisturbed run
    rewritten      committed files that a later run wrote again (by inode and time of change); there must be none
    temporaries    files ending in .tmp after the last run; there must be none

The last line of standard output is one JSON object; the exit code is 1 if any of these is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
COMMITTED = ("index", "scores", "signatures", "dedupe", "samples", "thresholds", "models", "selection", "mixtures")
Files = dict[str, tuple[int, int]]  # path -> inode, time of change


def recipe(corpus: Path) -> dict[str, Any]:
    return {
        "name": "kill",
        "sources": {p.name: f"{p}/*.parquet" for p in sorted(corpus.iterdir()) if any(p.glob("*.parquet"))},
        "score": {"fineweb": {}},
        "dedupe": {"exact": {}},
        "fit": {"tokenizer": {"method": "tokenizer", "vocabulary": 1000, "megabytes": 0.5}},
        "select": {
            "unique": "exact.keep",
            "ends": "fineweb.line_punct_ratio >= quantile(fineweb.line_punct_ratio, 0.3)",
        },
        "tokenizer": "fit:tokenizer",
        "mix": {"curated": {"weights": "natural"}},
    }


def start(recipe_file: Path, folder: Path, workers: int) -> subprocess.Popen[bytes]:
    """`corpusmill run`, in a process group of its own."""
    command = [sys.executable, "-m", "pipelines.cli", "run", str(recipe_file), "--run", str(folder), "--until", "mix"]
    log = (folder.parent / f"{folder.name}.log").open("ab")
    with log:
        return subprocess.Popen(
            [*command, f"--workers={workers}"], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )


def finish(recipe_file: Path, folder: Path, workers: int) -> tuple[str, float]:
    """Run to the end; the mixture's digest and the seconds it took."""
    began = time.perf_counter()
    if start(recipe_file, folder, workers).wait():
        raise SystemExit((folder.parent / f"{folder.name}.log").read_text()[-3000:])
    manifest = json.loads((folder / "mixtures/curated/manifest.json").read_text())
    return manifest["digest"], time.perf_counter() - began


def committed(folder: Path) -> Files:
    """Every file of the run that is whole, but for manifests, which each run writes last."""
    found = {}
    for path in (p for part in COMMITTED for p in (folder / part).rglob("*")):
        try:
            if path.is_file() and path.suffix != ".tmp" and path.name != "manifest.json":
                found[str(path.relative_to(folder))] = (path.stat().st_ino, path.stat().st_mtime_ns)
        except FileNotFoundError:  # renamed meanwhile
            continue
    return found


def kill_at(count: int, process: subprocess.Popen[bytes], folder: Path, alone: bool) -> None:
    """SIGKILL as soon as the folder holds `count` files: to the launcher alone, or with its workers."""
    while process.poll() is None and len(committed(folder)) < count:
        time.sleep(0.002)
    if alone:
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def whole_models(files: Files) -> Files:
    """A model counts as committed once its card beside the folder is there; files of unfinished ones are made again."""
    made = {path.removesuffix(".json") for path in files if path.count("/") == 1 and path.endswith(".json")}
    return {
        p: s
        for p, s in files.items()
        if not p.startswith("models/") or "/".join(p.split("/")[:2]).removesuffix(".json") in made
    }


def torment(
    recipe_file: Path, folder: Path, moments: list[int], workers: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Kill at each of the moments, on top of what the last run left; returns the kills and the files rewritten."""
    kills, rewritten = [], []
    before: Files = {}
    for number, moment in enumerate(moments):
        process = start(recipe_file, folder, workers)
        kill_at(moment, process, folder, alone=number % 2 == 0)
        time.sleep(1.0)  # workers of a dead launcher end within half a second
        after = committed(folder)
        rewritten += [path for path, state in whole_models(before).items() if after.get(path) != state]
        temporaries = sum(1 for _ in folder.rglob("*.tmp"))
        kills.append(
            {"at": moment, "committed": len(after), "temporaries": temporaries, "returncode": process.returncode}
        )
        before = after
    finish(recipe_file, folder, workers)
    after = committed(folder)
    return kills, rewritten + [path for path, state in whole_models(before).items() if after.get(path) != state]


def run(corpus: Path, folder: Path, kills: int, workers: int, seed: int) -> dict[str, Any]:
    recipe_file = folder / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(recipe(corpus)))
    expected, seconds = finish(recipe_file, folder / "undisturbed", workers)
    total = len(committed(folder / "undisturbed"))
    moments = sorted(random.Random(seed).choices(range(1, total), k=kills))
    done, rewritten = torment(recipe_file, folder / "killed", moments, workers)
    manifest = json.loads((folder / "killed/mixtures/curated/manifest.json").read_text())
    temporaries = [str(p) for p in (folder / "killed").rglob("*.tmp")]
    return {
        "kills": sum(kill["returncode"] == -signal.SIGKILL for kill in done),
        "digest_equal": manifest["digest"] == expected,
        "files": total,
        "files_after_kills": len(committed(folder / "killed")),
        "rewritten": rewritten,
        "temporaries": temporaries,
        "workers": workers,
        "seconds_undisturbed": round(seconds, 2),
        "moments": done,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, nargs="?", help="folder with one folder of shards per source")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where the runs go; a temporary folder if not given")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="corpusmill-kill-", dir=given.folder) as temporary:
        corpus = given.corpus
        if corpus is None:
            sys.path.insert(0, str(ROOT))
            from pipelines.sample_corpus import build

            corpus = Path(temporary) / "corpus"
            build(corpus, 5)
        result = run(corpus.resolve(), Path(temporary), given.kills, given.workers, given.seed)
    if not given.json:
        print(json.dumps(result, indent=1))
    print(json.dumps(result))
    sound = result["digest_equal"] and not result["rewritten"] and not result["temporaries"]
    sys.exit(0 if sound and result["kills"] == given.kills else 1)


if __name__ == "__main__":
    main()
