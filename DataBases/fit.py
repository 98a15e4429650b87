"""Fit the statistical model of faces that `python -m DataBases.synthesise` samples.

    python -m DataBases.fit path/to/data_16k.bin path/to/data_aaf.bin path/to/data_scut.bin
"""
import sys

import Console  # first: it silences TensorFlow's start

import dataclasses
from pathlib import Path
from typing import Annotated

import Dataset
from DataBases import faces, synthesise


@dataclasses.dataclass(frozen=True)
class Options:
    databases: Annotated[tuple, dict(help="names or paths of data_*.bin to learn from", positional=True, nargs="+",
                                     metavar="DB")]
    components: Annotated[int, dict(help="eigenfaces", low=1, high=Dataset.DIM)] = faces.COMPONENTS
    out: Annotated[str, dict(help="file to write", metavar="FILE")] = str(synthesise.MODEL)


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    if Path(options.out).is_dir():
        raise Dataset.UserError(f"--out {options.out}: a folder; expected the file to write")
    apart, left_out = Dataset.set_apart(Dataset.open_databases(options.databases))
    Console.tell_left_out(left_out, "another of the databases holds")
    dataset = Dataset.DataSet.join([*apart.values()])
    women = dataset.label.argmax(1)
    if min(women.sum(), (1 - women).sum()) < 1:
        raise Dataset.UserError(f"{' '.join(options.databases)}: expected men and women, found one of them alone")
    faces.save(faces.fit(dataset.data.grey(), women, options.components), options.out)
    print(f"{options.out}: {options.components} eigenfaces of {dataset.nbdata:,} faces, "
          f"{Path(options.out).stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(Console.run(main))
