"""Make a net harder to mislead by the course's retraining: attack it, learn what misled it, and again.

    python Main_retrain.py --from checkpoints/a --train path/to/data_16k.bin --out checkpoints/retrained

Each round attacks --faces of the faces to learn, adds to them the files that mislead the net, with the right labels,
and goes on training; it ends after --rounds, or when the attack finds no file within --radius that misleads the net. A
line of the table is a net, the one to begin with first: of how many faces that it calls right it is misled. The nets
are DIR/round1, DIR/round2, ..., the files DIR/data_round1.bin, ..., databases like any other. Interrupted, the same
command goes on; with more --rounds it goes further.
"""
import sys

import Console  # first: it silences TensorFlow's start

import dataclasses
from typing import Annotated

import Dataset
import Models
import Robustness
import Training

HEADER = "round  attacked  misled  median L2, grey  of 0..1  validation"


@dataclasses.dataclass(frozen=True)
class Options:
    start: Annotated[str, dict(help="folder or prefix of the net to begin with", flag="--from", metavar="CHECKPOINT",
                               required=True)]
    train: Annotated[tuple, dict(help="databases that it learned from, as Main.py takes them", nargs="+", metavar="DB",
                                 required=True)]
    test: Annotated[str | None, dict(help="database whose faces are not learned; by default that of the net's own "
                                     "training", metavar="DB")] = None
    attack: Annotated[str, dict(help="what looks for the files", choices=["ddn", "dx", "pgd"])] = "ddn"
    steps: Annotated[int | None, dict(help="of the attack (default: dx and ddn 300, pgd 40)", low=1)] = None
    radius: Annotated[float, dict(help="how far from its face a file may be, L2 in grey levels; 255 is 1.0 of a 0..1 "
                                  "image", low=1, most=255 * Dataset.SIDE)] = 255.0
    rounds: Annotated[int, dict(help="the most trainings", low=1)] = 3
    faces: Annotated[int, dict(help="how many are attacked a round, drawn anew", low=1)] = 2000
    epochs: Annotated[int, dict(help="of each training", low=1)] = 2
    batch_size: Annotated[int, dict(help="faces a step, and attacked at once", low=1)] = 128
    learning_rate: Annotated[float | None, dict(help="its highest value; by default that of Main.py --from",
                                                low=1e-12)] = None
    out: Annotated[str, dict(help="folder of the nets and of the files", metavar="DIR")] = "checkpoints/retrained"
    seed: Annotated[int | None, dict(help="of the parts, order and augmentation; by default that of the net's own "
                                     "training, which keeps its validation faces apart", low=0)] = None


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    Training.must_be_found(options.out)
    net = Models.load(options.start)[0]
    before = Console.trained_with(options.start)
    # Turned or scaled, the files would lose the noise that is to be learned.
    recipe = Training.Recipe(epochs=options.epochs, batch_size=options.batch_size, augment=("flip",),
                             learning_rate=options.learning_rate, start=options.start,
                             validation=before.get("validation", Training.Recipe.validation),
                             seed=before.get("seed", 0) if options.seed is None else options.seed)
    Training.make_deterministic(recipe.seed)
    train = databases(options, options.test or before.get("test"))
    Console.tell_known(options.start, options.train, recipe.validation, recipe.seed)
    learned, validation = Training.split(train, recipe.validation, recipe.seed)
    retraining = Robustness.Retraining(net, learned, validation, recipe, options.attack, {"steps": options.steps},
                                       options.radius, options.faces, options.out)
    print(f"{learned.nbdata:,} faces to learn, {validation.nbdata:,} to validate; {options.attack} within L2 "
          f"{options.radius:g} grey levels, {options.radius / 255:.3f} of a 0..1 image\n{HEADER}", flush=True)
    try:
        for row in retraining.run(options.rounds, Console.work, lambda trainer: Console.learn(trainer, "retraining")):
            grey, unit = (f"{row['median']:.1f}", f"{row['median'] / 255:.3f}") if row["misled"] else "--"
            print(f"{row['round']:5d}  {row['attacked']:8d}  {row['misled']:6d}  {grey:>15}  {unit:>7}  "
                  f"{100 * row['validation']:8.2f} %", flush=True)
    except KeyboardInterrupt:
        print(f"\ninterrupted, and saved in {options.out}; the same command goes on")
        return 130
    if not row["misled"]:
        print(f"{options.attack} finds no file within L2 {options.radius:g} grey levels that misleads it")
    print(f"net in {options.out}/round{row['round']}" if row["round"] else f"nothing learned: {options.start} stays")
    return 0


def databases(options, test):
    """The DataSet to learn from, without the faces of the database `test` (None: of none)."""
    if test and not options.test and not Dataset.database_files(test)[0].exists():
        print(f"{test}, which {options.start} was tested on, is not there: its faces are not left out; name it with "
              "--test", file=sys.stderr)
        test = None
    learned, left_out = Dataset.set_apart(Dataset.open_databases(options.train), test and Dataset.open_database(test))
    if not learned:
        raise Dataset.UserError(f"{test} holds all faces of --train; a test base holds faces never learned")
    Console.tell_left_out(left_out, f"{test} or another --train holds" if test else "another --train holds")
    return Dataset.DataSet.join([*learned.values()])


if __name__ == "__main__":
    sys.exit(Console.run(main))
