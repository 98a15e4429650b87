"""What each ingredient of the recipe does: accuracy of nets that differ from the base in one thing, over seeds.

    python benchmarks/ablations.py --database path/to/data_16k.bin --others path/to/data_aaf.bin path/to/data_scut.bin

The last fifth of the database is held out and measured on; the nets learn from the rest, with a validation part of
their own inside it. `others` are measured too and decide nothing. Every training stays in --out: an interrupted run
goes on, a finished one is read. Prints a Markdown table: mean and standard deviation over the seeds, in percent.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import Console

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import statistics
from typing import Annotated

import numpy as np
import tensorflow as tf

import Dataset
import Main
import Models
import Training
from DataBases import build

CHANGES = Training.Recipe.augment
BASE = ["--net", "resnet", "--nb-filter", "16"]
PLAIN = ["--net", "convnet", "--nb-filter", "32", "--initializer", "he"]


def augment(*more, without=()):
    return ["--augment", *[change for change in (*CHANGES, *more) if change not in without]]


ROWS = {  # name: options that differ from BASE
    "base": [],
    "no augmentation": ["--augment", "none"],
    "flips alone": ["--augment", "flip"],
    "without flips": augment(without=["flip"]),
    "without rotation, scale, shift": augment(without=["rotation", "scale", "shift"]),
    "without contrast, brightness": augment(without=["contrast", "brightness"]),
    "with sharpness": augment("sharpness"),
    "with cutout": augment("cutout"),
    "with mixup": augment("mixup"),
    "dropout 0.1": ["--dropout", "0.1"],
    "no weight decay": ["--weight-decay", "0"],
    "L1 1e-5": ["--l1", "1e-5"],
    "no label smoothing": ["--label-smoothing", "0"],
    "generalized cross entropy": ["--loss", "generalized"],
    "bootstrapped labels": ["--loss", "bootstrap"],
    "first weights: course's 0.1": ["--initializer", "normal"],
    "first weights: Xavier": ["--initializer", "xavier"],
    "first weights: LSUV": ["--lsuv"],
    "SGD": ["--optimizer", "sgd"],
    "Nesterov momentum": ["--optimizer", "nesterov"],
    "RMSprop": ["--optimizer", "rmsprop"],
    "Adagrad": ["--optimizer", "adagrad"],
    "no warm-up": ["--warm-up", "0"],
    "constant rate": ["--schedule", "constant"],
    "step schedule": ["--schedule", "step"],
    "1/t schedule": ["--schedule", "inverse"],
    "gradients clipped at 1": ["--clip-norm", "1"],
    "no averaging of weights": ["--averaging", "0"],
    "early stopping, patience 3": ["--patience", "3"],
    "balanced by age and sex": ["--balance", "age"],
    "age and ethnicity told too": ["--traits", "0.2"],
    "distilled from three base nets": ["--teacher", *(f"{{out}}/base-{seed}" for seed in range(3))],
    "transfer from pretraining": ["--from", "{out}/pretraining-0"],
    "transfer, 5 layers frozen": ["--from", "{out}/pretraining-0", "--freeze", "5"],
    "plain ConvNet, 1 a block": PLAIN,
    "plain ConvNet, 1, BatchNorm": [*PLAIN, "--batchnorm"],
    "plain ConvNet, 3, BatchNorm": [*PLAIN, "--batchnorm", "--nb-conv", "3"],
    "the same, factorised 3x1 1x3": [*PLAIN, "--batchnorm", "--nb-conv", "6", "--filter-size", "3x1", "1x3"],
    "the same, 1x1 between": [*PLAIN, "--batchnorm", "--nb-conv", "3", "--filter-size", "3", "1", "3"],
    "DenseNet, BatchNorm": ["--net", "densenet", "--nb-filter", "16", "--initializer", "he", "--batchnorm"],
    "ResNet, 2 blocks a stage": ["--nb-conv", "2"],
    "ResNet without BatchNorm": ["--no-batchnorm"],
}
ACCURACY = "accuracy.json"
OWN_SESSION = getattr(os, "setsid", None)  # on Windows, the console's Ctrl-C reaches every process by itself
UNTRAINED = {"base, averaged over the flip": ["flip"], "base, over flip and crops": ["flip", "crops"]}


@dataclasses.dataclass(frozen=True)
class Options:
    database: Annotated[str, dict(help="data_*.bin to learn from", required=True)] = ""
    others: Annotated[tuple, dict(help="further data_*.bin, measured only", nargs="+", metavar="DB")] = ()
    pretraining: Annotated[str | None, dict(help="data_*.bin that the transferred net learned before",
                                            metavar="DB")] = None
    epochs: Annotated[int, dict(help="of each training", low=1)] = 8
    seeds: Annotated[int, dict(help="trainings of each row", low=1)] = 3
    rows: Annotated[tuple, dict(help="only these rows", nargs="+", choices=[*ROWS, *UNTRAINED], metavar="ROW")] = ()
    processes: Annotated[int, dict(help="trainings at once", low=1)] = 2
    out: Annotated[str, dict(help="folder of the trainings", metavar="DIR")] = "checkpoints/ablations"


def rows_of(options):
    """The rows to measure. UserError for one asked for that lacks what it needs; where none is, such a one is named."""
    meta = Dataset.database_files(options.database)[2]
    absent = {} if options.pretraining else {"--from": "--pretraining DB"}
    absent |= {} if meta.exists() else dict.fromkeys(("--balance", "--traits"), f"{meta}, of ages and ethnicities")
    needs = {row: absent[option] for row, arguments in ROWS.items() for option in arguments if option in absent}
    for row, need in needs.items():
        if row in options.rows:
            raise Dataset.UserError(f"--rows {row!r}: needs {need}")
        if not options.rows:
            print(f"left out: {row}, which needs {need}", file=sys.stderr)
    return [row for row in (*ROWS, *UNTRAINED) if row not in needs and (not options.rows or row in options.rows)]


def hold_out(options):
    """Write the parts that are learned from and measured on, once. UserError where --out is of other settings."""
    data, gender, meta = Dataset.database_files(options.database)
    faces, labels = Dataset.read_faces(data), Dataset.read_labels(gender)
    first = len(faces) - len(faces) // 5
    pairs = np.concatenate([*build.near_duplicates(faces)])  # no photograph is learned that is measured
    apart = np.setdiff1d(np.arange(first), pairs[pairs[:, 1] >= first, 0])
    settings = dataclasses.asdict(options) | {"rows": (), "seeds": 0, "processes": 0, "out": "", "learned": len(apart)}
    settings, known = json.dumps(settings, indent=1), Path(options.out) / "settings.json"
    if any(Path(options.out).glob("*-*/")) and not (known.is_file() and known.read_text(encoding="utf-8") == settings):
        raise Dataset.UserError(f"{options.out}: holds trainings of other databases or epochs; choose another --out")
    Dataset.write_whole(known, settings.encode())
    lines = meta.read_text(encoding="utf-8").splitlines() if meta.exists() else []
    for name, rows in ("learn", apart), ("held", np.arange(first, len(faces))):
        part = Path(options.out) / f"data_{name}.bin"
        Dataset.write_whole(part, faces[rows].tobytes())
        Dataset.write_whole(part.with_name(f"gender_{name}.bin"), labels[rows].tobytes())
        if lines:
            content = "\n".join([lines[0], *(lines[1 + row] for row in rows)]) + "\n"
            Dataset.write_whole(part.with_name(f"meta_{name}.csv"), content.encode())


def folder_of(options, row, seed):
    return Path(options.out) / f"{row}-{seed}".replace(" ", "_").replace("/", "_").replace(",", "").replace(":", "")


def learn(options, row, seed):
    """One training, unless it lies there whole."""
    out = folder_of(options, row, seed)
    if (out / "done").exists():
        return
    arguments = [*BASE, *(text.format(out=options.out) for text in ROWS.get(row, []))]
    if "--from" in arguments:
        arguments = arguments[len(BASE):]
    database = options.pretraining if row == "pretraining" else f"{options.out}/data_learn.bin"
    common = ["--train", database, "--test", f"{options.out}/data_held.bin", "--seed", str(seed), "--logs", "none",
              "--epochs", str(options.epochs)]
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "log", "w") as log, contextlib.redirect_stdout(log):
        code = Main.main([*(["--resume"] if Training.can_resume(out) else [*arguments, *common]), "--out", str(out)])
    if code:
        raise KeyboardInterrupt
    Dataset.write_whole(out / "done", b"")


def measure(options, nets, views=()):
    """Accuracy of a committee on the held-out faces and on the others, in percent."""
    net = Console.Committee(nets, views)
    ask = tf.function(lambda x: net(x), input_signature=[tf.TensorSpec([None, Dataset.DIM])])
    bases = [f"{options.out}/data_held.bin", *options.others]
    return [100 * Dataset.open_database(base, 500).mean_accuracy(ask) for base in bases]


def work(job):
    """Learn one training (options, row, seed), and keep its accuracies."""
    learn(*job)
    options, out = job[0], folder_of(*job)
    Dataset.write_whole(out / ACCURACY, json.dumps(measure(options, [Models.load(out)[0]])).encode())


def in_process(job):
    """The accuracies of a training, `work` of a process of its own, whose end gives back what TensorFlow took; Ctrl-C
    reaches it through `in_processes` alone. Raises UserError where the process is lost."""
    saved = folder_of(*job) / ACCURACY
    if not saved.exists():
        try:
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), OWN_SESSION) as pool:
                pool.submit(work, job).result()
        except concurrent.futures.BrokenExecutor:
            raise Dataset.UserError("the process of a training was killed, most often for want of memory; choose "
                                    "fewer --processes, and the same command goes on") from None
    return json.loads(saved.read_text(encoding="utf-8"))


def in_processes(options, jobs):
    """The accuracies of trainings, in the jobs' order. Where one fails, or at Ctrl-C, the others save and end."""
    with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
        try:
            yield from pool.map(in_process, jobs)
        finally:
            for child in multiprocessing.active_children() if OWN_SESSION else []:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGINT)


def print_cells(cells):
    print(f"| {' | '.join(cells)} |", flush=True)


def print_row(row, results):
    columns = []
    for values in zip(*results):
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        columns.append(f"{statistics.mean(values):.2f}{spread}")
    print_cells([row, *columns])


def print_table(options, rows):
    heads = ["changed", "held out", *(Path(other).stem.removeprefix("data_") for other in options.others)]
    print_cells(heads)
    print_cells(["---"] * len(heads))
    if any("--from" in ROWS.get(row, []) for row in rows):
        list(in_processes(options, [(options, "pretraining", 0)]))
    teachers = 3 if any("--teacher" in ROWS.get(row, []) for row in rows) else 0
    list(in_processes(options, [(options, "base", seed) for seed in range(max(options.seeds, teachers))]))
    trained = [row for row in rows if row in ROWS]
    results = in_processes(options, [(options, row, seed) for row in trained for seed in range(options.seeds)])
    for row in trained:
        print_row(row, list(itertools.islice(results, options.seeds)))
    nets = [Models.load(folder_of(options, "base", seed))[0] for seed in range(options.seeds)]
    for row in rows:
        if row in UNTRAINED:
            print_row(row, [measure(options, [net], UNTRAINED[row]) for net in nets])
    print_row(f"{len(nets)} base nets together", [measure(options, nets)])


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    rows = rows_of(options)
    hold_out(options)
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(max(1, os.cpu_count() // options.processes))
    try:
        print_table(options, rows)
    except KeyboardInterrupt:
        print("interrupted, and saved; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(Console.run(main))
