"""Turn a public face set into databases.

    python -m DataBases.build utkface path/to/UTKFace
    python -m DataBases.build folder path/to/mine --names 2500 test500 --out DataBases

utkface, fairface, celeba, lfw, or folder (man/ and woman/); DataBases/README.md tells where the authors offer each set,
on which terms, and how it lies on disk. Bases whose name begins with `test` share no face, no near-duplicate and no
person with the others of the same command. An interrupted command, given again, goes on.
"""
import sys

import Console  # first: it silences TensorFlow's start

import concurrent.futures
import dataclasses
import hashlib
import io
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
import zipfile
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import tensorflow as tf

import Dataset
from DataBases import photo, sources

DEFAULT_NAMES = ("1k", "10k", "100k", "test10k")
CHUNK = 32  # pictures between two saves, in one process
FEW = 8  # chunks that are read before further processes have started
FINE = 24  # pixels a side at which two faces are compared
NEAR = 0.95  # correlation from which two faces are near-duplicates


@dataclasses.dataclass(frozen=True)
class Options:
    source: Annotated[str, dict(help="how the set lies on disk", choices=list(sources.SOURCES), positional=True)]
    folder: Annotated[str, dict(help="folder of the set", positional=True, metavar="FOLDER")]
    names: Annotated[tuple, dict(help="bases to write: a size such as 1k or 2500, test before it for a test base; by "
                                      f"default as many of {' '.join(DEFAULT_NAMES)} as fit", nargs="+",
                                 metavar="NAME")] = ()
    out: Annotated[str, dict(help="folder of the databases", metavar="DIR")] = str(Dataset.DATABASES)
    seed: Annotated[int, dict(help="of the choice and order of the faces", low=0)] = 0


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    started = time.monotonic()
    for name in options.names:
        size_of(name)
    listing = sources.SOURCES[options.source](options.folder)
    names = options.names or names_that_fit(len(listing.pictures))
    check_size(options, names, [picture.label for picture in listing.pictures], skipped_of(listing))
    key = fingerprint(listing)
    work = working_folder(options, key)
    plan = repr((key, options.names, options.seed))
    refuse_existing(work, plan, names, options.out)
    begin(work, key)
    try:
        faces, reasons = read_faces(listing.pictures, work)
        pictures = [picture for picture, reason in zip(listing.pictures, reasons, strict=True) if not reason]
        labels = np.array([picture.label for picture in pictures], int)
        names = options.names or names_that_fit(len(pictures))
        check_size(options, names, labels, skipped_of(listing, reasons))
        group, pairs = groups(near_duplicates(faces), [picture.person for picture in pictures])
        bases = choose(names, labels, group, options.seed)
        contents = {name: files(options.out, name, faces[rows], labels[rows], [pictures[row] for row in rows])
                    for name, rows in bases.items()}
        refuse_other(contents, options.out)
        Dataset.write_whole(work / "plan", plan.encode())
        for base in contents.values():
            Dataset.write_all(base)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    shutil.rmtree(work, ignore_errors=True)  # the same command may run beside
    print("\n".join(report(options, listing, reasons, pairs, group, bases, labels)))
    print(f"{Console.duration(time.monotonic() - started)} in all")
    return 0


# Names and sizes

def size_of(name):
    """The number of faces that a base's name says: 1k, test10k, 2500."""
    match = re.fullmatch(r"(?:test)?([1-9]\d{0,9})(k?)", name)
    if not match:
        raise Dataset.UserError(f"--names {name}: expected a size such as 1k, 10k or 2500, or test10k for a test base")
    return int(match[1]) * (1000 if match[2] else 1)


def is_test(name):
    return name.startswith("test")


def sides(names):
    """The faces that the largest test base and the largest training base take: (int, int)."""
    return (max((size_of(name) for name in names if is_test(name) is side), default=0) for side in (True, False))


def names_that_fit(count):
    """As many of DEFAULT_NAMES as `count` faces fill, rather with the test base than without; maybe none."""
    def fit(names, room):
        return tuple(name for name in names if size_of(name) <= room)
    *training, test = DEFAULT_NAMES
    without, with_test = fit(training, count), fit(training, count - size_of(test))
    return (*with_test, test) if with_test and len(with_test) + 1 >= len(without) else without


def skipped_of(listing, reasons=()):
    """{reason: names of the pictures without a face}; reasons  of each picture of the listing, as read_faces gives."""
    skipped = {reason: list(names) for reason, names in listing.skipped.items()}
    for picture, reason in zip(listing.pictures, reasons):
        if reason:
            skipped.setdefault(reason, []).append(picture.path.name)
    return skipped


def check_size(options, names, labels, skipped):
    count, women = len(labels), int(np.sum(labels))
    test, train = sides(names)
    if not names or test + train > count:
        wanted = f"{' '.join(names)} take {test + train}" if names else f"too few for {' '.join(DEFAULT_NAMES)}"
        less = f"; name smaller ones, such as --names {count - count // 5} test{count // 5}" if count >= 5 else ""
        lost = "".join(f"; skipped {len(names)}: {reason} ({names[0]}{', ...' if names[1:] else ''})"
                       for reason, names in sorted(skipped.items()))
        raise Dataset.UserError(f"{options.folder}: {count} usable pictures ({count - women} men, {women} women), "
                                f"{wanted}{less}{lost}")


# From pictures to faces, on all cores, by parts that outlast an interruption

def working_folder(options, key):
    """Where the parts of this set lie, as its fingerprint `key` tells it, and of no other built at the same time."""
    place = zlib.crc32(os.fsencode(Path(options.folder).resolve()))
    return Path(options.out) / f".build_{place:08x}_{key[:8]}"


def fingerprint(listing):
    """What tells a set, what is annotated, and how its faces are framed, from another: a line of text."""
    digest = hashlib.sha256(repr(CHUNK).encode())
    for module in Dataset, sources, photo:
        digest.update(Path(module.__file__).read_bytes())
    for path, label, _, *known in listing.pictures:
        stat = path.stat() if path.exists() else None
        digest.update(repr((str(path), label, known, stat and (stat.st_size, stat.st_mtime_ns))).encode())
    return digest.hexdigest()


def begin(work, key):
    """Make the folder of the parts; those of the set as it was before are removed."""
    if not (work / "key").is_file() or (work / "key").read_text() != key:
        for before in work.parent.glob(work.name.rpartition("_")[0] + "*"):
            shutil.rmtree(before, ignore_errors=True)
        Dataset.write_whole(work / "key", key.encode())


def refuse_existing(work, plan, names, out):
    """Nothing is written over; whether what lies there is of an interrupted run of the same plan is seen later."""
    if (work / "plan").is_file() and (work / "plan").read_text() == plan:
        return
    for name in names:
        for path in filter(Path.exists, Dataset.database_files(name, out)):
            raise existing(path)


def refuse_other(contents, out):
    """Nothing is written over that is other than what would be written; contents  {name: {path: bytes}}"""
    for name, base in contents.items():
        for path in filter(Path.exists, Dataset.database_files(name, out)):
            if path.is_dir() or path.read_bytes() != base.get(path):
                raise existing(path)


def existing(path):
    return Dataset.UserError(f"{path}: exists already; move it away, or choose other --names or another --out")


def part(work, number):
    return work / f"part_{number:06}.npz"


def make_part(path, pictures):
    """Read and frame some pictures, and save their faces: how many pictures.

    The file holds "faces" [n, 2304] uint8, and "reasons" [n] why a picture has none, or "".
    """
    faces, reasons = np.zeros((len(pictures), Dataset.DIM), np.uint8), []
    for row, picture in enumerate(pictures):
        try:
            face = picture.framing(Dataset.read_picture(picture.path))
        except Dataset.DataError:
            reasons.append("not a picture that can be read" if picture.path.exists() else "missing")
        else:
            blank = face is not None and face.min() == face.max()
            reasons.append("no face found" if face is None else "of one grey level" if blank else "")
            if not reasons[-1]:
                faces[row] = face.ravel()
    content = io.BytesIO()
    np.savez(content, faces=faces, reasons=np.array(reasons))
    Dataset.write_whole(path, content.getvalue())
    return len(pictures)


def read_faces(pictures, work):
    """The faces of all pictures that have one, [N, 2304] uint8, and for each picture why it has none, or ""."""
    chunks = [pictures[start:start + CHUNK] for start in range(0, len(pictures), CHUNK)]
    todo = [(part(work, number), chunk) for number, chunk in enumerate(chunks) if not part(work, number).exists()]
    done = len(pictures) - sum(len(chunk) for _, chunk in todo)
    report = Report(len(pictures), done, "pictures")
    if done:
        print(f"going on: {done} of {len(pictures)} pictures were read before")
    for count in run(todo):
        done += count
        report.update(done)
    report.clear()
    faces, reasons = [], []
    for number, chunk in enumerate(chunks):
        try:
            content = load_part(part(work, number), len(chunk))
        except (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile):  # damaged, or removed by another build
            make_part(part(work, number), chunk)
            content = load_part(part(work, number), len(chunk))
        faces.append(content["faces"][content["reasons"] == ""])
        reasons += content["reasons"].tolist()
    return np.concatenate(faces), reasons


def load_part(path, count):
    with np.load(path) as content:
        faces, reasons = content["faces"], content["reasons"]
    if not len(faces) == len(reasons) == count:
        raise ValueError(f"{len(faces)} faces, {len(reasons)} reasons of {count} pictures")
    return {"faces": faces, "reasons": reasons}


def run(todo):
    """make_part of each, in as many processes as there are cores: yields how many pictures each had."""
    if len(todo) < FEW:
        yield from (make_part(*one) for one in todo)
        return
    workers = min(os.cpu_count(), len(todo), 60)  # Windows waits for no more than 61
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), begin_worker) as pool:
        futures = [pool.submit(make_part, *one) for one in todo]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def begin_worker():
    """A worker ends at once, and silently, with Ctrl-C and with its parent; it computes in one thread."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


class Report(Console.Progress):
    """A bar on a terminal; in a log a line each tenth."""

    def __init__(self, total, done, unit):
        super().__init__(total, done, unit)
        self.tenth = 10 * done // max(total, 1)

    def update(self, done, text=""):
        super().update(done, text)
        if not self.live and 10 * done // self.total > self.tenth:
            self.tenth = 10 * done // self.total
            self.line(f"{done:8} of {self.total} {self.unit}  {self.rate(done):8.0f} {self.unit}/s  "
                      f"{self.left(done)} left")


# Who belongs together

def standardised(rows):
    """Rows [N, dim] float32 of mean 0 and length 1: the product of two is their correlation."""
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def near_duplicates(faces, block=4096):
    """Which faces show the same photograph, or its mirror image: yields pairs [n, 2] of rows, each pair once.

    faces  [N, 2304] uint8. Two are near-duplicates where their 24x24 reductions correlate by 0.95 or more: below that
    most of UTKFace's pairs are different people, above it most are one photograph (benchmarks/RESULTS.md).
    """
    count, step = len(faces), Dataset.SIDE // FINE
    fine = faces.reshape(count, FINE, step, FINE, step).mean((2, 4), np.float32).reshape(count, -1)
    fine = standardised(fine)
    mirrored = fine.reshape(count, FINE, FINE)[:, :, ::-1].reshape(count, -1)
    report = Report(count, 0, "faces")
    for top in range(0, count, block):
        for left in range(top, count, block):
            rows, columns = fine[top:top + block], slice(left, left + block)
            near = (rows @ fine[columns].T >= NEAR) | (rows @ mirrored[columns].T >= NEAR)
            found = np.argwhere(near) + (top, left)
            yield found[found[:, 0] < found[:, 1]]
        report.update(min(top + block, count))
    report.clear()


def groups(alike, people):
    """Each face's group, [N] int: near-duplicates, and pictures of one person, share theirs. And how many pairs of
    near-duplicates there are.

    alike  iterable of pairs [n, 2] of rows;  people  [N] names, None where unknown
    """
    group, number = np.arange(len(people)), 0
    for pairs in alike:
        group, number = joined(group, pairs), number + len(pairs)
    first = {}
    known = [(first.setdefault(person, row), row) for row, person in enumerate(people) if person is not None]
    return joined(group, np.array(known, int).reshape(-1, 2)), number


def joined(group, pairs):
    """Groups [N] int, each named by its first row, of which those of each pair of rows, [n, 2], become one."""
    while True:
        one, other = group[pairs].T
        apart = one != other
        if not apart.any():
            return group
        parent = np.arange(len(group))
        np.minimum.at(parent, np.maximum(one, other)[apart], np.minimum(one, other)[apart])
        while (parent[parent] != parent).any():
            parent = parent[parent]
        group = parent[group]


def choose(names, labels, group, seed):
    """Which faces each base holds: {name: rows, [size] int}, of each kind the smaller bases the head of the larger.

    labels  [N] 0 man, 1 woman;  group  [N], as `groups` gives
    No group is on both sides. Each base is half men, half women, as far as there are enough of both.
    """
    generator = np.random.default_rng(seed)
    test, train = sides(names)
    have = np.bincount(labels, minlength=2)
    scarce = int(have.argmin())
    quota = np.empty(2, int)
    quota[scarce] = min(test // 2, have[scarce] * test // max(test + train, 1))
    quota[1 - scarce] = test - quota[scarce]
    members = split_by(group)
    together = len(members)
    generator.shuffle(members)
    taken = []
    for whole in (True, False):  # first groups that fit; then, where these do not suffice, parts of groups
        left = []
        for rows in members:
            count = np.bincount(labels[rows], minlength=2)
            if whole and (count <= quota).all() and len(rows) <= max(test // 100, 1):
                taken += rows.tolist()
                quota -= count
            elif not whole and any(quota[labels[rows]] > 0):
                for row in rows:
                    if quota[labels[row]] > 0:
                        taken.append(row)
                        quota[labels[row]] -= 1
            else:
                left.append(rows)
        members = left
    rest = np.concatenate([np.empty(0, int), *members])
    if len(taken) < test or len(rest) < train:
        raise Dataset.UserError(f"{len(labels)} faces, of {together} groups of near-duplicates and people that stay on "
                                f"one side: {len(taken)} to test and {len(rest)} to learn, {test} and {train} asked "
                                "for; name smaller bases with --names")
    order = {True: alternate(np.array(taken, int), labels, generator), False: alternate(rest, labels, generator)}
    return {name: order[is_test(name)][:size_of(name)] for name in names}


def split_by(group):
    """The rows of each group: a list of [n] int arrays."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else []


def alternate(rows, labels, generator):
    """`rows` in random order, a man and a woman in turn as long as there are both."""
    rows = generator.permutation(rows)
    rank = np.empty(len(rows))
    for label in (sources.MAN, sources.WOMAN):
        mine = labels[rows] == label
        rank[mine] = np.arange(mine.sum()) + label / 2
    return rows[np.argsort(rank, kind="stable")]


# Writing and telling

def files(out, name, faces, labels, pictures):
    """The files of a base, {path: bytes}: its data_*.bin last, so that it never lies there without its labels."""
    data, gender, meta = Dataset.database_files(name, out)
    contents = {gender: np.eye(2, dtype="<f4")[labels].tobytes()}
    if any(picture.age is not None or picture.ethnicity is not None for picture in pictures):
        lines = [",".join("" if value is None else str(value) for value in (picture.age, picture.ethnicity))
                 for picture in pictures]
        contents[meta] = ("\n".join(["age,ethnicity", *lines]) + "\n").encode()
    return contents | {data: faces.tobytes()}


def report(options, listing, reasons, pairs, group, bases, labels):
    """The lines that tell what became of the set."""
    skipped = skipped_of(listing, reasons)
    total, women = len(labels) + sum(map(len, skipped.values())), int(labels.sum())
    yield f"{options.folder}: {total} pictures, {len(labels)} faces ({len(labels) - women} men, {women} women)"
    for reason, names in sorted(skipped.items()):
        yield f"skipped {len(names):6}  {reason}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
    sizes = np.unique(group, return_counts=True)[1]
    yield (f"{pairs} pairs of near-duplicates; with these and people known by name, {np.sum(sizes > 1)} groups "
           f"of 2 to {sizes.max()} faces stay on one side" if sizes.max() > 1 else "no near-duplicates")
    for name, rows in bases.items():
        path, women = Dataset.database_files(name, options.out)[0], int(labels[rows].sum())
        yield f"{path}: {len(rows)} faces, {len(rows) - women} men, {women} women"
    missing = [name for name in DEFAULT_NAMES if name not in bases]
    if missing and not options.names:
        yield f"too few faces for {' '.join(missing)}"


if __name__ == "__main__":
    sys.exit(Console.run(main))
