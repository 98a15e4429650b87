"""One face misled under each penalty: the files, and the noise 50 times amplified, as one picture.

    python benchmarks/norms.py test10k --number 3

Beside the five files stands, for comparison, the face with random noise as long as that of l2. Writes
benchmarks/norms.png, and says of each file what the net says, how long the noise is and how many pixels it changes.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import Console

import dataclasses
from typing import Annotated

import numpy as np

import Attacks
import Dataset
import Models
from benchmarks import mislead
from DataBases import synthesise


@dataclasses.dataclass(frozen=True)
class Options:
    database: Annotated[str, dict(help="of the face: a name, or the path of a data_*.bin", positional=True)]
    number: Annotated[int, dict(help="of the face in it", low=0)] = 0
    checkpoint: Annotated[str, dict(help="folder or prefix of the net")] = str(synthesise.SHIPPED)
    steps: Annotated[int, dict(help="passes forward and backward", low=1)] = 300
    out: Annotated[str, dict(help="the picture to write", metavar="PNG")] = str(Path(__file__).with_name("norms.png"))


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    net, _ = Models.load(options.checkpoint)
    dataset = Dataset.open_database(options.database)
    if options.number >= dataset.nbdata:
        raise Dataset.UserError(f"--number {options.number}: {options.database} has {dataset.nbdata} faces, the first "
                                "is number 0")
    face, wrong = dataset.data.grey([options.number]), 1 - int(dataset.label[options.number].argmax())
    if Console.ask(net, face)["label"] == Dataset.LABELS[wrong]:
        raise Dataset.UserError(f"--number {options.number}: the net calls it {Dataset.LABELS[wrong]} already; "
                                "choose another")
    files = {name: mislead.search(net, face, [wrong], name, options.steps).modified for name in mislead.RUNS}
    length = Attacks.distances(face, files["l2"])["l2"][0]
    files = {"original": face} | files | {"random": with_noise(face, length)}
    verdicts = {name: Console.verdict(Console.ask(net, file)) for name, file in files.items()}
    for name, file in files.items():
        far = {norm: values[0] for norm, values in Attacks.distances(face, file).items()}
        print(f"{name:14} {verdicts[name]:13} L2 {far['l2']:6.1f}  L1 {far['l1']:6.0f}  "
              f"Linf {far['linf']:3.0f}  {far['pixels_changed']:4} pixels; L2 of 0..1 {far['l2'] / 255:.3f}")
    sheet = Console.strip([*files.values(), *(Attacks.amplify(face, files[name]) for name in mislead.RUNS)],
                          [*(f"{name}: {verdict}" for name, verdict in verdicts.items()),
                           *(f"{name}, noise 50 times" for name in mislead.RUNS)])
    print(Console.present(sheet, options.out, False))
    return 0


def with_noise(face, length):
    """The face and Gaussian noise, whose length in the file is the nearest to `length` grey levels: [1, 2304] uint8."""
    noise = np.random.default_rng(0).standard_normal(face.shape)
    scales = np.linspace(0.0, 2.0, 2001) * length / np.linalg.norm(noise)
    files = [np.clip(np.rint(face + scale * noise), 0, 255).astype(np.uint8) for scale in scales]
    return min(files, key=lambda file: abs(Attacks.distances(face, file)["l2"][0] - length))


if __name__ == "__main__":
    sys.exit(Console.run(main))
