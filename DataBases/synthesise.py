"""Databases of faces of nobody: sampled from a statistical model of faces, labelled by the net that ships.

    python -m DataBases.synthesise 10k test10k

writes data_10k.bin, gender_10k.bin and the same of test10k into DataBases/, men and women in equal parts. The same name
and seed give the same files on the same machine; every name has faces of its own.
"""
import sys

import Console  # first: it silences TensorFlow's start

import dataclasses
import math
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import tensorflow as tf

import Dataset
import Models
import Training
from DataBases import faces

MODEL = Dataset.DATABASES / "faces.npz"
SHIPPED = Dataset.DATABASES.parent / "pretrained"
LABELLER = Dataset.DATABASES / "labeller"  # a small net that learned what the one that ships says of such faces
SURE = 0.8     # probability from which on its word is taken: of 10,000 labels 9,986 are then those of the other
CHUNK = 1000   # faces drawn at once
ASKED = 250    # faces that a net is asked about at once; all of a chunk would take 0.15 GB more


@dataclasses.dataclass(frozen=True)
class Options:
    names: Annotated[tuple, dict(help="databases to write: 10k has 10,000 faces; a size may have letters before it: "
                                 "test10k", positional=True, nargs="+", metavar="NAME")]
    out: Annotated[str, dict(help="folder to write to", metavar="DIR")] = str(Dataset.DATABASES)
    seed: Annotated[int, dict(help="of the faces", low=0)] = 0


def main(argv=None):
    given = Console.parse(Options, argv, __doc__)
    options = Options(**given)
    made = 0
    try:
        for made, line in enumerate(make(options.names, options.out, options.seed), 1):
            print(line, flush=True)
    except KeyboardInterrupt:
        missing = list(dict.fromkeys(options.names))[made:]
        others = [f"--{name} {Console.quoted(given[name])}" for name in ("out", "seed") if name in given]
        print(f"interrupted; go on with\n    {' '.join(['python -m DataBases.synthesise', *missing, *others])}")
        return 130
    return 0


def make(names, folder, seed=0, teacher=None):
    """Write databases of these names; yields a line about each. Raises UserError before any, for a name without a size
    or one that exists. seed, teacher  as Source takes them"""
    sizes = {name: size_of(name) for name in names}
    for name in sizes:
        must_be_new(name, folder)
    source = Source(seed, teacher=teacher)
    for name, count in sizes.items():
        yield write(source, name, count, folder)


def must_be_new(name, folder):
    """Raise UserError where there is a database of this name, or a part of one."""
    for path in filter(Path.exists, Dataset.database_files(Path(folder) / f"data_{name}.bin")):
        raise Dataset.UserError(f"{path}: exists already; move it away, or choose another name or another --out")


def with_databases(options):
    """The options of a script with train and test: where they name no train, the databases that DataBases/ holds, made
    first if there is none."""
    if options.train:
        return options
    train, test = Dataset.default_databases()
    if train is None:
        print(f"{Dataset.DATABASES} holds no faces to learn from: making some of nobody "
              "(python -m DataBases.synthesise)", flush=True)
        names = ["10k"] if options.test or test else ["test10k", "10k"]  # the training base last: it says all are there
        for line in make(names, Dataset.DATABASES):
            print(line, flush=True)
        train, test = Dataset.default_databases()
    return dataclasses.replace(options, train=(str(train),), test=options.test or test and str(test))


def size_of(name):
    """How many faces a database of this name holds: 10,000 for 10k or test10k. Raises UserError for another name."""
    match = re.fullmatch(r"[A-Za-z_]*(\d{1,12})(k?)", name)
    count = int(match[1]) * (1000 if match[2] else 1) if match else 0
    if count < 2:
        raise Dataset.UserError(f"{name}: expected a size of 2 or more, with or without letters before it, such as "
                                "10k, 500 or test10k")
    return count


class Source:
    """Labelled faces of nobody.

    seed     of all that is drawn; it becomes TensorFlow's too
    model    has sample(count, generator) -> [count, 2304] uint8; by default the faces.Model that ships
    teacher  a net that says man or woman of them; by default the net that ships, asked where the labeller is not sure
    """

    def __init__(self, seed, model=None, teacher=None):
        self.seed = seed
        Training.make_deterministic(seed)  # a GPU's operations too: the labels hang on them
        self.model = faces.load(MODEL) if model is None else model
        nets = [Models.load(path)[0] for path in (LABELLER, SHIPPED)] if teacher is None else [teacher]
        self.first, *self.others = map(_compiled, nets)

    def answer(self, grey):
        """Probabilities of man and woman, [N, 2] float32, of faces [N, 2304] uint8."""
        parts = np.array_split(grey, math.ceil(len(grey) / ASKED) or 1)
        says = np.concatenate([self.first(part) if len(part) else np.empty((0, 2), np.float32) for part in parts])
        for net in self.others:
            doubtful = says.max(1) < SURE
            if doubtful.any():  # a convolution of no faces fails
                says[doubtful] = net(grey[doubtful])
        return says

    def draw(self, name, count):
        """Yield (faces [n, 2304] uint8, labels [n, 2] float32), `count` in all, half of them women."""
        generator = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        missing = np.array([count - count // 2, count // 2])
        while missing.any():
            grey = self.model.sample(CHUNK, generator)
            label = self.answer(grey).argmax(1)
            number = np.where(label, np.cumsum(label), np.cumsum(1 - label))  # which man, which woman of the chunk
            kept = number <= missing[label]
            missing -= np.bincount(label[kept], minlength=2)
            yield grey[kept], np.eye(2, dtype="<f4")[label[kept]]


def _compiled(net):
    dtype = Training.compute_dtype("auto")
    return tf.function(lambda grey: tf.nn.softmax(tf.cast(net(tf.cast(Training.to_float(grey), dtype)), tf.float32)),
                       autograph=False, input_signature=[tf.TensorSpec([None, Dataset.DIM], tf.uint8)])


def write(source, name, count, folder):
    """Write a database, whole or not at all: a line that says so."""
    data, gender, _ = Dataset.database_files(Path(folder) / f"data_{name}.bin")
    place = Path(folder).absolute()
    disk = next(path for path in (place, *place.parents) if path.exists())
    needed, free = count * (Dataset.DIM + 8), shutil.disk_usage(disk).free
    if needed > free:
        raise Dataset.UserError(f"{data}: {count:,} faces need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
                                "choose fewer, or another --out")
    Dataset.make_folder(folder)
    data_part, gender_part = map(Dataset.part_of, (data, gender))
    progress = Console.Progress(count, unit="faces")
    done = 0
    try:
        with progress, open(data_part, "wb") as data_file, open(gender_part, "wb") as gender_file:
            for grey, label in source.draw(name, count):
                data_file.write(grey.tobytes())
                gender_file.write(label.tobytes())
                done += len(grey)
                progress.update(done, name)
        must_be_new(name, folder)  # one may have come since
        os.replace(gender_part, gender)  # labels first: a data file is never without its own
        try:
            os.replace(data_part, data)
        except BaseException:
            gender.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Dataset.UserError(f"{data}: cannot be written ({error.strerror}); make it elsewhere with "
                                "python -m DataBases.synthesise --out, and name it with --train") from None
    finally:
        for part in data_part, gender_part:
            part.unlink(missing_ok=True)
    return f"{data}: {count:,} faces of nobody, {progress.rate(count):.0f} a second"


if __name__ == "__main__":
    sys.exit(Console.run(main))
