"""Which pixels the noise uses that misleads a net: the mean of its size over many faces, from either label.

    python benchmarks/saliency.py --database test10k --checkpoint pretrained

Misleads the first men and the first women that the net calls right, by the search of l2, and writes the maps as one
picture, each beside the mean face: black is a pixel that no face's noise changes, white the pixel changed the most, on
both maps the same number of grey levels, which is written below.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import Console

import dataclasses
from typing import Annotated

import numpy as np
import tensorflow as tf

import Dataset
import Models
from benchmarks import mislead


@dataclasses.dataclass(frozen=True)
class Options:
    checkpoint: Annotated[str, dict(help="folder or prefix of the net", required=True)] = ""
    database: Annotated[str, dict(help="a name such as test10k, or a data_*.bin", required=True)] = ""
    faces: Annotated[int, dict(help="men, and as many women, the first that the net calls right", low=1)] = 300
    steps: Annotated[int, dict(help="passes forward and backward", low=1)] = 100
    out: Annotated[str, dict(help="the picture", metavar="PNG")] = str(Path(__file__).with_name("saliency.png"))


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    net, _ = Models.load(options.checkpoint)
    dataset = Dataset.open_database(options.database)
    annotated, says = dataset.label.argmax(1), dataset.answers(tf.function(lambda x: net(x)))
    means, maps = [], []
    for label, name in enumerate(Dataset.LABELS):
        faces = dataset.data.grey(np.flatnonzero((annotated == label) & (says == label))[:options.faces])
        if not len(faces):
            raise Dataset.UserError(f"{options.database}: no {name} in it that the net calls one; choose another")
        found = mislead.search(net, faces, np.full(len(faces), 1 - label), "l2", options.steps)
        if not found.fools.any():
            raise Dataset.UserError(f"--steps {options.steps}: no file made of a {name} fools; take more")
        noise = np.abs(found.modified.astype(float) - found.original)[found.fools]
        far = np.median(np.linalg.norm(noise, axis=1))
        means.append(dataset.data.grey(annotated == label).mean(0))
        maps.append(noise.mean(0))
        print(f"{name} to {Dataset.LABELS[1 - label]}: {len(noise)} of {len(faces)} files fool, "
              f"L2 {far:.1f} grey levels, {far / 255:.3f} of 0..1 (median)", flush=True)
    white = max(each.max() for each in maps)
    tiles, captions = [], []
    for label, name in enumerate(Dataset.LABELS):
        tiles += [means[label].round(), (255 * maps[label] / white).round()]
        captions += [f"mean {name}", f"to {Dataset.LABELS[1 - label]}: 0 to {white:.1f} grey levels"]
    print(f"white is a mean change of {white:.2f} grey levels; the mean over all pixels is "
          f"{maps[0].mean():.2f} and {maps[1].mean():.2f}")
    print(Console.present(Console.strip(tiles, captions), options.out, show=False))


if __name__ == "__main__":
    sys.exit(Console.run(main))
