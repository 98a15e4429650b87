"""Whether faces of nobody are copies: the correlation of each with the nearest real face that the model was fitted to.

    python benchmarks/copies.py data_10k.bin --fitted path/to/data_16k.bin path/to/data_aaf.bin path/to/data_scut.bin \
        --unseen path/to/data_test4k.bin

Prints percentiles of that correlation for the faces of nobody, and for real faces that no model has seen: what is
natural between different people. Mirror images count as near. --sheet writes a picture of the first 60 faces of nobody.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import Console

import dataclasses
from typing import Annotated

import numpy as np
from PIL import Image

import Dataset
from DataBases import build, faces

PERCENTILES = 5, 25, 50, 75, 95, 99, 100
SHEET = 5, 12  # rows, columns


@dataclasses.dataclass(frozen=True)
class Options:
    synthesised: Annotated[str, dict(help="data_*.bin of faces of nobody", positional=True, metavar="DB")]
    fitted: Annotated[tuple, dict(help="data_*.bin that the model was fitted to", nargs="+", required=True,
                                  metavar="DB")] = ()
    unseen: Annotated[str, dict(help="data_*.bin of real faces that it was not fitted to", required=True,
                                metavar="DB")] = ""
    sheet: Annotated[str | None, dict(help="write a picture of 60 faces of nobody", metavar="PNG")] = None


def nearest(grey, known):
    """The correlation of each face [N, 2304] with the nearest of `known` (build.standardised): [N]."""
    parts = np.array_split(grey, 1 + len(grey) // 500)
    return np.concatenate([(build.standardised(part.astype(np.float32)) @ known.T).max(1) for part in parts])


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    fitted = np.concatenate([Dataset.open_database(name).data.grey() for name in options.fitted])
    known = build.standardised(faces.with_mirrors(fitted))
    drawn = Dataset.open_database(options.synthesised).data.grey()
    unseen = Dataset.open_database(options.unseen).data.grey()
    if options.sheet and len(drawn) < SHEET[0] * SHEET[1]:
        raise Dataset.UserError(f"--sheet: {options.synthesised} holds {len(drawn)} faces; expected "
                                f"{SHEET[0] * SHEET[1]} or more")
    print("| correlation with the nearest fitted face | faces | "
          + " | ".join(f"{percentile} %" for percentile in PERCENTILES) + " |")
    print("|---" * (2 + len(PERCENTILES)) + "|")
    for name, grey in ("faces of nobody", drawn), ("real faces, not fitted", unseen):
        values = np.percentile(nearest(grey, known), PERCENTILES)
        print(f"| {name} | {len(grey):,} | {' | '.join(f'{value:.3f}' for value in values)} |", flush=True)
    if options.sheet:
        rows, columns = SHEET
        tiles = drawn[:rows * columns].reshape(rows, columns, Dataset.SIDE, Dataset.SIDE)
        sheet = Image.fromarray(tiles.transpose(0, 2, 1, 3).reshape(rows * Dataset.SIDE, columns * Dataset.SIDE))
        Dataset.write_whole(options.sheet, Dataset.to_png(sheet))
    return 0


if __name__ == "__main__":
    sys.exit(Console.run(main))
