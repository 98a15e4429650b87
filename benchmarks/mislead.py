"""How small the noise is that misleads a net, norm by norm, judged by the saved files.

    python benchmarks/mislead.py --checkpoint checkpoints/a --database path/to/data_test4k.bin
    python benchmarks/mislead.py --checkpoint pretrained --database path/to/data_test4k.bin --survive jpeg shift light

Misleads the first faces that the net calls right, writes each result as .raw, reads it back, asks the net anew and
prints a line a norm: files that fool, medians over those of L2, L1, Linf in grey levels (and L2 of 0..1 images),
pixels changed, and seconds a face, all faces in one batch. With --survive each search runs twice, as ever and such
that its files outlive these changes, and the mean over all faces is added of how often a file fools after each.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import Console

import dataclasses
import tempfile
import time
from typing import Annotated

import numpy as np
import tensorflow as tf

import Attacks
import Dataset
import Models

RUNS = {"l2": ("l2", None), "l1": ("l1", None), "linf": ("linf", None), "none": ("none", None),
        "l2, box 24x24": ("l2", (12, 12, 24, 24))}


@dataclasses.dataclass(frozen=True)
class Options:
    checkpoint: Annotated[str, dict(help="folder or prefix of the net", required=True)] = ""
    database: Annotated[str, dict(help="data_*.bin of the faces", required=True)] = ""
    faces: Annotated[int, dict(help="how many faces, the first that the net calls right", low=1)] = 200
    steps: Annotated[int, dict(help="passes forward and backward", low=1)] = 300
    penalty: Annotated[tuple, dict(help="rows of the table", nargs="+", choices=list(RUNS))] = tuple(RUNS)
    survive: Annotated[tuple, dict(help="changes that the files must outlive", nargs="+",
                                   choices=list(Attacks.CHANGES))] = ()


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    net, _ = Models.load(options.checkpoint)
    dataset = Dataset.open_database(options.database)
    annotated = dataset.label.argmax(1)
    right = np.flatnonzero(dataset.answers(tf.function(lambda x: net(x))) == annotated)[:options.faces]
    faces, wrong = dataset.data.grey(right), 1 - annotated[right]
    print(f"{len(right)} faces, {options.steps} steps")
    survived = "".join(f" after {change} |" for change in options.survive)
    print(f"| penalty | files that fool | L2 | L1 | Linf | pixels | L2 of 0..1 |{survived} s a face |")
    print("|---" * (8 + len(options.survive)) + "|")
    for name in options.penalty:
        for survive in ((), options.survive) if options.survive else ((),):
            row = run(net, faces, wrong, name, options.steps, survive, options.survive)
            print(f"| {name}{', to outlive them' if survive else ''} | {' | '.join(row)} |", flush=True)


def run(net, faces, wrong, name, steps, survive, changes):
    """Mislead about all faces: the cells of the table's row; `survive` are those of `changes` that the search knows."""
    started = time.monotonic()
    found = search(net, faces, wrong, name, steps, survive)
    seconds = (time.monotonic() - started) / len(faces)
    fools, saved = read_back(net, found.modified, wrong)
    if not fools.any():
        return [f"0 of {len(faces)}", *"-" * (5 + len(changes)), f"{seconds:.3f}"]
    median = {norm: np.median(values[fools]) for norm, values in Attacks.distances(faces, saved).items()}
    shares = Attacks.survival(net, saved, wrong, changes)
    return [f"{fools.sum()} of {len(faces)}", f"{median['l2']:.1f}", f"{median['l1']:.0f}", f"{median['linf']:.0f}",
            f"{median['pixels_changed']:.0f}", f"{median['l2'] / 255:.3f}",
            *(f"{100 * share.mean():.1f} %" for share in shares.values()), f"{seconds:.3f}"]


def search(net, faces, wrong, name, steps, survive=()):
    """Main_adversarial.py's search, as the row of RUNS says, to its end: its Result."""
    norm, box = RUNS[name]
    attack = Attacks.build("dx", net, faces, wrong, box and Attacks.box_mask(box), survive, norm=norm, steps=steps)
    for _ in attack.run():
        pass
    return attack.result()


def read_back(net, modified, wrong):
    """([N] bool: the file is called wrong, [N, 2304] uint8: what the files hold), one file and one question a face."""
    saved = np.empty_like(modified)
    with tempfile.TemporaryDirectory() as folder:
        for number, face in enumerate(modified):
            path = Path(folder) / f"adv_{number}_mod.raw"
            Dataset.write_whole(path, face.tobytes())
            saved[number] = Dataset.read_face(path)[0].reshape(-1)
    says = [int(tf.argmax(net(tf.constant(Dataset.to_float(face[None]))), axis=1)[0]) for face in saved]
    return np.array(says) == wrong, saved


if __name__ == "__main__":
    sys.exit(Console.run(main))
