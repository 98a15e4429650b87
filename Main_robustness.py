"""How robust trained nets are: accuracy against the distance of the noise, for any nets and attacks.

    python Main_robustness.py path/to/data_test4k.bin --checkpoint checkpoints/a checkpoints/b --attack dx ddn pgd
    python Main_robustness.py path/to/data_test4k.bin --checkpoint checkpoints/a checkpoints/b --norm linf

Prints the table and writes it as robustness_<norm>.csv, the curves as robustness_<norm>.png (with Matplotlib: pip
install ".[plots]"). What counts is the saved file: a face is lost at the distance of the nearest file found that the
net calls wrong, at 0 where it is wrong without noise. Interrupted, the same command goes on.
"""
import sys

import Console  # first: it silences TensorFlow's start

import dataclasses
from pathlib import Path
from typing import Annotated

import Attacks
import Dataset
import Models
import Robustness


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
                                             "(default: l2 16 .. 510, l1 128 .. 16320, linf 1 .. 16)", nargs="+",
                                             low=1)] = ()
    steps: Annotated[int | None, dict(help="of every attack but fgsm (default: dx, ddn, sigma-zero and jsma 300, cw "
                                      "500, deepfool 50, pgd 40 a radius)", low=1)] = None
    faces: Annotated[int | None, dict(help="how many faces, the first of the database; all by default", low=1)] = None
    batch_size: Annotated[int, dict(help="faces at once; what is kept when interrupted is whole batches", low=1)] = 200
    out: Annotated[str, dict(help="folder of the results", metavar="DIR")] = "robustness"
    show: Annotated[bool, dict(help="open the picture in a window where there is a display")] = True


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    dataset = Dataset.open_database(options.database, nbdata=options.faces)
    faces, labels = dataset.data.grey(), dataset.label.argmax(1)
    nets = {str(path): Models.load(path)[0] for path in options.checkpoint or [Console.default_checkpoint()]}
    radii = options.radii or Robustness.RADII[options.norm]
    bench = Robustness.Bench(nets, faces, labels, attack_options(options), options.norm, radii, options.out,
                             options.batch_size)
    Dataset.make_folder(options.out)
    try:
        measure(bench)
    except KeyboardInterrupt:
        print(f"\ninterrupted at {bench.done} of {bench.total} faces, and saved in {options.out}; "
              "the same command goes on")
        return 130
    distances = bench.distances()
    print(f"accuracy in % of {len(faces)} faces of {options.database}, by {Robustness.NAMES[options.norm]} distance of "
          "the saved files")
    print("\n".join(Robustness.table(distances, options.norm, radii)))
    stem = Path(options.out) / f"robustness_{options.norm}"
    Dataset.write_whole(f"{stem}.csv", Robustness.sheet_of_values(distances, options.norm, radii).encode())
    print(f"table saved as {stem}.csv", file=sys.stderr)
    try:
        picture = Robustness.plot(distances, options.norm, radii)
    except Dataset.UserError as missing:
        print(missing, file=sys.stderr)
        return 0
    print(Console.present(picture, f"{stem}.png", options.show), file=sys.stderr)
    return 0


def attack_options(options):
    """{attack: the options of it that the user named}."""
    given = {attack: {"steps": options.steps} if options.steps and "steps" in Attacks.options(attack) else {}
             for attack in options.attack}
    if options.steps and not any(given.values()):
        raise Dataset.UserError(f"--steps {options.steps}: {', '.join(given)} has no steps; leave it out")
    return given


def measure(bench):
    progress = Console.Progress(bench.total, bench.done, "faces")
    for text in bench.run():
        progress.update(bench.done, text)
    progress.clear()


if __name__ == "__main__":
    sys.exit(Console.run(main))
