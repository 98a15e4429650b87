"""What TensorBoard's summaries cost: the default training with and without them, in turn.

    python benchmarks/summaries.py --database path/to/data_16k.bin

Prints the ratio of the wall time of two epochs, measures included, pair by pair, and the median.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import Console

import dataclasses
import statistics
import tempfile
import time
from typing import Annotated

import Dataset
import Models
import Training


@dataclasses.dataclass(frozen=True)
class Options:
    database: Annotated[str, dict(help="data_*.bin to learn from", required=True)] = ""
    pairs: Annotated[int, dict(help="trainings with and without", low=1)] = 5


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    recipe = Training.Recipe(epochs=2)
    train, validation = Training.split(Dataset.open_database(options.database), recipe.validation, recipe.seed)
    seconds(train, validation, recipe, logged=True)
    ratios = []
    for _ in range(options.pairs):
        with_, without = (seconds(train, validation, recipe, logged) for logged in (True, False))
        ratios.append(with_ / without)
        print(f"with {with_:.1f} s, without {without:.1f} s, ratio {ratios[-1]:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}")


def seconds(train, validation, recipe, logged):
    """Wall seconds from the first batch to the last summary."""
    with tempfile.TemporaryDirectory() as folder:
        Training.make_deterministic(recipe.seed)
        net = Models.build("resnet")
        logs = f"{folder}/logs" if logged else None
        trainer = Training.Trainer(net, train, validation, None, recipe, f"{folder}/out", logs, net.description)
        started = time.monotonic()
        for _ in trainer.run():
            pass
        return time.monotonic() - started


if __name__ == "__main__":
    sys.exit(Console.run(main))
