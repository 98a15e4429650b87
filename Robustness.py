"""How far a net must be pushed before it errs: of each face the distance to the nearest file found that it calls wrong.

From these distances follow all curves: accuracy at radius r is the share of faces whose distance exceeds r. An attack
that looks for the least noise tells a face's distance in one run; one that is bound to a ball (fgsm, pgd) runs with
each radius in turn, on the faces left. Robust accuracy counts of each face the least distance of all attacks. Distances
are those of the saved pictures, in grey levels; a face that the net calls wrong without any noise has distance 0.
"""
import csv
import hashlib
import io
import json
import math
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

import Attacks
import Dataset

RADII = {  # grey levels; 255 is the distance 1.0 of pictures in 0..1
    "l2": (16, 32, 64, 96, 128, 191, 255, 383, 510),
    "l1": (128, 255, 510, 1020, 2040, 4080, 8160, 16320),
    "linf": (1, 2, 3, 4, 6, 8, 12, 16),
}
NAMES = {"l2": "L2", "l1": "L1", "linf": "Linf"}
BALLS = {  # attack: {distance: (norm of the attack's ball, its radius for a distance of 1: the largest ball inside)}
    "pgd": {"l2": ("l2", 1.0), "l1": ("l2", 1.0 / Dataset.SIDE), "linf": ("linf", 1.0)},
    "fgsm": {"l2": (None, 1.0 / Dataset.SIDE), "l1": (None, 1.0 / Dataset.DIM), "linf": (None, 1.0)},
}
ROBUST = "robust"  # stands beside the attacks' names for the least of all


def least_distances(net, faces, labels, attack, norm, radii=(), **options):
    """Look for the nearest file of each face that `net` calls wrong; yields a text a step, returns [N] float64.

    net     [?, 2304] in the course's scale -> [?, 2] logits
    faces   [N, 2304] uint8;  labels  [N] int, the right answers
    attack  a name of Attacks.ATTACKS;  options  of it;  norm  l2, l1 or linf: in which distance
    radii   of the balls, where the attack is bound to one, ascending, grey levels
    returns grey levels; 0 where the net errs without noise, infinite where no file was found
    """
    says = tf.argmax(net(tf.constant(Dataset.to_float(faces))), axis=1).numpy()
    distance = np.where(says == labels, math.inf, 0.0)
    for run in _runs(attack, norm, radii):
        left = np.flatnonzero(np.isinf(distance))
        if not len(left):
            break
        search = Attacks.build(attack, net, faces[left], 1 - labels[left], **run, **options)
        if attack not in BALLS:
            search.norm = norm  # the picture that is kept is the closest in this distance
        for state in search.run():
            yield f"{attack}, step {state['step']} of {search.steps}"
        found = search.result()
        distance[left] = np.where(found.fools, Attacks.distances(found.original, found.modified)[norm], math.inf)
    return distance


def _runs(attack, norm, radii):
    """The options, beside the user's, of each run of an attack."""
    if attack not in BALLS:
        return [{"norm": norm} if "norm" in Attacks.options(attack) else {}]
    ball, share = BALLS[attack][norm]
    balls = [radius * share for radius in radii if radius * share >= 1.0]  # a file holds whole grey levels
    return [{"radius": radius / Dataset.GREY_LEVELS} | ({"norm": ball} if ball else {}) for radius in balls]


class Bench:
    """Distances of all faces under several attacks of several nets: `for text in bench.run()`, then `distances()`.

    nets     {name: net};  faces  [N, 2304] uint8;  labels  [N] int
    attacks  {name of Attacks.ATTACKS: options of it};  norm, radii  as least_distances takes them
    out      folder; parts/ in it keeps what is done: a file for each net, attack and `batch` faces

    A part is known by all that it depends on, the net's weights and the faces too: what was measured is not measured
    again, and what changed is. Attributes total and done count faces, each once for each net and attack.
    """

    def __init__(self, nets, faces, labels, attacks, norm, radii, out, batch):
        self.faces, self.labels, self.norm, self.radii = faces, labels, norm, sorted(radii)
        self.parts = []  # (name of the net, net, attack, its options, rows, file)
        for name, net in nets.items():
            weights = fingerprint(net.description, *(variable.numpy() for variable in net.variables))
            for attack, options in attacks.items():
                settings = json.dumps([attack, options, norm, self.radii if attack in BALLS else []])
                for first in range(0, len(faces), batch):
                    rows = np.arange(first, min(first + batch, len(faces)))
                    key = fingerprint(weights, faces[rows], labels[rows], settings)
                    path = Path(out) / "parts" / f"{attack}-{norm}-{first}-{key}.json"
                    self.parts.append((name, net, attack, options, rows, path))
        self.total = sum(len(rows) for *_, rows, _ in self.parts)
        self.done = sum(len(rows) for *_, rows, path in self.parts if path.exists())

    def run(self):
        """Measure what is missing; yields a text after every step of an attack."""
        for _, net, attack, options, rows, path in self.parts:
            if not path.exists():
                distance = yield from least_distances(net, self.faces[rows], self.labels[rows], attack, self.norm,
                                                      self.radii, **options)
                part = [None if math.isinf(value) else value for value in distance]
                Dataset.write_whole(path, json.dumps(part).encode())
                self.done += len(rows)

    def distances(self):
        """{name of the net: {attack: [N] float64, grey levels}}; of several attacks also the least, as ROBUST."""
        found = {}
        for name, _, attack, _, rows, path in self.parts:
            try:
                part = np.array(json.loads(path.read_text(encoding="utf-8")), float)  # None becomes NaN
                assert part.shape == rows.shape
            except (ValueError, TypeError, AssertionError):
                raise Dataset.DataError(f"{path}: damaged; expected {len(rows)} distances; delete it, and the same "
                                        "command measures them again") from None
            of_net = found.setdefault(name, {})
            of_net[attack] = np.append(of_net.get(attack, []), np.where(np.isnan(part), math.inf, part))
        return {name: of_net | ({ROBUST: np.minimum.reduce([*of_net.values()])} if len(of_net) > 1 else {})
                for name, of_net in found.items()}


def fingerprint(*contents):
    """16 hexadecimal digits that tell apart texts and arrays which differ in anything."""
    whole = hashlib.sha256()
    for content in contents:
        content = content.encode() if isinstance(content, str) else np.ascontiguousarray(content).tobytes()
        whole.update(len(content).to_bytes(8, "little") + content)
    return whole.hexdigest()[:16]


def accuracy(distances, radius):
    """The share of faces, of their distances [N], that are right within a radius (same unit)."""
    return float(np.mean(distances > radius))


def table(distances, norm, radii):
    """Bench.distances() as lines of aligned text: accuracy in % at each radius, and the median distance."""
    radii = [0, *sorted(radii)]
    sheet = [[f"{NAMES[norm]} in grey levels", "", *(f"{radius:g}" for radius in radii), "median"],
             [f"{NAMES[norm]} of a 0..1 image", "", *(f"{radius / 255:.3f}" for radius in radii), ""]]
    for name, of_net in distances.items():
        for attack, distance in of_net.items():
            median = np.median(distance)
            sheet.append([name, attack, *(f"{100 * accuracy(distance, radius):.2f}" for radius in radii),
                          f"{median:.1f}" if math.isfinite(median) else "-"])
    widths = [max(map(len, column)) for column in zip(*sheet)]
    return ["  ".join([line[0].ljust(widths[0]), line[1].ljust(widths[1]),
                       *(cell.rjust(width) for cell, width in zip(line[2:], widths[2:]))]).rstrip() for line in sheet]


def sheet_of_values(distances, norm, radii):
    """Bench.distances() as the text of a CSV file, a line for each net, attack and radius."""
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(["checkpoint", "attack", "norm", "radius_grey_levels", "radius_unit_interval", "faces", "correct",
                     "accuracy"])
    for name, of_net in distances.items():
        for attack, distance in of_net.items():
            for radius in [0, *sorted(radii)]:
                writer.writerow([name, attack, norm, f"{radius:g}", f"{radius / 255:.6g}", len(distance),
                                 int(np.sum(distance > radius)), f"{accuracy(distance, radius):.6g}"])
    return sheet.getvalue()


def plot(distances, norm, radii):
    """Bench.distances() as curves, a colour a net and a line style an attack: a PIL picture.

    Raises UserError without Matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Dataset.UserError('no picture without Matplotlib: pip install ".[plots]"') from None
    furthest = max(radii)
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, of_net) in enumerate(distances.items()):
        for style, (attack, distance) in enumerate(of_net.items()):
            inside = np.sort(distance[distance <= furthest])
            shares = 1.0 - np.arange(len(inside) + 1) / len(distance)  # after so many faces are lost
            whole = attack == ROBUST or len(of_net) == 1
            axes.step([0.0, *inside, furthest], 100 * np.append(shares, shares[-1]), where="post", color=f"C{number}",
                      linestyle="-" if whole else ["--", ":", "-.", (0, (1, 4)), (0, (6, 4))][style % 5],
                      linewidth=2.0 if whole else 1.0, label=f"{name}, {attack}")
    axes.set(xlim=(0, furthest), ylim=(0, 100), xlabel=f"{NAMES[norm]} distance of the saved file, grey levels",
             ylabel="accuracy, %")
    axes.secondary_xaxis("top", functions=(lambda grey: grey / 255, lambda unit: unit * 255)).set_xlabel(
        f"{NAMES[norm]} distance of pictures in 0..1")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Image.open(content)
