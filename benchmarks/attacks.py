"""The smallest noise, ours and that of toolkits: one net, the same faces and targets, as many passes, the saved files.

    python benchmarks/attacks.py --database path/to/data_test4k.bin
    python benchmarks/attacks.py --database path/to/data_test4k.bin --norm l1
    python benchmarks/attacks.py --database path/to/data_16k.bin --faces 40 --passes 500 --tune

Misleads the first faces that the net calls right and prints a line an attack and a budget of passes. Distances are L2
of 0..1 pictures (`--norm`: L1, Linf, or L0, how many pixels differ), medians over all faces, one that was not misled
counting as infinitely far (`their L2`: over the files that fool). `repaired` is the noise scaled up, by half a percent
at a time, until the rounded picture fools (L0: rounded alone); `area` that under the curve of accuracy against the
distance of these files, from 0 to FURTHEST. What is called found are pictures inside 0..1 of which the net says the
wrong label; falsely reported are those that an attack returns as found and that are not. Passes are counted at the
net, a face. A toolkit's attack that crashes is reported, and the others run.

Then comes for each budget the toolkits' least repaired median within it, also of the smaller budgets, as more passes
may make it worse, and our share of it. Last come the times until the median of our search is in floats that of
Foolbox's DDN with 500 steps (L2), and that of our norm's first attack the best of the toolkits' repaired. `--tune` runs
every setting of the toolkits' options, without it the first one alone: tune on faces other than those reported.
Needs the extra `bench` (foolbox, adversarial-robustness-toolbox).
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import Console

import contextlib
import dataclasses
import importlib
import time
from typing import Annotated

import numpy as np
import tensorflow as tf

import Attacks
import Dataset
import Models
from DataBases import synthesise

TOOLKITS = {"Foolbox": ["foolbox"], "ART": ["art.attacks.evasion", "art.estimators.classification"]}
ORDERS = {"l2": 2, "l1": 1, "linf": np.inf, "l0": 0}
REPAIRS = 1.005 ** np.arange(600)  # times the noise, up to 20
FURTHEST = {"l2": 2.0, "l1": 40.0, "linf": 0.1, "l0": 200.0}
UNCHANGED = 1e-6  # of 0..1: what floats make of a pixel that an attack leaves as it is
RACE = (20, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500)
RIVAL = ("Foolbox DDN", 500)


class Counted:
    """A net [?, 2304] -> [?, 2], and how many faces it was asked about (`forward`), how many gradients (`backward`)."""

    def __init__(self, net):
        self.net = net
        self.forward, self.backward = (tf.Variable(0, dtype=tf.int64, trainable=False) for _ in range(2))

    def __call__(self, x):
        return self.net(self._count(x))

    @tf.custom_gradient
    def _count(self, x):
        faces = tf.shape(x, tf.int64)[0]
        self.forward.assign_add(faces)

        def gradient(upstream):
            self.backward.assign_add(faces)
            return upstream
        return tf.identity(x), gradient


class UnitInterval(tf.Module):
    """A net as toolkits ask it, of [?, 48, 48, 1] in 0..1."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def __call__(self, x, training=False):
        x = tf.reshape(tf.cast(x, tf.float32), [-1, Dataset.DIM])
        return self.net(x * (Dataset.WHITE - Dataset.BLACK) + Dataset.BLACK)


# The contestants: of (net, faces, wrong, passes, settings) the pictures [N, 2304] in 0..1, and [N] bool: "found"

def ours(name):
    def mislead(net, faces, wrong, passes, settings):
        attack = Attacks.build(name, net, faces, wrong, steps=passes, **settings)
        for _ in attack.run():
            pass
        found = attack.result()
        pictures = (attack.best.numpy() - Dataset.BLACK) / (Dataset.WHITE - Dataset.BLACK)
        return pictures, found.fools if attack.rounding else np.isfinite(attack.closest.numpy())
    return mislead


def foolbox(name, targeted=True, passes_a_step=1):
    def mislead(net, faces, wrong, passes, settings):
        import foolbox as toolkit
        model = toolkit.TensorFlowModel(UnitInterval(net), bounds=(0, 1))
        steps = max(passes // (passes_a_step * settings.get("binary_search_steps", 1)), 1)
        attack = getattr(toolkit.attacks, name)(steps=steps, **settings)
        criterion = (toolkit.criteria.TargetedMisclassification(tf.constant(wrong, tf.int64)) if targeted else
                     toolkit.criteria.Misclassification(tf.constant(1 - wrong, tf.int64)))
        _, pictures, found = attack(model, tf.constant(images(faces)), criterion, epsilons=None)
        return flat(pictures), np.asarray(found)
    return mislead


def art(name, passes_a_step, limit=lambda steps: {"max_iter": steps}):
    """Returns a picture for each face and says of none that it was found: those that it changed count as such.

    limit  the attack's option that ends it, of a number of steps
    """
    def mislead(net, faces, wrong, passes, settings):
        from art.attacks import evasion
        from art.estimators.classification import TensorFlowV2Classifier
        classifier = TensorFlowV2Classifier(
            model=UnitInterval(net), nb_classes=2, input_shape=(Dataset.SIDE, Dataset.SIDE, 1), clip_values=(0.0, 1.0),
            loss_object=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        steps = max(passes // (passes_a_step * settings.get("binary_search_steps", 1)), 1)
        attack = getattr(evasion, name)(classifier, batch_size=len(faces), verbose=False, **limit(steps), **settings)
        targets = {"y": np.eye(2)[wrong]} if settings.get("targeted") else {}
        pictures = flat(attack.generate(images(faces), **targets))
        return pictures, np.any(pictures != flat(images(faces)), axis=1)
    return mislead


def images(faces):
    return (faces / 255).astype(np.float32).reshape(-1, Dataset.SIDE, Dataset.SIDE, 1)


def flat(pictures):
    return np.asarray(pictures, np.float32).reshape(-1, Dataset.DIM)


def grid(settings, **options):
    """`settings`, and what differs from them in one option: [{option: value}]."""
    return [settings, *(settings | {option: value} for option, values in options.items() for value in values
                        if settings[option] != value)]


CW = {"binary_search_steps": 5, "stepsize": 0.003, "initial_const": 1e-3, "abort_early": False}  # Foolbox's
EAD = {"binary_search_steps": 5, "decision_rule": "L1"}
CONTESTANTS = {  # of a norm {name: (attack, settings, the first of them reported)}
    "l2": {
        "dx": (ours("dx"), [{}]),
        "dx, floats": (ours("dx"), [{"rounding": False}]),
        "ddn": (ours("ddn"), [{}]),
        "Foolbox DDN": (foolbox("DDNAttack"), grid({"init_epsilon": 0.3, "gamma": 0.05}, init_epsilon=[1.0, 3.0],
                                                   gamma=[0.02, 0.1])),
        "Foolbox C&W": (foolbox("L2CarliniWagnerAttack"), grid(
            CW, binary_search_steps=[2, 9], stepsize=[0.01, 0.03, 0.1], initial_const=[0.1, 1.0], abort_early=[True])),
        "Foolbox C&W, step 0.01": (foolbox("L2CarliniWagnerAttack"), [CW | {"stepsize": 0.01}]),  # its default
        "Foolbox DeepFool": (foolbox("L2DeepFoolAttack", targeted=False), grid({"overshoot": 0.02}, overshoot=[1e-4])),
        "ART C&W": (art("CarliniL2Method", 10), grid(
            {"targeted": True, "binary_search_steps": 5, "learning_rate": 0.1, "initial_const": 0.1},
            binary_search_steps=[2], learning_rate=[0.01], initial_const=[0.01, 1.0])),
        "ART DeepFool": (art("DeepFool", 3), grid({"epsilon": 1e-6}, epsilon=[0.02])),
    },
    "l1": {
        "dx": (ours("dx"), [{"norm": "l1"}]),
        "dx, floats": (ours("dx"), [{"norm": "l1", "rounding": False}]),
        "Foolbox FMN": (foolbox("L1FMNAttack"), grid(
            {"max_stepsize": 3.0, "gamma": 0.05}, max_stepsize=[1.0, 10.0], gamma=[0.02, 0.2])),
        "Foolbox EAD": (foolbox("EADAttack", passes_a_step=2), grid(
            EAD | {"initial_stepsize": 0.01, "regularization": 0.01, "initial_const": 1.0, "abort_early": False},
            binary_search_steps=[2, 9], initial_stepsize=[0.003, 0.03, 0.1], regularization=[0.003, 0.03],
            initial_const=[0.1, 10.0])),
        "ART EAD": (art("ElasticNet", 6), grid(
            EAD | {"targeted": True, "learning_rate": 0.1, "beta": 0.01, "initial_const": 10.0},
            binary_search_steps=[2], learning_rate=[0.01, 0.3], beta=[0.003, 0.03], initial_const=[1.0])),
    },
    "linf": {
        "dx": (ours("dx"), [{"norm": "linf"}]),
        "dx, floats": (ours("dx"), [{"norm": "linf", "rounding": False}]),
        "Foolbox FMN": (foolbox("LInfFMNAttack"), grid(
            {"max_stepsize": 1.0, "gamma": 0.05}, max_stepsize=[0.3, 3.0, 10.0], gamma=[0.02, 0.2])),
        "Foolbox DeepFool": (foolbox("LinfDeepFoolAttack", targeted=False), grid({"overshoot": 0.02},
                                                                                 overshoot=[1e-4])),
    },
    "l0": {
        "sigma-zero": (ours("sigma-zero"), [{}]),
        "jsma": (ours("jsma"), [{}]),
        "dx, l1": (ours("dx"), [{"norm": "l1"}]),
        "Foolbox FMN": (foolbox("L0FMNAttack"), grid(
            {"max_stepsize": 10.0, "gamma": 0.05}, max_stepsize=[1.0, 3.0, 30.0], gamma=[0.02, 0.2])),
        "ART JSMA": (art("SaliencyMapMethod", 3, lambda steps: {"gamma": 2 * steps / Dataset.DIM}),  # by pairs
                     grid({"theta": 1.0}, theta=[-1.0, 0.3])),
    },
}


@dataclasses.dataclass(frozen=True)
class Options:
    database: Annotated[str, dict(help="data_*.bin of the faces", required=True)] = ""
    checkpoint: Annotated[str, dict(help="folder or prefix of the net")] = str(synthesise.SHIPPED)
    faces: Annotated[int, dict(help="how many faces, the first that the net calls right", low=1)] = 200
    passes: Annotated[tuple[int, ...], dict(help="budgets, in passes forward", nargs="+", low=1)] = (100, 500, 1000)
    norm: Annotated[str, dict(help="in which the noise is small", choices=list(CONTESTANTS))] = "l2"
    attacks: Annotated[tuple[str, ...], dict(help="which; by default all", nargs="+", metavar="NAME")] = ()
    tune: Annotated[bool, dict(help="every setting of the toolkits' options, not the first alone")] = False


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of N faces: shares, medians of distances, counts of pictures, passes a face, seconds."""
    found: float
    distance: float
    files: float
    files_distance: float
    repaired: float
    repaired_distance: float
    area: float
    nan: int
    black: int
    outside: int
    false: int
    forward: float
    backward: float
    seconds: float


def is_toolkit(name):
    return name.split()[0] in TOOLKITS


def compete(name, settings, net, faces, wrong, norm, passes):
    """The Row of a contestant, or the exception that a toolkit's ended with."""
    counted, attack = Counted(net), CONTESTANTS[norm][name][0]
    started = time.monotonic()
    try:
        pictures, reported = attack(counted, faces, wrong, passes, settings)
    except Exception as error:
        if not is_toolkit(name):
            raise
        return error
    seconds = time.monotonic() - started
    return Row(*judge(net, faces, wrong, norm, pictures, reported).values(), int(counted.forward) / len(faces),
               int(counted.backward) / len(faces), seconds)


def judge(net, faces, wrong, norm, pictures, reported):
    """Row's first fields, of the pictures [N, 2304] in 0..1 and what the attack says of each: [N] bool."""
    finite = np.isfinite(pictures).all(1)
    black, outside = (pictures == 0.0).all(1), ((pictures < -1e-6) | (pictures > 1.0 + 1e-6)).any(1)
    pictures = np.nan_to_num(pictures, posinf=0.0, neginf=0.0)
    noise = pictures - faces / 255.0
    says = net(tf.constant(pictures * (Dataset.WHITE - Dataset.BLACK) + Dataset.BLACK, tf.float32)).numpy().argmax(1)
    found = (says == wrong) & finite & ~outside
    saved = far(net, faces, wrong, norm, noise, [1.0])
    repaired = saved if norm == "l0" else far(net, faces, wrong, norm, noise, REPAIRS)
    return {"found": found.mean(), "distance": np.median(np.where(found, lengths(noise, norm), np.inf)),
            "files": np.isfinite(saved).mean(),
            "files_distance": np.median(saved[np.isfinite(saved)]) if np.isfinite(saved).any() else np.inf,
            "repaired": np.isfinite(repaired).mean(), "repaired_distance": np.median(repaired),
            "area": np.minimum(repaired, FURTHEST[norm]).mean(), "nan": int((~finite).sum()),
            "black": int(black.sum()), "outside": int(outside.sum()), "false": int((reported & ~found).sum())}


def lengths(noise, norm):
    """[N] of noise [N, 2304], in 0..1; of l0 how many pixels it changes."""
    return np.linalg.norm(np.where(np.abs(noise) < UNCHANGED, 0.0, noise), ORDERS[norm], axis=1)


def far(net, faces, wrong, norm, noise, scales):
    """Distance of the first of the files face + scale x noise that fools; infinite where none does: [N]."""
    distance = np.full(len(faces), np.inf)
    for scale in scales:
        rows = np.flatnonzero(np.isinf(distance))
        if not len(rows):
            break
        files = np.clip(np.round(faces[rows] + 255.0 * scale * noise[rows]), 0, 255).astype(np.uint8)
        fools = net(tf.constant(Dataset.to_float(files))).numpy().argmax(1) == wrong[rows]
        distance[rows[fools]] = lengths((files[fools] - faces[rows[fools]].astype(float)) / 255, norm)
    return distance


def best_peer(rows, budget):
    """The (name, passes) of the toolkits' least repaired median within a budget; None where there is none.

    rows  {(name, passes): Row or exception}
    """
    medians = {(name, passes): row.repaired_distance for (name, passes), row in rows.items()
               if is_toolkit(name) and passes <= budget and isinstance(row, Row) and np.isfinite(row.repaired_distance)}
    return min(medians, key=medians.get, default=None)


def compare(rows, budget):
    """What our contestants have of the best peer's repaired median within a budget, as a line."""
    peer = best_peer(rows, budget)
    if peer is None:
        return f"{budget} passes: no toolkit's attack whose repaired files have a median"
    least = rows[peer].repaired_distance
    shares = (f"{name} {row.repaired_distance / least:.3f}" for (name, passes), row in rows.items()
              if passes == budget and not is_toolkit(name))
    return f"{budget} passes: best repaired peer {peer[0]} of {peer[1]}, {least:.4f}; times it: {'; '.join(shares)}"


def race(net, faces, wrong, norm, name, measure, rival, row):
    """Say after how many passes and seconds the median `measure` of our search is that of a rival's Row.

    rival  (name, passes)
    """
    goal, called, settings = getattr(row, measure), measure.replace("distance", norm), CONTESTANTS[norm][name][1][0]
    if not np.isfinite(goal):
        print(f"{name}: no race for {called}, as {rival[0]} of {rival[1]} misled fewer than half of the faces")
        return
    for passes in RACE:
        ours = compete(name, settings, net, faces, wrong, norm, passes)
        if getattr(ours, measure) <= goal:
            print(f"{name}: {called} {getattr(ours, measure):.4f} after {passes} passes, {ours.seconds:.1f} s; "
                  f"{rival[0]} {goal:.4f} after {rival[1]}, {row.seconds:.1f} s: "
                  f"{ours.seconds / row.seconds:.2f} of its time")
            return
    print(f"{name}: not {called} {goal:.4f} in {RACE[-1]} passes")


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    contestants, norm = CONTESTANTS[options.norm], options.norm
    if unknown := set(options.attacks) - {*contestants}:
        raise Dataset.UserError(f"--attacks {min(unknown)!r}: expected some of {', '.join(map(repr, contestants))}")
    net, _ = Models.load(options.checkpoint)
    ask = tf.function(lambda x: net(x), input_signature=[tf.TensorSpec([None, Dataset.DIM])])
    dataset = Dataset.open_database(options.database)
    annotated = dataset.label.argmax(1)
    right = np.flatnonzero(dataset.answers(ask) == annotated)[:options.faces]
    if not len(right):
        raise Dataset.UserError(f"{options.database}: no face in it that the net calls right; choose another")
    faces, wrong = dataset.data.grey(right), 1 - annotated[right]
    names = options.attacks or [*contestants]
    for module in {module for name in names for module in TOOLKITS.get(name.split()[0], [])}:  # ahead of the clock
        with contextlib.suppress(ImportError):  # its rows say so
            importlib.import_module(module)
    print(f"{len(faces)} faces")
    distance = norm.capitalize()
    print(f"| attack | budget | found | {distance} | files that fool | their {distance} | repaired | {distance} | area "
          "| NaN | black | outside 0..1 | falsely reported | forward | backward | s |")
    print("|---" * 16 + "|")
    rows = {}
    for passes in options.passes:
        for name in names:
            settings = contestants[name][1]
            for given in settings if options.tune else settings[:1]:
                row = compete(name, given, ask, faces, wrong, norm, passes)
                title = f"{name} {given}" if options.tune else name
                print(f"| {title} | {passes} | {line(row)} |", flush=True)
                rows[name, passes] = row
    if options.tune:
        return
    for passes in options.passes:
        print(compare(rows, passes))
    if isinstance(rows.get(RIVAL), Row):
        race(ask, faces, wrong, norm, "dx, floats", "distance", RIVAL, rows[RIVAL])
    if peer := best_peer(rows, max(options.passes)):
        race(ask, faces, wrong, norm, next(iter(contestants)), "repaired_distance", peer, rows[peer])


def line(row):
    """A Row's columns; of an exception that it crashed, and its first words."""
    if isinstance(row, Exception):
        return f"crashed: {type(row).__name__}: {' '.join(str(row).split())[:80]}"
    return (f"{100 * row.found:.1f} % | {row.distance:.4f} | {100 * row.files:.1f} % | {row.files_distance:.4f} | "
            f"{100 * row.repaired:.1f} % | {row.repaired_distance:.4f} | {row.area:.4f} | {row.nan} | {row.black} | "
            f"{row.outside} | {row.false} | {row.forward:.0f} | {row.backward:.0f} | {row.seconds:.1f}")


if __name__ == "__main__":
    sys.exit(Console.run(main))
