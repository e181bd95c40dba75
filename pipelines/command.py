"""What all commands share: the application, common options, one step on a run, and how a command ends.

Progress goes to standard error; `--json` ends standard output with a line of JSON. Exit codes: 0 done, 1 failed, 2 a
mistake in the command or recipe, 3 more of the input is unreadable than the recipe allows.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Curate training corpora at the speed of columns, with a ledger that balances "
    "and a trainer that measures the result.",
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
Workers = Annotated[int, typer.Option(help="Worker processes on this machine; 1 runs in this process.", min=1)]
Folder = Annotated[str | None, typer.Option("--run", help="Run folder; runs/NAME of the recipe by default.")]
Options = Annotated[list[str] | None, typer.Argument(help="After --: options of Beam, as --runner=DataflowRunner.")]
Input = Annotated[str, typer.Argument(metavar="INPUT", help="A run folder, or a quoted glob of Parquet shards.")]
Named = list[str] | None


def finished(checked: Any, result: dict[str, Any], summary: Any) -> dict[str, Any]:
    """Show what was done; exit code 3 if more shards were unreadable than the recipe allows, or all."""
    summary.show(result)
    share = result["shards"]["quarantined_share"]
    if share > checked.quarantine or not result["shards"]["read"]:
        result["exit_code"] = 3
        text = f"{share:.1%} of the shards could not be read whole; the recipe allows {checked.quarantine:.1%}"
        typer.echo(text if result["shards"]["read"] else "no shard can be read; nothing was done", err=True)
    return result


def one_step(
    data: str, step: str, parts: dict[str, Any], folder: str | None, options: list[str] | None, workers: int
) -> dict[str, Any]:
    from pipelines import summary
    from pipelines.run import run as run_recipe
    from pipelines.steps_alone import recipe_for, recipe_kept

    recipe, run = recipe_for(data, parts, folder)
    with recipe_kept(run):
        result = run_recipe(recipe, run, options or [], workers, step)
    return finished(recipe, result, summary)


def guarded(work: Callable[[], dict[str, Any]], as_json: bool, show: bool = False) -> None:
    """Run a command; mistakes and known failures become one message, everything else is a bug: exit 1 and traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    started = time.perf_counter()
    try:
        result = work()
    except Exception as error:
        from pipelines.ledger import LedgerError

        code = _code(error)
        if not (isinstance(error, OSError | LedgerError) or code == 2 or hasattr(error, "exit_code")):
            raise
        typer.echo(f"error: {error}", err=True)
        if as_json:
            typer.echo(json.dumps({"error": str(error), "exit_code": code}))
        raise typer.Exit(code) from None
    code = result.get("exit_code", 0)
    if as_json:
        typer.echo(
            json.dumps({"exit_code": code, "seconds": round(time.perf_counter() - started, 3), **result}, default=str)
        )
    elif show:
        for name, value in result.items():
            typer.echo(f"{name}: {value}")
    raise typer.Exit(code)


def _code(error: Exception) -> int:
    """The error's own code where it has one, 2 for other mistakes of the user, 1 for the rest."""
    from pipelines.recipe import RecipeError
    from sql.expressions import ExpressionError

    if hasattr(error, "exit_code"):
        return int(error.exit_code)
    if isinstance(error, FileNotFoundError):  # with a number, from the system: a file of the run itself is gone
        return 1 if error.errno else 2
    mistakes = (RecipeError, ExpressionError, FileExistsError, PermissionError, NotADirectoryError)
    return 2 if isinstance(error, mistakes) else 1
