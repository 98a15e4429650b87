"""How far a net must be pushed before it errs: of each face the distance to the nearest file found that it calls wrong.

From these distances follow all curves: accuracy at radius r is the share of faces whose distance exceeds r. An attack
that looks for the least noise tells a face's distance in one run; one that is bound to a ball (fgsm, pgd) runs with
each radius in turn, on the faces left. Robust accuracy counts of each face the least distance of all attacks. Distances
are those of the saved pictures, in grey levels; a face that the net calls wrong without any noise has distance 0.
"""
import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

import Attacks
import Dataset
import Layers
import Models
import Training

RADII = {  # grey levels; 255 is the distance 1.0 of pictures in 0..1
    "l2": (16, 32, 64, 96, 128, 191, 255, 383, 510),
    "l1": (128, 255, 510, 1020, 2040, 4080, 8160, 16320),
    "linf": (1, 2, 3, 4, 6, 8, 12, 16),
}
TRANSFER_RADII = {"l2": (255,), "l1": (8160,), "linf": (8,)}
NAMES = {"l2": "L2", "l1": "L1", "linf": "Linf"}
BALLS = {  # attack: {distance: (norm of the attack's ball, its radius for a distance of 1: the largest ball inside)}
    "pgd": {"l2": ("l2", 1.0), "l1": ("l2", 1.0 / Dataset.SIDE), "linf": ("linf", 1.0)},
    "fgsm": {"l2": (None, 1.0 / Dataset.SIDE), "l1": (None, 1.0 / Dataset.DIM), "linf": (None, 1.0)},
}
CODE = "".join(Path(file).read_text(encoding="utf-8") for file in (Attacks.__file__, __file__))  # that measures
ROBUST = "robust"  # stands beside the attacks' names for the least of all


def least_distances(net, faces, labels, attack, norm, radii=(), **options):
    """Look for the nearest file of each face that `net` calls wrong; yields (share done, text) a step.

    net     [?, 2304] in the course's scale -> [?, 2] logits
    faces   [N, 2304] uint8;  labels  [N] int, the right answers
    attack  a name of Attacks.ATTACKS;  options  of it;  norm  l2, l1 or linf: in which distance
    radii   of the balls, where the attack is bound to one, ascending, grey levels
    returns [N] float64, grey levels; 0 where the net errs without noise, infinite where no file was found
    """
    distance = np.where(_says(net, faces) == labels, math.inf, 0.0)
    runs = _runs(attack, norm, radii)
    for number, run in enumerate(runs):
        left = np.flatnonzero(np.isinf(distance))
        if not len(left):
            break
        search = Attacks.build(attack, net, faces[left], 1 - labels[left], **run, **options)
        if attack not in BALLS:
            search.norm = norm  # the picture that is kept is the closest in this distance
        found = yield from _searched(attack, search, number / len(runs), 1 / len(runs))
        distance[left] = np.where(found.fools, Attacks.distances(found.original, found.modified)[norm], math.inf)
    return distance


def _searched(name, search, before=0.0, share=1.0):
    """Run an Attack, a share of some work; yields (share done, text) a step, returns its Result."""
    for state in search.run():
        yield before + share * state["step"] / search.steps, f"{name}, step {state['step']} of {search.steps}"
    return search.result()


def least_radius(attack, norm):
    """The least distance (grey levels) of which an attack that is bound to a ball can be asked: a file holds whole grey
    levels. 0 of other attacks."""
    return 1.0 / BALLS[attack][norm][1] if attack in BALLS else 0.0


def _runs(attack, norm, radii):
    """The options, beside the user's, of each run of an attack."""
    if attack not in BALLS:
        return [{"norm": norm} if "norm" in Attacks.options(attack) else {}]
    ball, share = BALLS[attack][norm]
    return [{"radius": radius * share / Dataset.GREY_LEVELS} | ({"norm": ball} if ball else {})
            for radius in radii if radius >= least_radius(attack, norm)]


def _complete(attack, options):
    """The options of an attack that a measurement depends on: what the user did not name is as the attack has it."""
    return Attacks.options(attack) | {name: value for name, value in options.items() if value is not None}


class Parts:
    """Work on faces, part by part: `for done, text in parts.run()`, faces done. Each part's outcome is a file, never
    worked out again.

    A part is known by all that it depends on, the net's weights, the faces and the attacks' code too: what changed is
    worked out anew.
    Attributes total and done count faces, once for each file they are in; parts is a list of (key, rows, path, work),
    where work(rows) is a generator of (share done, text) that returns the content of the file.
    """

    def __init__(self, faces, labels, out, batch):
        self.faces, self.labels, self.out, self.batch = faces, np.asarray(labels), Path(out) / "parts", batch
        self.parts, self.total, self.done = [], 0, 0
        Dataset.make_folder(self.out)

    def add(self, key, net, name, suffix, settings, work):
        """Parts of all faces: the caller's key, the net and settings they depend on, the files' name and suffix."""
        weights = net_fingerprint(net)
        for first in range(0, len(self.faces), self.batch):
            rows = np.arange(first, min(first + self.batch, len(self.faces)))
            number = fingerprint(weights, self.faces[rows], self.labels[rows], json.dumps([name, settings]), CODE)
            path = self.out / f"{name}-{first}-{number}{suffix}"
            if path not in (other for *_, other, _ in self.parts):  # the same net may have two names
                self.total += len(rows)
                self.done += len(rows) if path.exists() else 0
            self.parts.append((key, rows, path, work))

    def run(self):
        """Work out what is missing; yields (faces done, text) after every step of an attack."""
        for _, rows, path, work in self.parts:
            if not path.exists():
                Dataset.write_whole(path, (yield from self._counted(work(rows), len(rows))))
                self.done += len(rows)

    def _counted(self, work, faces):
        while True:
            try:
                share, text = next(work)
            except StopIteration as end:
                return end.value
            yield self.done + share * faces, text


class Bench(Parts):
    """Distances of all faces under several attacks of several nets: `for ... in bench.run()`, then `distances()`.

    nets     {name: net}, each as net_fingerprint takes it;  faces  [N, 2304] uint8;  labels  [N] int
    attacks  {name of Attacks.ATTACKS: options of it};  norm, radii  as least_distances takes them
    out      folder; parts/ in it keeps what is done, `batch` faces a file
    """

    def __init__(self, nets, faces, labels, attacks, norm, radii, out, batch):
        super().__init__(faces, labels, out, batch)
        radii = [float(radius) for radius in sorted(radii)]
        self.options = {attack: _complete(attack, options) for attack, options in attacks.items()}
        for name, net in nets.items():
            for attack, options in attacks.items():
                settings = [self.options[attack], radii if attack in BALLS else []]
                self.add((name, attack), net, f"{attack}-{norm}", ".json", settings,
                         functools.partial(self._search, net, attack, options, norm, radii))

    def _search(self, net, attack, options, norm, radii, rows):
        distance = yield from least_distances(net, self.faces[rows], self.labels[rows], attack, norm, radii, **options)
        return json.dumps([None if math.isinf(value) else value for value in distance]).encode()

    def distances(self):
        """{name of the net: {attack: [N] float64, grey levels}}; of several attacks also the least, as ROBUST."""
        found = {}
        for (name, attack), rows, path, _ in self.parts:
            try:
                part = np.array(json.loads(path.read_text(encoding="utf-8")), float)  # None becomes NaN
                if part.shape != rows.shape:
                    raise ValueError
            except (ValueError, TypeError):
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


def net_fingerprint(net):
    """Of a Models.Network, or of what has like it `description`, a text, and `variables`. UserError for others."""
    if not (hasattr(net, "description") and hasattr(net, "variables")):
        raise Dataset.UserError(f"{net!r:.60}: a net whose measurements are kept is told from others by its attributes "
                                "`description`, a text, and `variables`; give it both")
    return fingerprint(net.description, *(variable.numpy() for variable in net.variables))


def accuracy(distances, radius):
    """The share of faces, of their distances [N], that are right within a radius (same unit)."""
    return float(np.mean(distances > radius))


class Transfer(Parts):
    """Which nets are fooled by the files made on others: `for ... in transfer.run()`, then `fooled(...)`.

    attacked  {name: net} on which files are made, by PGD that spends the whole ball
    norm, radii, steps  of the balls, grey levels, and of PGD;  the rest as Bench's
    """

    def __init__(self, attacked, faces, labels, norm, radii, steps, out, batch):
        super().__init__(faces, labels, out, batch)
        ball, share = BALLS["pgd"][norm]
        for name, net in attacked.items():
            for radius in sorted(radii):
                self.add((name, radius), net, f"transfer-{norm}-{radius:.15g}", ".bin", [steps],
                         functools.partial(self._search, net, ball, radius * share / Dataset.GREY_LEVELS, steps))

    def _search(self, net, ball, radius, steps, rows):
        attack = Attacks.WholeBall(net, self.faces[rows], 1 - self.labels[rows], ball, radius, steps)
        found = yield from _searched("transfer", attack)
        return found.modified.tobytes()

    def fooled(self, asked):
        """{(name of the net attacked, radius, name of the net asked): (files that fool it, faces it calls right)}.

        asked  {name: net}; a file counts where its face, without noise, is called right by the net asked
        """
        counts = {}
        for name, net in asked.items():
            ask = tf.function(lambda x: net(x), autograph=False, reduce_retracing=True)
            right = {}  # by the first row of a part: which of its faces are called right
            for key, rows, path, _ in self.parts:
                labels, files = self.labels[rows], _files(path, rows)
                if rows[0] not in right:
                    right[rows[0]] = _says(ask, self.faces[rows]) == labels
                errs = right[rows[0]] & (_says(ask, files) != labels)
                pair = (*key, name)
                counts[pair] = np.add(counts.get(pair, (0, 0)), (errs.sum(), right[rows[0]].sum()))
        return counts


class Misled(Parts):
    """Files that mislead a net about faces that it calls right: `for ... in misled.run()`, then `found()`.

    net, faces, labels, out, batch  as Bench's;  attack, options  a name of Attacks.ATTACKS, and options of it
    radius  L2, grey levels: how far from its face a file may be
    """

    def __init__(self, net, faces, labels, attack, options, radius, out, batch):
        super().__init__(faces, labels, out, batch)
        self.net, self.radius = net, radius
        self.add(None, net, f"misled-{attack}", ".bin", [_complete(attack, options), radius],
                 functools.partial(self._search, attack, options))

    def _search(self, attack, options, rows):
        (run,) = _runs(attack, "l2", [self.radius])
        search = Attacks.build(attack, self.net, self.faces[rows], 1 - self.labels[rows], **run, **options)
        found = yield from _searched(attack, search)
        return found.modified.tobytes()

    def found(self):
        """(files [n, 2304] uint8, the right labels [n] int, distances [n] L2 in grey levels) of the faces misled."""
        files, errs = [np.empty((0, Dataset.DIM), np.uint8)], [np.empty(0, bool)]
        for _, rows, path, _ in self.parts:
            files.append(_files(path, rows))
            errs.append(_says(self.net, files[-1]) != self.labels[rows])
        files = np.concatenate(files)
        distance = Attacks.distances(self.faces, files)["l2"]
        kept = np.concatenate(errs) & (distance <= self.radius)
        return files[kept], self.labels[kept], distance[kept]


def _files(path, rows):
    files = Dataset.read_faces(path)
    if len(files) != len(rows):
        raise Dataset.DataError(f"{path}: damaged; expected {len(rows)} faces, found {len(files)}; delete it, and the "
                                "same command makes them again")
    return files


def _says(net, faces):
    return np.argmax(Dataset.finite(Attacks.logits_of(net, tf.constant(Dataset.to_float(faces)))), axis=1)


class Retraining:
    """The slides' "Defense through retraining": attack the faces that a net learned from, learn the files that mislead
    it too, with their right labels, and again: `for row in retraining.run(...)`.

    net      to begin with; then the newest
    learned, validation  DataSets of faces without noise
    recipe   Training.Recipe of each round
    attack, options, radius  as Misled takes them;  count  faces a round, drawn anew from the learned ones
    out      folder: data_round1.bin, gender_round1.bin are the files found in the first round, round1/ is the net that
             learned them; what is there already is not done again. UserError where it is of another retraining
    """

    def __init__(self, net, learned, validation, recipe, attack, options, radius, count, out):
        self.net, self.learned, self.validation, self.recipe = net, learned, validation, recipe
        self.attack, self.options, self.radius, self.count = attack, options, radius, count
        self.out, self.found = Path(out), []  # a DataSet for each round
        settings = dataclasses.replace(recipe, start=None, learning_rate=Training.peak_rate(recipe))
        origin = fingerprint(net_fingerprint(net), learned.data.grey(), learned.label, json.dumps([
            dataclasses.asdict(settings), attack, _complete(attack, options), radius, count]))
        self.description = json.dumps(json.loads(net.description) | {"retraining": origin}, indent=1)
        for saved in self.out.glob(f"round*/{Models.DESCRIPTION}"):
            if saved.read_text(encoding="utf-8") != self.description:
                raise Dataset.UserError(f"{self.out}: holds a retraining with other options; choose another --out")

    def run(self, rounds, work, learn):
        """Go on until so many rounds are done or nothing misleads the newest net.

        Yields of each net, the first one too, {"round", "attacked": faces called right, "misled": how many of them,
        "median": L2 of their files in grey levels, NaN without any, "validation": accuracy without noise}.

        work, learn  run a Misled, and a Trainer, to its end
        """
        for number in range(rounds + 1):
            search = self._search()
            work(search)
            files, labels, distances = search.found()
            yield {"round": number, "attacked": len(search.faces), "misled": len(files),
                   "median": float(np.median(distances)) if len(files) else math.nan,
                   "validation": self.validation.mean_accuracy(self.net)}
            if number == rounds or not len(files):
                return
            training = self._training(f"round{number + 1}", files, labels)
            learn(training)
            self.net = Models.load(training.out)[0]

    def _search(self):
        faces = self.learned.subset(self.learned.order(len(self.found))[:self.count])
        right = faces.answers(tf.function(lambda x: self.net(x))) == faces.label.argmax(1)
        return Misled(self.net, faces.data.grey(right), faces.label[right].argmax(1), self.attack, self.options,
                      self.radius, self.out, self.recipe.batch_size)

    def _training(self, name, files, labels):
        """The training of the next net, which begins with the newest: a Trainer, where an earlier run left it."""
        data, gender, _ = Dataset.database_files(self.out / f"data_{name}.bin")
        Dataset.write_all({gender: np.eye(2, dtype="<f4")[labels].tobytes(), data: files.tobytes()})
        self.found.append(Dataset.open_database(data))
        return _begun(Training.Trainer(self.net, Dataset.DataSet.join([self.learned, *self.found]), self.validation,
                                       None, self.recipe, self.out / name, None, self.description))


def substitute(victim, dataset, net, out):
    """The training of a net that learns what another says of faces, and nothing else of it (Papernot et al. 2017).

    victim   a net, of whose answers only the label is used: one question a face of `dataset`
    dataset  DataSet of the attacker's faces; its labels are not looked at
    net      name of Models.NETWORKS
    out      folder; in it the folder of the substitute's checkpoint
    returns  Training.Trainer, not yet run, or where it was interrupted, or at its end
    """
    out = Path(out) / f"{net}-{fingerprint(net_fingerprint(victim), dataset.data.grey())}"
    asked = dataset.subset(np.arange(dataset.nbdata))
    asked.label = np.eye(2, dtype=np.float32)[dataset.answers(tf.function(lambda x: victim(x)))]
    recipe = Training.Recipe()
    Training.make_deterministic(recipe.seed)
    learned, validation = Training.split(asked, recipe.validation, recipe.seed)
    pupil = Models.build(net)
    return _begun(Training.Trainer(pupil, learned, validation, None, recipe, out, None, pupil.description))


def _begun(trainer):
    """The Trainer itself, where an earlier run left it."""
    if Training.can_resume(trainer.out):
        trainer.resume()
    return trainer


def jump_relu(x, kappa):
    """x above kappa, else 0 (JumpReLU, Erichson et al. 2019).

    So that attacks go through the jump, the gradient is that of a smooth one: relu(x) x sigmoid((x - kappa) / a quarter
    of kappa) (Athalye et al. 2018, "backward pass differentiable approximation").
    """
    relu = tf.nn.relu(x)
    if not kappa:
        return relu
    smooth = relu * tf.sigmoid((x - kappa) / (0.25 * kappa))
    return tf.stop_gradient(relu * tf.cast(x > kappa, x.dtype)) + (smooth - tf.stop_gradient(smooth))


def with_jump(net, kappa):
    """The net itself, its ReLUs replaced by JumpReLUs of one threshold. Raises UserError where it has none."""
    layers = [layer for layer in net.submodules if getattr(layer, "activation", None) == "relu"]
    if not layers:
        raise Dataset.UserError(f"--jump {kappa:g}: a {type(net).__name__} without ReLU has no place for it")
    name = f"jump {kappa}"
    Layers.ACTIVATIONS[name] = functools.partial(jump_relu, kappa=kappa)
    for layer in layers:
        layer.activation = name
    net.description = json.dumps(json.loads(net.description) | {"jump": kappa})
    return net


class Purified(tf.Module):
    """A net that is asked about the likeliest face behind a picture, not about the picture.

    The slides' "Invert and Classify" (Samangouei et al. 2018, Defense-GAN), where the generator is a statistical model
    of faces. There the search for the codes has a closed form, so attacks go through it by its true gradient.

    net    [?, 2304] in the course's scale -> [?, 2] logits; the same is this
    model  a DataBases.faces.Model;  noise  as its projection takes it, grey levels
    """

    def __init__(self, net, model, noise):
        super().__init__()
        self.net = net
        self.description = json.dumps(json.loads(net.description) | {"purify": noise})
        centre, gain = model.projection(noise)
        self.centre, self.gain, self.eigenfaces = (tf.Variable(part, trainable=False) for part in (
            Dataset.to_float(centre), gain, model.eigenfaces))

    def __call__(self, x):
        return self.net(self.face(x))

    def face(self, x):
        """The likeliest faces behind pictures, both [N, 2304] in the course's scale."""
        return self.centre + (x - self.centre) @ self.gain @ self.eigenfaces


def measured(attack, attacks, norm, radius):
    """Whether an attack of several, or the least of them as ROBUST, could reach a radius in grey levels at all."""
    return not radius or any(radius >= least_radius(name, norm) for name in attacks
                             if name != ROBUST and attack in (name, ROBUST))


def table(distances, norm, radii):
    """Bench.distances() as lines of aligned text: each net's name, then of each attack the accuracy in % at each radius
    ("-": it can make no file there) and the median distance. As wide as a terminal with the radii of RADII."""
    radii = [0, *sorted(radii)]
    sheet = [[f"{NAMES[norm]}, 0..255", *(f"{radius:g}" for radius in radii), "median"],
             [f"{NAMES[norm]}, 0..1", *(f"{radius / 255:.3f}" for radius in radii), ""]]
    for of_net in distances.values():
        for attack, distance in of_net.items():
            median = np.median(distance)
            sheet.append([f"  {attack}", *(f"{100 * accuracy(distance, radius):.2f}"[:5]
                                           if measured(attack, of_net, norm, radius) else "-" for radius in radii),
                          f"{median:.1f}" if math.isfinite(median) else "-"])
    lines = iter(_aligned(sheet, " "))
    return [next(lines), next(lines), *(line for name, of_net in distances.items()
                                        for line in (name, *itertools.islice(lines, len(of_net))))]


def _aligned(sheet, gap):
    """Lines of text of a list of rows of text, the first column to the left, `gap` between columns."""
    widths = [max(map(len, column)) for column in zip(*sheet)]
    return [gap.join(cell.rjust(width) if number else cell.ljust(width)
                     for number, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in sheet]


def matrix(fooled, norm):
    """Transfer.fooled() as lines of aligned text: for each radius a row a net attacked, a column a net asked, in %.

    Where names make that wider than a terminal's 80 columns, numbers stand for them, told ahead.
    """
    attacked, radii, asked = (list(dict.fromkeys(names)) for names in zip(*fooled))

    def lines(titles):
        for radius in radii:
            sheet = [["made on", *map(titles.get, asked)]]
            for name in attacked:
                counts = (fooled[name, radius, other] for other in asked)
                sheet.append([titles[name], *(f"{100 * errs / right:.2f}" if right else "-" for errs, right in counts)])
            yield f"{NAMES[norm]} {radius:g} grey levels, {radius / 255:.3f} of a 0..1 image"
            yield from _aligned(sheet, "  ")

    names = list(dict.fromkeys([*asked, *attacked]))
    whole = [*lines(dict(zip(names, names)))]
    if max(map(len, whole)) <= 80:
        return whole
    numbers = {name: str(number) for number, name in enumerate(names, 1)}
    return [*(f"{number:>2}  {name}" for name, number in numbers.items()), *lines(numbers)]


def matrix_of_values(fooled, norm, database, steps):
    """Transfer.fooled() as the text of a CSV file, a line for each net attacked, radius and net asked."""
    head = ["attacked", "norm", "radius_grey_levels", "radius_unit_interval", "asked", "called_right", "fooled",
            "database", "steps"]
    return _csv([head, *([name, norm, f"{radius:g}", f"{radius / 255:.6g}", other, right, errs, database, steps]
                         for (name, radius, other), (errs, right) in fooled.items())])


def _csv(rows):
    sheet = io.StringIO()
    csv.writer(sheet, lineterminator="\n").writerows(rows)
    return sheet.getvalue()


def _text(options):
    return " ".join(f"{name}={value}" for name, value in options.items() if value is not None)


def sheet_of_values(distances, norm, radii, database, options):
    """Bench.distances() as the text of a CSV file, a line for each net, attack and radius that it could reach.

    database  the name of that of the faces;  options  {attack: its options}
    """
    head = ["checkpoint", "attack", "norm", "radius_grey_levels", "radius_unit_interval", "faces", "correct",
            "accuracy", "database", "options"]
    return _csv([head, *([name, attack, norm, f"{radius:g}", f"{radius / 255:.6g}", len(distance),
                          int(np.sum(distance > radius)), f"{accuracy(distance, radius):.6g}", database,
                          _text(options[attack]) if attack in options else f"least of {', '.join(options)}"]
                         for name, of_net in distances.items() for attack, distance in of_net.items()
                         for radius in [0, *sorted(radii)] if measured(attack, of_net, norm, radius))])


def curve(distance, furthest):
    """The steps of a curve, of the distances [N] of faces: (where from 0 to `furthest` one is lost, the accuracy in %
    from there on)."""
    inside = np.sort(distance[distance <= furthest])
    shares = 1.0 - np.arange(len(inside) + 1) / len(distance)
    return [0.0, *inside, furthest], 100 * np.append(shares, shares[-1])


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
        # Matplotlib sets what stands between $ as a formula, and leaves out what begins with _.
        label = f"./{name}" if name.startswith("_") else name
        for style, (attack, distance) in enumerate(of_net.items()):
            whole = attack == ROBUST or len(of_net) == 1
            axes.step(*curve(distance, furthest), where="post", color=f"C{number}",
                      linestyle="-" if whole else ["--", ":", "-.", (0, (1, 4)), (0, (6, 4))][style % 5],
                      linewidth=2.0 if whole else 1.0, label=f"{label}, {attack}".replace("$", r"\$"))
    axes.set(xlim=(0, furthest), ylim=(0, 100), xlabel=f"{NAMES[norm]} distance of the saved file, grey levels",
             ylabel="accuracy, %")
    axes.secondary_xaxis("top", functions=(lambda grey: grey / 255, lambda unit: unit * 255)).set_xlabel(
        f"{NAMES[norm]} distance of pictures in 0..1")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Image.open(content)
