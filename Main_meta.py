"""Meta-parameter analysis: one training for each cell of a grid, and the table of what each reached.

    python Main_meta.py --net convnet --train path/to/data_16k.bin --test path/to/data_test4k.bin \\
           --nb-conv 1 2 4 7 --nb-filter 4 16 --batchnorm no yes --epochs 4

Needs Optuna (pip install ".[sweep]"). Interrupted, the same command goes on; started twice, also on another machine
that shares --out or --storage, the trainings are shared out.
"""
import sys

import Console  # first: it silences TensorFlow's start

import csv
import dataclasses
import inspect
import io
import itertools
import json
from pathlib import Path
from typing import Annotated

import Dataset
import Main
import Models
import Sweep
from DataBases import synthesise

PARAMETERS = ("batch_size", "batchnorm", "dropout", "nb_filter", "nb_block", "nb_conv")
SWEPT = {field.name for field in dataclasses.fields(Main.Options) if not isinstance(field.default, tuple)} - {
    "test", "net", "epochs", "seed", "out", "logs", "resume", "find_lr", "start", "freeze", "teaching"}
LEGEND = "accuracy in % on {}; (in brackets) did not learn; KO too big for the memory; - not run"


@dataclasses.dataclass(frozen=True)
class Options:
    net: Annotated[str, dict(help="architecture", choices=list(Models.NETWORKS))] = "densenet"
    train: Annotated[tuple, dict(help="databases to learn from, as Main.py takes them", nargs="+", metavar="DB")] = ()
    test: Annotated[str | None, dict(help="database to measure on, as Main.py takes it; with --train alone the table "
                                       "shows the validation accuracy", metavar="DB")] = None
    batch_size: Annotated[tuple[int, ...], dict(help="values of the grid", nargs="+", low=1)] = ()
    batchnorm: Annotated[tuple, dict(help="values of the grid", nargs="+", choices=["no", "yes"])] = ()
    dropout: Annotated[tuple[float, ...], dict(help="values of the grid", nargs="+", low=0, high=1)] = ()
    nb_filter: Annotated[tuple[int, ...], dict(help="values of the grid", nargs="+", low=1)] = ()
    nb_block: Annotated[tuple[int, ...], dict(help="values of the grid", nargs="+", low=1, high=7)] = ()
    nb_conv: Annotated[tuple[int, ...], dict(help="values of the grid", nargs="+", low=1)] = ()
    grid: Annotated[str | None, dict(help='JSON file of the grid: {"nb_conv": [1, 2], "optimizer": ["sgd", "adam"]}; '
                                     "options of Main.py with one value, null to leave one out; flags given beside "
                                     "it replace its lists",
                                     metavar="FILE")] = None
    rows: Annotated[tuple, dict(help="parameters whose values are rows of the table",
                                nargs="+", metavar="NAME")] = ("nb_block", "nb_conv")
    epochs: Annotated[int, dict(help="of each training", low=1)] = 5
    seed: Annotated[int, dict(help="of each training, and of the search", low=0)] = 0
    search: Annotated[str, dict(help="every cell, cells at random, or those that TPE (Bergstra et al. 2011) expects "
                                "most of, by validation accuracy", choices=["grid", "random", "tpe"])] = "grid"
    trials: Annotated[int | None, dict(help="the most trainings in all; random and TPE: 20 by default", low=1)] = None
    processes: Annotated[int, dict(help="trainings at once on this machine", low=1)] = 1
    out: Annotated[str, dict(help="folder of the trainings; may be shared by machines",
                             metavar="DIR")] = "checkpoints/meta"
    storage: Annotated[str | None, dict(help="database that keeps the state instead of a file in --out, e.g. "
                                        "sqlite:///meta.db, postgresql://...", metavar="URL")] = None
    logs: Annotated[str, dict(help="folder of TensorBoard's summaries (HPARAMS), or none", metavar="DIR")] = "logs/meta"
    format: Annotated[str, dict(help="of the table", choices=["text", "markdown", "csv"])] = "text"
    run: Annotated[bool, dict(help="train; --no-run prints the table as it stands")] = True


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    if options.run or Dataset.default_databases()[0]:  # as Main.py chooses: the table names what it is measured on
        options = synthesise.with_databases(options)
    grid = read_grid(options)
    if unknown := set(options.rows) - {*grid, *PARAMETERS}:
        raise Dataset.UserError(f"--rows {min(unknown)}: not in the grid, which has {', '.join(grid)}")
    for name in filter(None, (*options.train, options.test)):
        Dataset.open_database(name)
    must_be_trainable(options, grid)
    sweep = Sweep.Sweep(options, grid)
    if options.run:
        progress = Console.Progress(sweep.total, sweep.done(), "trainings")
        aside = None if options.format == "text" else sys.stderr  # stdout is the table's, to be sent into a file
        progress.line(f"{sweep.total} trainings, in {options.out}", aside)
        try:
            for done, line in sweep.run():
                progress.line(line, aside)
                progress.update(done)
        except KeyboardInterrupt:
            progress.clear()
            print("interrupted, and saved; the same command goes on", file=aside)
            return 130
        progress.clear()
    print(FORMATS[options.format](sweep.results(), grid, options), end="")
    return 0


def read_grid(options):
    """{option of Main.py: list of its values}."""
    grid = {}
    if options.grid:
        Dataset.file_size(options.grid)
        try:
            grid = json.loads(Path(options.grid).read_text(encoding="utf-8"))
            if not grid or not all(isinstance(values, list) and set(values) for values in grid.values()):
                raise ValueError
        except (ValueError, AttributeError, TypeError):
            raise Dataset.UserError(f'{options.grid}: expected JSON such as {{"nb_conv": [1, 2, 4]}}') from None
        grid = {name: [{True: "yes", False: "no"}[value] if isinstance(value, bool) else value for value in values]
                for name, values in grid.items()}
        if unknown := set(grid) - SWEPT:
            raise Dataset.UserError(f"{options.grid}: {min(unknown)} is no option of Main.py that a grid can hold")
    given = {name: list(getattr(options, name)) for name in PARAMETERS if getattr(options, name)}
    known = inspect.signature(Models.NETWORKS[options.net][0]).parameters
    depths = {"nb_conv": [1, 2, 4]} if "nb_conv" in known else {}
    grid = grid | given or depths | {"dropout": [0.0, 0.3]}
    return {name: list(dict.fromkeys(grid[name])) for name in sorted(grid, key=lambda name: name in options.rows)}


def must_be_trainable(options, grid):
    """Raise UserError where Main.py would refuse a cell of the grid. Looks at each value once: cells may be many."""
    given = {name: [Console.parse(Main.Options, Sweep.arguments(options, {name: value}), Main.__doc__)[name]
                    for value in choices if value is not None] for name, choices in grid.items()}
    everywhere = {name: None not in grid[name] and all(found) for name, found in given.items() if found}
    Console.must_stand_together(everywhere, Main.NEEDS)
    small = {name: 1 if name.startswith("nb_") else given[name][0] for name in Main.NET_OPTIONS if given.get(name)}
    Models.build(options.net, **small)  # knows which options a net has


def mark(result):
    """What a cell of the table shows of a result of the sweep, or of None."""
    if result is None:
        return "-"
    if result["accuracy"] is None:
        return "KO"
    percent = f"{100 * result['accuracy']:.1f}"
    return percent if result["learned"] else f"({percent})"


def layout(results, grid, options):
    """(row names, column names, rows of the table: the values of the row's parameters, then the marks)."""
    rows = [name for name in dict.fromkeys(options.rows) if name in grid]
    columns = [name for name in grid if name not in rows]
    found = {tuple(result["parameters"][name] for name in (*rows, *columns)): result for result in results}
    lines = [[*map(str, row), *(mark(found.get(row + column)) for column in values(grid, columns))]
             for row in values(grid, rows)]
    return rows, columns, lines


def values(grid, names):
    return list(itertools.product(*(grid[name] for name in names)))


def text(results, grid, options):
    """The course's layout: a line of header for each parameter of the columns, a value only where it changes."""
    rows, columns, lines = layout(results, grid, options)
    header, before = [], ()
    for column in values(grid, columns):
        changed = next((i for i, pair in enumerate(zip(column, before)) if pair[0] != pair[1]), 0)
        header.append(["" if before and i < changed else str(value) for i, value in enumerate(column)])
        before = column
    head = [[*[""] * (len(rows) - 1), name, *(cells[i] for cells in header)] for i, name in enumerate(columns)]
    sheet = [*head, *([[*rows, *[""] * len(header)], *lines] if rows else (["", *line] for line in lines))]
    widths = [max(map(len, column)) + 2 for column in zip(*sheet)]
    body = "\n".join("".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip() for line in sheet)
    return f"{options.net}, {options.epochs} epochs, {legend(options)}\n{body}\n"


def legend(options):
    return LEGEND.format(Path(options.test).stem.removeprefix("data_") if options.test else "the validation part")


def markdown(results, grid, options):
    rows, columns, lines = layout(results, grid, options)
    heads = [*rows, *("<br>".join(f"{name} {value}" for name, value in zip(columns, column))
                      for column in values(grid, columns))]
    sheet = [heads, ["---:"] * len(heads), *lines]
    body = "\n".join(f"| {' | '.join(line)} |" for line in sheet)
    return f"{options.net}, {options.epochs} epochs, {legend(options)}\n\n{body}\n"


def table_of_values(results, grid, options):
    """CSV, a line for each training."""
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(["net", "epochs", "seed", *grid, "accuracy", "validation_accuracy", "mark"])
    for result in results:
        writer.writerow([options.net, options.epochs, options.seed, *(result["parameters"][name] for name in grid),
                         result["accuracy"], result["validation_accuracy"], mark(result)])
    return sheet.getvalue()


FORMATS = {"text": text, "markdown": markdown, "csv": table_of_values}


if __name__ == "__main__":
    sys.exit(Console.run(main))
