"""Learn man/woman from 48x48 grey faces.

    python Main.py --train path/to/data_16k.bin --test path/to/data_test4k.bin
"""
import sys

import Console  # first: it silences TensorFlow's start

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import tensorflow as tf

import Dataset
import Layers
import Models
import Training
from DataBases import synthesise


@dataclasses.dataclass(frozen=True)
class Options(Training.Recipe):
    net: Annotated[str, dict(help="architecture", choices=list(Models.NETWORKS))] = "resnet"
    train: Annotated[tuple, dict(help="databases to learn from: names such as 10k (DataBases/data_10k.bin) or paths "
                                      "of data_*.bin; by default the largest in DataBases/, "
                                      "made first if there is none",
                                 nargs="+", metavar="DB")] = ()
    test: Annotated[str | None, dict(help="database to measure on, never learned from; without --train "
                                       "the largest test base in DataBases/", metavar="DB")] = None
    nb_block: Annotated[int | None, dict(help="blocks (stages) of the net", low=1, high=7)] = None
    nb_conv: Annotated[int | None, dict(help="convolutions (residual blocks) a block", low=1)] = None
    nb_filter: Annotated[int | None, dict(help="filters a convolution", low=1)] = None
    output_dim: Annotated[int | None, dict(help="depth after a block of densenet (default: 32)", low=1)] = None
    activation: Annotated[str | None, dict(help="of hidden layers", choices=list(Layers.ACTIVATIONS))] = None
    dropout: Annotated[float | None, dict(help="share of values set to zero when training", low=0, high=1)] = None
    batchnorm: Annotated[bool | None, dict(help="normalise each layer over the batch")] = None
    filter_size: Annotated[tuple, dict(help="kernel width, or height x width, of the convolutions in turn: 5, or "
                                       "3x1 1x3; of densenet and resnet one for all", nargs="+", metavar="N")] = ()
    initializer: Annotated[str | None, dict(help="first weights", choices=list(Layers.INITIALIZERS))] = None
    find_lr: Annotated[bool, dict(help="learning-rate range test: print the loss while the rate rises, and a rate to "
                                  "choose; learn nothing else")] = False
    out: Annotated[str | None, dict(help="folder of the checkpoint; by default checkpoints/<net>-<time>",
                                    metavar="DIR")] = None
    logs: Annotated[str, dict(help="folder of TensorBoard's summaries, or none", metavar="DIR")] = "logs"
    resume: Annotated[bool, dict(help="go on with the interrupted training of --out, by default the newest")] = False


NET_OPTIONS = ("nb_block", "nb_conv", "nb_filter", "output_dim", "activation", "dropout", "batchnorm", "filter_size",
               "initializer")
NEEDS = {"teaching": "teacher", "freeze": "start", "adversarial_steps": "adversarial",
         "adversarial_rise": "adversarial"}  # what does nothing without another option
HEADER = "   step  epoch    loss    train  valid.     test  images/s     left"


def main(argv=None):
    given = Console.parse(Options, argv, __doc__)
    options, out = resumed(given) if given.get("resume") else started(given)
    Training.make_deterministic(options.seed)
    train, test = databases(options)
    learned, validation = Training.split(train, options.validation, options.seed)
    net = first_net(options, out, learned)
    Training.learning_variables(net, options.freeze)  # refuses too many before anything is written
    if options.start:
        options = dataclasses.replace(options, net=type(net).__name__)
    teacher = Console.Committee([Models.load(path)[0] for path in options.teacher]) if options.teacher else None
    for known in filter(None, () if options.resume else (options.start, *options.teacher)):
        Console.tell_known(known, options.train, options.validation, options.seed)
    if options.find_lr:
        return range_test(net, learned, options, teacher)
    if not (options.out or options.resume):
        out = Console.claim(out)
    logs = None if options.logs == "none" else Console.logs_of(out, options.logs, options.resume)
    description = json.dumps(json.loads(net.description) | {"training": dataclasses.asdict(options)}
                             | ({"logs": logs.name} if logs else {}), indent=1)
    trainer = Training.Trainer(net, learned, validation, test, options, out, logs, description, teacher)
    if options.resume:
        trainer.resume()
    print(f"{options.net}, {trainer.result()['parameters']:,} parameters; {learned.nbdata:,} faces to learn, "
          f"{validation.nbdata:,} to validate, {test.nbdata if test else 0:,} to test")
    print(f"{options.epochs} epoch{'s' if options.epochs > 1 else ''} of {trainer.steps_per_epoch} steps, "
          f"{trainer.dtype.name}")
    print(f"checkpoints in {out}" + (f", summaries in {logs}" if logs else ""))
    try:
        report(trainer, options)
    except KeyboardInterrupt:
        saved = trainer.saved_step()
        print(f"\ninterrupted at step {int(trainer.step)} of {trainer.total}, " + (
            "before anything was saved: begin again" if saved is None else
            f"and saved{'' if saved == trainer.step else f' as at step {saved}'}; go on with\n"
            f"    python Main.py --resume --out {Console.quoted(out)}"))
        return 130
    result = trainer.result()
    if trainer.step < trainer.total:
        print(f"stopped early: the least loss was after step {result['best_step']} (--patience {options.patience})")
    name = "test" if test else "validation"
    print(f"{name} accuracy {100 * result[name]['accuracy']:.2f} %  "
          f"({result[name]['correct']} of {result[name]['faces']})")
    return 0


def started(given):
    """Options and folder of a new training."""
    options = Options(**given)
    Console.must_stand_together(given, NEEDS)
    if options.find_lr and (own := [name for name in ("learning_rate", "schedule", "warm_up") if name in given]):
        raise Dataset.UserError(f"--find-lr tries rates of its own; leave {Console.flag(own[0])} out")
    kind = f"from-{Path(options.start).name}" if options.start else options.net
    out = Path(options.out or f"checkpoints/{kind}-{time.strftime('%Y%m%d-%H%M%S')}")
    Training.must_be_found(out)
    if any(out.rglob("*.index")):
        begun = "; go on with it with --resume, or" if Training.can_resume(out) else " that cannot go on;"
        raise Dataset.UserError(f"{out} holds a training already{begun} choose another folder with --out")
    if options.start and (own := [name for name in ("net", "lsuv", *NET_OPTIONS) if name in given]):
        raise Dataset.UserError(f"--from goes on with the net of {options.start}; leave {Console.flag(own[0])} out")
    if options.lsuv and "initializer" in given:
        raise Dataset.UserError("--lsuv draws the first weights its own way; leave --initializer out")
    return synthesise.with_databases(options), out


def resumed(given):
    """Options and folder of the training to go on with; only --epochs and --logs may differ from what it began with."""
    if "out" in given:
        out = Path(given["out"])
    else:
        out = Console.newest_training()
    saved = out / "last" / Models.DESCRIPTION
    try:
        options = Options(**json.loads(saved.read_text(encoding="utf-8"))["training"])
    except (OSError, ValueError, KeyError, TypeError):
        raise Dataset.UserError(f"{saved}: missing, or not written by Main.py; nothing to go on with there") from None
    for name, value in given.items():
        before = getattr(options, name)
        before = list(before) if isinstance(before, tuple) else before
        if name not in ("resume", "out", "epochs", "logs") and value != before:
            raise Dataset.UserError(f"--resume goes on with {Console.flag(name)} {before}, not {value}; leave it out")
    changed = {name: given[name] for name in ("epochs", "logs") if name in given}
    return dataclasses.replace(options, resume=True, **changed), out


def first_net(options, out, learned):
    """The net to begin with."""
    if options.start:
        return Models.load(out / "last" if options.resume else options.start)[0]
    kernels = [Console.parse_kernel(text) for text in options.filter_size] or None
    if kernels and options.net in ("densenet", "resnet"):
        if len(kernels) > 1:
            raise Dataset.UserError(f"--filter-size {' '.join(options.filter_size)}: a {options.net} has one for all")
        kernels = kernels[0]
    net = Models.build(options.net, **{name: getattr(options, name) for name in NET_OPTIONS} | {"filter_size": kernels})
    if options.lsuv:
        Training.whiten(net, tf.constant(learned.data[:256]), options.seed)
    return net


def range_test(net, learned, options, teacher):
    tests = list(Console.watched(Training.find_rate(net, learned, options, teacher), Training.RANGE_STEPS))
    best = min(tests, key=lambda test: test[1])
    print("learning rate    loss")
    for rate, loss in tests[::5]:
        print(f"{rate:13.1e}  {loss:6.3f}  {'#' * min(round(30 * loss), 55)}")
    print(f"least loss at {best[0]:.1e}; choose about a tenth of that: --learning-rate {best[0] / 10:.1e}")
    return 0


def databases(options):
    """The DataSets to learn from and to test on (None without --test)."""
    learned = Dataset.open_databases(options.train)
    if options.balance:
        Dataset.balance_groups(learned, options.balance)
    if options.traits:
        Dataset.read_traits(learned)
    measured = Dataset.open_database(options.test) if options.test else None
    learned, left_out = Dataset.set_apart(learned, measured)
    if not learned:
        raise Dataset.UserError(f"{options.test} holds all faces of --train; a test base holds faces never learned")
    Console.tell_left_out(left_out, "--test or another --train holds")
    return Dataset.DataSet.join(list(learned.values())), measured


def report(trainer, options):
    progress = Console.Progress(trainer.total, int(trainer.step), "images", trainer.faces_per_step)
    progress.line(HEADER + ("   attacked" if options.adversarial else ""))
    for row in trainer.run():
        if "epoch" not in row:
            progress.update(row["step"], f"loss {row['loss']:.3f}")
            continue
        shares = [f"{100 * row[f'{name}_accuracy']:6.2f} %" if f"{name}_accuracy" in row else "       -"
                  for name in ("train", "validation", "test")]
        attacked = f"{100 * row['attacked_accuracy']:8.2f} %" if options.adversarial else ""
        progress.line(f"{row['step']:7d} {row['epoch']:6.1f} {row['loss']:7.4f} {' '.join(shares)} "
                      f"{row['images_per_second']:9.0f} {progress.left(row['step']):>8}{attacked}")
    progress.clear()


if __name__ == "__main__":
    sys.exit(Console.run(main))
