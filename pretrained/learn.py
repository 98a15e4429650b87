"""Learn the weights that ship, and put them into this folder.

    python pretrained/learn.py path/to/faces

The folder holds data_16k.bin (UTKFace), data_aaf.bin (All-Age-Faces), data_scut.bin (SCUT-FBP5500) and, to be measured
only, data_test4k.bin (UTKFace), each with its gender_*.bin. About 35 minutes on two cores.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import Console

import dataclasses
import json
from typing import Annotated

import tensorflow as tf

import Dataset
import Main
import Models

LEARNED, MEASURED = ("16k", "aaf", "scut"), "test4k"
RECIPE = ["--net", "resnet", "--nb-conv", "2", "--epochs", "40"]


@dataclasses.dataclass(frozen=True)
class Options:
    faces: Annotated[str, dict(help="folder of the databases", positional=True, metavar="FOLDER")]
    out: Annotated[str, dict(help="folder of the whole training", metavar="DIR")] = "checkpoints/pretrained"
    resume: Annotated[bool, dict(help="go on with an interrupted training")] = False


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    paths = {name: f"{options.faces}/data_{name}.bin" for name in (*LEARNED, MEASURED)}
    arguments = [*RECIPE, "--train", *(paths[name] for name in LEARNED), "--test", paths[MEASURED]]
    code = Main.main(["--resume", "--out", options.out] if options.resume else [*arguments, "--out", options.out])
    if code == 0:
        export(Models.load(options.out)[0])
    return code


def export(net):
    """Write the net alone, without the optimizer, and its description into this folder."""
    folder = ROOT / "pretrained"
    tf.train.Checkpoint(net=net).write(str(folder / "my_model-1"))
    more = {"learned_from": [f"data_{name}.bin" for name in LEARNED], "recipe": " ".join(RECIPE)}
    description = json.dumps(json.loads(net.description) | more, indent=1) + "\n"
    Dataset.write_whole(folder / Models.DESCRIPTION, description.encode())


if __name__ == "__main__":
    sys.exit(Console.run(main))
