"""How robust trained nets are: accuracy against the distance of the noise, for any nets and attacks.

    python Main_robustness.py path/to/data_test4k.bin --checkpoint checkpoints/a checkpoints/b --attack dx ddn pgd
    python Main_robustness.py path/to/data_test4k.bin --checkpoint checkpoints/a checkpoints/b --norm linf
    python Main_robustness.py path/to/data_test4k.bin --checkpoint checkpoints/a checkpoints/b --transfer

Prints the table and writes it as robustness_<norm>.csv, the curves as robustness_<norm>.png (with Matplotlib: pip
install ".[plots]"). What counts is the saved file: a face is lost at the distance of the nearest file found that the
net calls wrong, at 0 where it is wrong without noise. Interrupted, the same command goes on.

--transfer shows instead which nets are fooled by the files made on others, by PGD that uses the whole ball, and writes
transfer_<norm>.csv. With --substitute NET --query-faces DATABASE files are made also on a net that has learned nothing
but what the attacked one says of --queries faces: the attacker of a black box.
"""
import sys

import Console  # first: it silences TensorFlow's start

import dataclasses
import math
from pathlib import Path
from typing import Annotated

import numpy as np
import tensorflow as tf

import Attacks
import DataBases.faces
import DataBases.synthesise
import Dataset
import Models
import Robustness
import Training


@dataclasses.dataclass(frozen=True)
class Options:
    database: Annotated[str, dict(help="faces to attack: a name such as test10k (DataBases/data_test10k.bin) or the "
                                  "path of a data_*.bin", positional=True, metavar="DATABASE")]
    checkpoint: Annotated[tuple, dict(help="folders or prefixes of the nets; by default the newest training under "
                                      "checkpoints/, else pretrained/", nargs="+", metavar="DIR_OR_PREFIX")] = ()
    attack: Annotated[tuple, dict(help="attacks; robust is the least of all", nargs="+",
                                  choices=list(Attacks.ATTACKS))] = ("dx", "pgd")
    norm: Annotated[str, dict(help="the distance", choices=list(Robustness.RADII))] = "l2"
    radii: Annotated[tuple[float, ...], dict(help="distances of the table, and balls of fgsm and pgd, in grey levels "
                                             "(default: l2 16 .. 510, l1 128 .. 16320, linf 1 .. 16; with "
                                             "--transfer 255, 8160, 8)", nargs="+", low=1, most=255 * Dataset.DIM)] = ()
    steps: Annotated[int | None, dict(help="of every attack but fgsm (default: dx, ddn, sigma-zero and jsma 300, cw "
                                      "500, deepfool 50, pgd 40 a radius)", low=1)] = None
    jump: Annotated[tuple[float, ...], dict(help="show each net also with JumpReLUs of these thresholds in place of "
                                            "its ReLUs (Erichson et al. 2019), attacked straight through", nargs="+",
                                            low=0)] = ()
    purify: Annotated[tuple[float, ...], dict(help="show each net also asked about the likeliest face behind the "
                                              "picture, by the model of DataBases/, as if noise of so many grey levels "
                                              "a pixel lay over it; attacked through that", nargs="+", low=0,
                                              most=255)] = ()
    transfer: Annotated[bool, dict(help="which nets are fooled by the files made on others")] = False
    substitute: Annotated[str | None, dict(help="transfer: make files also on a net of this kind that learns each "
                                           "checkpoint's answers alone", choices=list(Models.NETWORKS))] = None
    query_faces: Annotated[str | None, dict(help="database of which the substitute's faces are the first",
                                            metavar="DATABASE")] = None
    queries: Annotated[int, dict(help="how many faces each checkpoint is asked about", low=2)] = 2000
    faces: Annotated[int | None, dict(help="how many faces, the first of the database; all by default", low=1)] = None
    batch_size: Annotated[int, dict(help="faces at once; what is kept when interrupted is whole batches", low=1)] = 200
    out: Annotated[str, dict(help="folder of the results", metavar="DIR")] = "robustness"
    show: Annotated[bool, dict(help="open the picture in a window where there is a display")] = True


def main(argv=None):
    given = Console.parse(Options, argv, __doc__)
    options = Options(**given)
    check(given)
    Training.make_deterministic(0)
    radii = options.radii or (Robustness.TRANSFER_RADII if options.transfer else Robustness.RADII)[options.norm]
    options = dataclasses.replace(options, radii=tuple(sorted(set(radii))))
    dataset = Dataset.open_database(options.database, nbdata=options.faces)
    queries = options.substitute and Dataset.open_database(options.query_faces, nbdata=options.queries)
    model = DataBases.faces.load(DataBases.synthesise.MODEL) if options.purify else None
    nets = {}
    for path in options.checkpoint or [Console.default_checkpoint()]:
        nets[str(path)] = Models.load(path)[0]
        nets |= {f"{path}, jump {kappa}": Robustness.with_jump(Models.load(path)[0], kappa) for kappa in options.jump}
        nets |= {f"{path}, purified {noise}": Robustness.Purified(nets[str(path)], model, noise)
                 for noise in options.purify}
    try:
        return (transfer if options.transfer else curves)(options, nets, dataset, queries)
    except KeyboardInterrupt:
        print(f"\ninterrupted, and saved in {options.out}; the same command goes on")
        return 130


def check(given):
    """Refuse options that do not go together."""
    black_box = {"substitute", "query_faces", "queries"} & given.keys()
    Console.must_stand_together(given, dict.fromkeys(sorted(black_box), "transfer"))
    if given.get("transfer") and "attack" in given:
        raise Dataset.UserError("--transfer makes its files by PGD; leave --attack out")
    if black_box and not {"substitute", "query_faces"} <= black_box:
        raise Dataset.UserError("a substitute needs both --substitute NET and --query-faces DATABASE")


def curves(options, nets, dataset, _):
    """Accuracy against distance."""
    faces, labels = dataset.data.grey(), dataset.label.argmax(1)
    bench = Robustness.Bench(nets, faces, labels, attack_options(options), options.norm, options.radii, options.out,
                             options.batch_size)
    Console.work(bench)
    distances = bench.distances()
    print(f"accuracy in % of {len(faces)} faces of {options.database}, by {Robustness.NAMES[options.norm]} distance of "
          "the saved files")
    print("\n".join(Robustness.table(distances, options.norm, options.radii)))
    for attack in dict.fromkeys(options.attack):
        if options.radii[0] < (least := Robustness.least_radius(attack, options.norm)):
            print(f"{attack} was not run below {Robustness.NAMES[options.norm]} {least:g}, where it can make no file",
                  file=sys.stderr)
    for name, net in nets.items():
        parts = np.array_split(faces, math.ceil(len(faces) / options.batch_size))
        if hidden := sum(Attacks.without_gradient(net, part).sum() for part in parts):
            print(f"{name}: no gradient to follow from {hidden} of {len(faces)} faces; that attacks fail there does "
                  "not mean that the net is robust", file=sys.stderr)
    stem = Path(options.out) / f"robustness_{options.norm}"
    sheet = Robustness.sheet_of_values(distances, options.norm, options.radii, options.database, bench.options)
    Dataset.write_whole(f"{stem}.csv", sheet.encode())
    print(f"table saved as {stem}.csv", file=sys.stderr)
    try:
        picture = Robustness.plot(distances, options.norm, options.radii)
    except Dataset.UserError as missing:
        print(missing, file=sys.stderr)
        return 0
    print(Console.present(picture, f"{stem}.png", options.show), file=sys.stderr)
    return 0


def transfer(options, nets, dataset, queries):
    """Which nets are fooled by the files made on others."""
    least = Robustness.least_radius("pgd", options.norm)
    if options.radii[0] < least:
        raise Dataset.UserError(f"--radii {options.radii[0]:g}: PGD needs {least:g} or more under {options.norm}")
    faces, labels = dataset.data.grey(), dataset.label.argmax(1)
    attacked = dict(nets)
    for name, net in nets.items() if queries else ():
        training = Robustness.substitute(net, queries, options.substitute, Path(options.out) / "substitutes")
        Console.learn(training, "substitute")
        attacked[f"substitute of {name}"] = pupil = Models.load(training.out)[0]
        says, repeats = (dataset.answers(tf.function(lambda x: asked(x))) for asked in (net, pupil))
        print(f"substitute of {name}: {options.substitute}, {queries.nbdata} queries, agrees with it on "
              f"{100 * np.mean(says == repeats):.2f} % of the faces")
    made = Robustness.Transfer(attacked, faces, labels, options.norm, options.radii, options.steps or 40, options.out,
                               options.batch_size)
    Console.work(made)
    fooled = made.fooled(nets)
    print("files made on the row's net that fool the column's, in % of the faces that this one calls right")
    print("\n".join(Robustness.matrix(fooled, options.norm)))
    path = Path(options.out) / f"transfer_{options.norm}.csv"
    sheet = Robustness.matrix_of_values(fooled, options.norm, options.database, options.steps or 40)
    Dataset.write_whole(path, sheet.encode())
    print(f"table saved as {path}", file=sys.stderr)
    return 0


def attack_options(options):
    """{attack: the options of it that the user named}."""
    given = {attack: {"steps": options.steps} if options.steps and "steps" in Attacks.options(attack) else {}
             for attack in options.attack}
    if options.steps and not any(given.values()):
        raise Dataset.UserError(f"--steps {options.steps}: {', '.join(given)} has no steps; leave it out")
    return given


if __name__ == "__main__":
    sys.exit(Console.run(main))
