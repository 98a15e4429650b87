"""Learn the weights that ship, and put them into this folder.

    python pretrained/learn.py path/to/faces

The folder holds data_16k.bin (UTKFace), data_aaf.bin (All-Age-Faces), data_scut.bin (SCUT-FBP5500) and, to be measured
only, data_test4k.bin (UTKFace), each with its gender_*.bin. Two nets of 2 residual blocks a stage learn first, each
with one set left out, on which it is measured: how well a net does on a collection that it has never seen. They teach
two nets of 3 blocks a stage: one that learns without All-Age-Faces, as its teacher did, and the one that ships, which
learns from all three sets. About 3 hours on two cores; interrupted, the same command goes on.
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
import Training

NET = ["--net", "resnet", "--augment", *Training.Recipe.augment, "sharpness"]
SMALL = ["--nb-conv", "2", "--epochs", "32", "--learning-rate", "2e-3"]
LARGE = ["--nb-conv", "3", "--epochs", "45", "--learning-rate", "5e-3"]
TRAININGS = {  # name: (learned from, measured on, options, teachers)
    "without_scut": (("16k", "aaf"), "scut", SMALL, ()),
    "without_aaf": (("16k", "scut"), "aaf", SMALL, ()),
    "large_without_aaf": (("16k", "scut"), "aaf", LARGE, ("without_aaf",)),
    "all": (("16k", "aaf", "scut"), "test4k", LARGE, ("without_scut", "without_aaf")),
}


@dataclasses.dataclass(frozen=True)
class Options:
    faces: Annotated[str, dict(help="folder of the databases", positional=True, metavar="FOLDER")]
    out: Annotated[str, dict(help="folder of the trainings", metavar="DIR")] = "checkpoints/pretrained"


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    for name, (learned, measured, recipe, teachers) in TRAININGS.items():
        out = Path(options.out) / name
        paths = [f"{options.faces}/data_{database}.bin" for database in (*learned, measured)]
        arguments = [*NET, *recipe, "--train", *paths[:-1], "--test", paths[-1]]
        if teachers:
            arguments += ["--teacher", *(f"{options.out}/{teacher}" for teacher in teachers)]
        begun = any((out / "last").glob("*.index"))
        print(f"{name}: learns from {', '.join(learned)}, measured on {measured}", flush=True)
        if code := Main.main([*(["--resume"] if begun else arguments), "--out", str(out)]):
            return code
    export(Models.load(out)[0], learned, [*NET, *recipe], teachers)
    return 0


def export(net, learned, recipe, teachers):
    """Write the net alone, without the optimizer, and its description into this folder."""
    folder = ROOT / "pretrained"
    tf.train.Checkpoint(net=net).write(str(folder / "my_model-1"))
    more = {"learned_from": [f"data_{name}.bin" for name in learned], "recipe": " ".join(recipe),
            "teachers": {name: [f"data_{database}.bin" for database in TRAININGS[name][0]] for name in teachers}}
    description = json.dumps(json.loads(net.description) | more, indent=1) + "\n"
    Dataset.write_whole(folder / Models.DESCRIPTION, description.encode())


if __name__ == "__main__":
    sys.exit(Console.run(main))
