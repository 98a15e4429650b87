"""Mislead a trained net: learn a small noise DX such that it says the wrong label of face + DX.

    python Main_adversarial.py face.png woman
    python Main_adversarial.py face.png woman --norm linf --box 12,12,24,24
    python Main_adversarial.py face.png woman --attack pgd --radius 4
    python Main_adversarial.py face.png woman --survive jpeg,shift,light
    python Main_adversarial.py face.png woman --logs logs/adv      and watch: tensorboard --logdir logs

Writes adv_<name>_ori, _mod and _amp (the noise 50 times amplified) as .raw and .png, and the three side by side.
"""
import sys

import Console  # first: it silences TensorFlow's start

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Annotated

import tensorflow as tf
from PIL import Image

import Attacks
import Dataset
import Models
import Training
from DataBases import photo

ATTACK_OPTIONS = sorted(set().union(*map(Attacks.options, Attacks.ATTACKS)))
ADVICE = {"steps": "more", "weight": "a smaller", "radius": "a larger", "box": "a larger"}
FILES = {"ori": "_ori.raw", "ori_png": "_ori.png", "mod": "_mod.raw", "mod_png": "_mod.png",  # adv_<name>...
         "amp": "_amp.raw", "amp_png": "_amp.png", "strip": ".png"}
PICTURES = 50  # in TensorBoard's slider, beside the saved one


@dataclasses.dataclass(frozen=True)
class Options:
    path: Annotated[str, dict(help="photo, of which the largest face is taken, or face (.raw or picture of 48x48)",
                              positional=True, metavar="PATH")]
    wronglabel: Annotated[str, dict(help="what the net shall say: man or woman (also male, female, homme, femme, 0, 1)",
                                    positional=True, metavar="WRONGLABEL")]
    attack: Annotated[str, dict(help="how DX is found: dx, the course's search, or another of the literature",
                                choices=list(Attacks.ATTACKS))] = "dx"
    norm: Annotated[str | None, dict(help="dx: penalty that keeps DX small (default: l2); pgd: linf or l2, its ball "
                                     "(default: linf)", choices=list(Attacks.PENALTIES))] = None
    weight: Annotated[float | None, dict(help="dx: of the penalty; looked for by default", low=0, most=1e9)] = None
    radius: Annotated[float | None, dict(help="fgsm, pgd: how far the noise may go, in grey levels (default: 8, "
                                         "pgd's l2 255)", low=1, most=255 * Dataset.SIDE)] = None
    steps: Annotated[int | None, dict(help="all but fgsm: training steps of DX (default: dx, ddn, sigma-zero and jsma "
                                      "300, cw 500, deepfool 50, pgd 40)", low=1)] = None
    random_start: Annotated[bool | None, dict(help="pgd: begin anywhere in the ball")] = None
    rounding: Annotated[bool | None, dict(help="dx, ddn: show the net the rounded picture (default: yes)")] = None
    box: Annotated[str | None, dict(help="rectangle in pixels outside of which not a bit changes",
                                    metavar="X,Y,W,H")] = None
    survive: Annotated[tuple, dict(help="fool also after jpeg, shift, light", nargs="+", metavar="CHANGE")] = ()
    checkpoint: Annotated[str | None, dict(help="folder or prefix; by default the newest training under checkpoints/, "
                                           "else pretrained/", metavar="DIR_OR_PREFIX")] = None
    out: Annotated[str, dict(help="folder of what is written", metavar="DIR")] = "."
    name: Annotated[str | None, dict(help="<name> of the files, by default the picture's", metavar="NOM1_NOM2")] = None
    logs: Annotated[str | None, dict(help="folder in which TensorBoard finds how the noise grew, step by step",
                                     metavar="DIR")] = None
    all: Annotated[bool, dict(help="every face of a photo, the largest first: adv_<name>_1, adv_<name>_2, ...")] = False
    json: Annotated[bool, dict(help="one JSON document on stdout, nothing else")] = False
    show: Annotated[bool, dict(help="open the strip in a window where there is a display")] = True
    seed: Annotated[int | None, dict(help="dx, pgd --random-start, --survive: of the draws (default: 0)", low=0)] = None


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    Training.make_deterministic(options.seed or 0)
    wrong = Dataset.parse_label(options.wronglabel)
    mask = None if options.box is None else Attacks.box_mask(Console.parse_box(options.box))
    name = options.name or Path(options.path).stem
    if Path(name).name != name:
        raise Dataset.UserError(f"--name {name}: expected a name without folders; --out takes the folder")
    faces = photo.read(options.path, options.all)
    net, _ = Models.load(options.checkpoint or Console.default_checkpoint())
    reports = [mislead(options, net, face, wrong, mask, f"{name}_{number}" if options.all else name)
               for number, face in enumerate(faces, 1)]
    if options.json:
        print(json.dumps(reports if options.all else reports[0], indent=1))
    elif options.logs:
        print(f"steps written; to watch the noise grow: tensorboard --samples_per_plugin images={PICTURES + 1} "
              f"--logdir {options.logs}", file=sys.stderr)
    return 0 if all(report["fools"] for report in reports) else 1


def mislead(options, net, face, wrong, mask, name):
    """Attack one face, write adv_<name>_*, say what came of it: the report."""
    if face.note and not options.json:
        print(f"{options.path}: {face.note}", file=sys.stderr)
    given = {option: getattr(options, option) for option in ATTACK_OPTIONS}
    survive = ",".join(options.survive).split(",") if options.survive else ()
    given["radius"] = options.radius and options.radius / Dataset.GREY_LEVELS
    paths = {kind: str(Path(options.out) / f"adv_{name}{end}") for kind, end in FILES.items()}
    Console.must_keep([options.path], paths.values(), "--name or --out")
    Console.ask(net, face.grey)  # refuses a net that has diverged, before anything is written
    started = time.monotonic()
    attack = Attacks.build(options.attack, net, face.grey.reshape(1, -1), [wrong], mask, survive, **given)
    found = search(attack, options.logs and Console.claim(Path(options.logs) / f"adv_{name}"))
    seconds = time.monotonic() - started
    write(found, paths)
    report = describe(net, found, paths, wrong) | {
        "attack": options.attack, "norm": attack.norm, "steps": int(attack.done), "seconds": seconds,
        "passes": {"forward": found.forward, "backward": found.backward}} | ({"box": [*face.box]} if face.box else {})
    if survive:
        shares = Attacks.survival(net, found.modified, [wrong], survive)
        report["survives"] = {change: float(share[0]) for change, share in shares.items()}
    before, after = (Console.verdict(report[when]) for when in ("before", "after"))
    tiles = [(face.view, face.note)] if face.view else []
    tiles += [(found.original[0], f"original: {before}"), (found.modified[0], f"modified: {after}"),
              (found.amplified[0], "noise, 50 times")]
    shown = Console.present(Console.strip(*zip(*tiles)), paths["strip"], options.show and not options.json)
    if not options.json:
        print_report(options, before, after, report)
        print(shown, file=sys.stderr)
    return report


def search(attack, logs=None):
    """Run the attack, its steps shown by a bar and, with a folder `logs`, written for TensorBoard: its Result."""
    progress = Console.Progress(attack.steps)
    writer = tf.summary.create_file_writer(str(logs)) if logs else tf.summary.create_noop_writer()
    with progress, writer.as_default():
        for state in attack.run():
            progress.update(state["step"], "fools" if state["fooled"] else "does not fool yet")
            if logs:
                log_step(attack, state["step"])
        found = attack.result()
        if logs:
            log_pictures(attack.faces, found.modified, int(attack.done) + 1)
    writer.close()
    return found


def log_step(attack, step):
    """Write what the step asked the net about: its curves and, of PICTURES of all steps, the picture."""
    pictures, curves = attack.watched()
    for name, (value,) in curves.items():
        tf.summary.scalar(name, value, step)
    if (step - 1) % math.ceil(attack.steps / PICTURES) == 0:
        log_pictures(attack.faces, pictures, step)


def log_pictures(faces, pictures, step):
    for name, picture in ("picture", pictures), ("noise, 50 times", Attacks.amplify(faces, pictures)):
        tf.summary.image(name, picture.reshape(1, Dataset.SIDE, Dataset.SIDE, 1), step)


def write(found, paths):
    """Write the three pictures as .raw and .png."""
    contents = {}
    for kind, picture in ("ori", found.original), ("mod", found.modified), ("amp", found.amplified):
        contents[paths[kind]] = picture.tobytes()
        contents[paths[f"{kind}_png"]] = Dataset.to_png(Image.fromarray(picture.reshape(Dataset.SIDE, Dataset.SIDE)))
    Dataset.write_all(contents)


def describe(net, found, paths, wrong):
    """What the net says of the files _ori.raw and _mod.raw, and how far apart they are."""
    report = {"paths": paths, "wrong_label": Dataset.LABELS[wrong]}
    for when, kind in ("before", "ori"), ("after", "mod"):
        answer = Console.ask(net, Dataset.read_face(paths[kind])[0])
        share = answer["probability"] if answer["label"] == report["wrong_label"] else 1.0 - answer["probability"]
        report[when] = answer | {"probability_of_wrong_label": share}
    report["fools"] = report["after"]["label"] == report["wrong_label"]
    grey = {norm: float(value[0]) for norm, value in Attacks.distances(found.original, found.modified).items()}
    report |= {"pixels_changed": int(grey.pop("pixels_changed")), "grey_levels": grey,
               "unit_interval": {norm: value / 255 for norm, value in grey.items()}}
    return report if found.weight is None else report | {"weight": float(found.weight[0])}


def print_report(options, before, after, report):
    grey, unit = report["grey_levels"], report["unit_interval"]
    print(f"{options.path}: {before}")
    print(f"{report['paths']['mod']}: {after}")
    print(f"noise: L2 {grey['l2']:.1f}, L1 {grey['l1']:.0f}, Linf {grey['linf']:.0f} grey levels\n"
          f"       L2 {unit['l2']:.3f}, L1 {unit['l1']:.2f}, Linf {unit['linf']:.3f} of a 0..1 image")
    weight = f", weight {report['weight']:.3g}" if "weight" in report else ""
    print(f"{report['pixels_changed']} of {Dataset.DIM} pixels changed; {report['steps']} steps, "
          f"{report['seconds']:.1f} s{weight}")
    if "survives" in report:
        shares = ", ".join(f"{change} {100 * share:.0f} %" for change, share in report["survives"].items())
        print(f"fools after {shares} of 100 changes each")
    if before.split()[0] == report["wrong_label"]:
        print(f"the net says {report['wrong_label']} of the original already: name the other label to mislead it")
    elif not report["fools"]:
        advice = ["it without --no-rounding"] if options.rounding is False else [
            f"{how} --{option}" for option, how in ADVICE.items() if getattr(options, option)
            or option in ("steps", "radius") and option in Attacks.options(options.attack)]
        print(f"not misled: the net gives {report['wrong_label']} "
              f"{100 * report['after']['probability_of_wrong_label']:.1f} %, from "
              f"{100 * report['before']['probability_of_wrong_label']:.1f} %; try {' or '.join(advice)}")


if __name__ == "__main__":
    sys.exit(Console.run(main))
