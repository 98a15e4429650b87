"""Say what a trained net sees: man or woman, with its probability.

    python Main_inference.py photo.jpg                         each picture in a line: its largest face
    python Main_inference.py photo.jpg --all                   each face in a line
    python Main_inference.py path/to/data_test4k.bin           accuracy on a database
"""
import sys

import Console  # first: it silences TensorFlow's start

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import tensorflow as tf

import Dataset
import Models
from DataBases import photo

PICTURE = "inference.png"


@dataclasses.dataclass(frozen=True)
class Options:
    path: Annotated[tuple, dict(help="pictures (png, jpg, ..., or .raw of 48x48 bytes), or data_*.bin databases",
                                positional=True, nargs="+", metavar="PATH")]
    checkpoint: Annotated[tuple, dict(help="folder or prefix, or several: the mean of their answers; by default the "
                                           "newest training under checkpoints/, else pretrained/", nargs="+",
                                      metavar="DIR_OR_PREFIX")] = ()
    views: Annotated[tuple, dict(help="ask also about the mirror image, and about four crops, and average", nargs="+",
                                 choices=["flip", "crops"])] = ()
    all: Annotated[bool, dict(help="every face of a photo, the largest first; only the largest by default")] = False
    out: Annotated[str, dict(help="folder of the picture inference.png", metavar="DIR")] = "."
    json: Annotated[bool, dict(help="one JSON document on stdout, nothing else")] = False
    show: Annotated[bool, dict(help="open the picture in a window where there is a display")] = True


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    Console.must_keep(options.path, [Path(options.out) / PICTURE], "--out")
    inputs = read_all(options.path, options.all)
    nets = [Models.load(path)[0] for path in options.checkpoint or [Console.default_checkpoint()]]
    net = Console.Committee(nets, options.views) if options.views or len(nets) > 1 else nets[0]
    answers = [measure(path, item, net) if isinstance(item, Dataset.DataSet) else ask(path, item, net)
               for path, item in inputs]
    shown = show(inputs, answers, options)
    if options.json:
        print(json.dumps(answers, indent=1))
        return 0
    for (path, item), answer in zip(inputs, answers):
        if isinstance(item, photo.Face) and item.note:
            print(f"{path}: {item.note}", file=sys.stderr)
        print("\n".join(table(answer)) if "faces" in answer else f"{path}: {Console.verdict(answer)}")
    if shown:
        print(shown, file=sys.stderr)
    return 0


def show(inputs, answers, options):
    """Save the picture of all faces, if any: the line that says so, or why not in a folder that nobody named."""
    tiles = [tile for (_, item), answer in zip(inputs, answers) if isinstance(item, photo.Face)
             for tile in tiles_of(item, answer)]
    try:
        return tiles and Console.present(Console.strip(*zip(*tiles)), Path(options.out) / PICTURE,
                                         options.show and not options.json)
    except Dataset.UserError as error:
        if options.out != Options.out:
            raise
        return str(error)


def read_all(paths, every):
    """What each path holds: a list of (path, DataSet) and (path, photo.Face)."""
    inputs, progress = [], Console.Progress(len(paths), unit="pictures")
    with progress:
        for number, path in enumerate(paths, 1):
            items = [Dataset.open_database(path)] if Path(path).suffix == ".bin" else photo.read(path, every)
            inputs += [(path, item) for item in items]
            progress.update(number)
    return inputs


def ask(path, face, net):
    """What the net says of a face, and where in the photo it was found."""
    return {"path": path} | Console.ask(net, face.grey) | ({"box": list(face.box)} if face.box else {})


def tiles_of(face, answer):
    """The pictures, with their captions, that show a face: before it the photo with the box, where it is of a photo."""
    shown = [(face.view, face.note)] if face.view else []
    return [*shown, (face.grey, Console.verdict(answer))]


def measure(path, dataset, net):
    """Accuracy on a database, on each class, and on each group where a meta_*.csv lies beside it."""
    ask, progress, done = tf.function(lambda x: net(x)), Console.Progress(dataset.nbdata, unit="faces"), 0

    def counted(x):
        nonlocal done
        logits, done = ask(x).numpy(), done + len(x)
        progress.update(done)
        return logits
    with progress:
        says = dataset.answers(counted)
    is_ = dataset.label.argmax(1)
    right = says == is_
    confusion = [[int(np.sum((is_ == i) & (says == j))) for j in (0, 1)] for i in (0, 1)]
    present = [i for i in (0, 1) if np.any(is_ == i)]
    answer = {"path": path, "faces": dataset.nbdata, "correct": int(right.sum()), "accuracy": float(right.mean()),
              "balanced_accuracy": float(np.mean([right[is_ == i].mean() for i in present])), "confusion": confusion}
    meta = Dataset.database_files(path)[2]
    if meta.exists():
        answer["groups"] = {
            title: {name: {"faces": int(group.sum()), "correct": int(right[group].sum()),
                           "accuracy": float(right[group].mean())} for name, group in groups.items() if group.any()}
            for title, groups in Dataset.read_groups(meta, dataset.nbdata).items()}
    return answer


def table(answer):
    """The lines that report a database."""
    lines = [f"{answer['path']}: accuracy {100 * answer['accuracy']:.2f} %  "
             f"({answer['correct']} of {answer['faces']}), balanced {100 * answer['balanced_accuracy']:.2f} %",
             f"{'as annotated':14}{'said man':>10}{'said woman':>12}{'accuracy':>12}"]
    for number, (label, said) in enumerate(zip(Dataset.LABELS, answer["confusion"])):
        share = f"{100 * said[number] / sum(said):10.2f} %" if any(said) else f"{'-':>12}"
        lines.append(f"{label:14}{said[0]:10}{said[1]:12}{share}")
    for title, groups in answer.get("groups", {}).items():
        lines.append(f"{title:14}{'faces':>10}{'accuracy':>12}")
        lines += [f"{name:14}{group['faces']:10}{100 * group['accuracy']:10.2f} %" for name, group in groups.items()]
    return lines


if __name__ == "__main__":
    sys.exit(Console.run(main))
