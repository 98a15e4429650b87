"""Learn the weights that ship, and put them into this folder.

    python pretrained/learn.py path/to/faces

The folder holds data_16k.bin (UTKFace), data_aaf.bin (All-Age-Faces), data_scut.bin (SCUT-FBP5500) and, to be measured
only, data_test4k.bin (UTKFace), each with its gender_*.bin. Two nets learn first, each with one set left out, on which
it is measured: how well a net does on a collection that it has never seen. They are the teachers of the third, which
learns from all three sets. About 70 minutes on two cores; interrupted, the same command goes on.
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

NET = ["--net", "resnet", "--nb-conv", "2", "--augment", *Training.Recipe.augment, "sharpness"]
TRAININGS = {  # name: (learned from, measured on, options)
    "without_scut": (("16k", "aaf"), "scut", ["--epochs", "32", "--learning-rate", "2e-3"]),
    "without_aaf": (("16k", "scut"), "aaf", ["--epochs", "32", "--learning-rate", "2e-3"]),
    "all": (("16k", "aaf", "scut"), "test4k", ["--epochs", "30", "--learning-rate", "5e-3",
                                               "--teacher", "{out}/without_scut", "{out}/without_aaf"]),
}


@dataclasses.dataclass(frozen=True)
class Options:
    faces: Annotated[str, dict(help="folder of the databases", positional=True, metavar="FOLDER")]
    out: Annotated[str, dict(help="folder of the trainings", metavar="DIR")] = "checkpoints/pretrained"


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    for name, (learned, measured, more) in TRAININGS.items():
        out = Path(options.out) / name
        paths = [f"{options.faces}/data_{database}.bin" for database in (*learned, measured)]
        recipe = [*NET, *(text.format(out=options.out) for text in more)]
        arguments = [*recipe, "--train", *paths[:-1], "--test", paths[-1]]
        begun = any((out / "last").glob("*.index"))
        print(f"{name}: learns from {', '.join(learned)}, measured on {measured}", flush=True)
        if code := Main.main([*(["--resume"] if begun else arguments), "--out", str(out)]):
            return code
    export(Models.load(out)[0], learned, arguments)
    return 0


def export(net, learned, arguments):
    """Write the net alone, without the optimizer, and its description into this folder."""
    folder = ROOT / "pretrained"
    tf.train.Checkpoint(net=net).write(str(folder / "my_model-1"))
    recipe = " ".join(arguments[:arguments.index("--teacher")])
    more = {"learned_from": [f"data_{name}.bin" for name in learned], "recipe": recipe,
            "teachers": {name: [f"data_{database}.bin" for database in TRAININGS[name][0]] for name in TRAININGS
                         if name != "all"}}
    description = json.dumps(json.loads(net.description) | more, indent=1) + "\n"
    Dataset.write_whole(folder / Models.DESCRIPTION, description.encode())


if __name__ == "__main__":
    sys.exit(Console.run(main))
