"""Learn the weights that ship, and put them into this folder and DataBases/labeller.

    python pretrained/learn.py path/to/faces

The folder holds data_16k.bin (UTKFace), data_aaf.bin (All-Age-Faces), data_scut.bin (SCUT-FBP5500) and, to be measured
only, data_test4k.bin (UTKFace), each with its gender_*.bin. Two nets of 2 residual blocks a stage learn first, each
with one set left out, on which it is measured: how well a net does on a collection that it has never seen. They teach
two nets of 3 blocks a stage: one that learns without All-Age-Faces, as its teacher did, and the one that ships, which
learns from all three sets. At last a small net learns what that one says of faces of nobody: DataBases.synthesise asks
it first. About 3.5 hours on two cores; interrupted, the same command goes on.
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
from DataBases import synthesise

NET = ["--net", "resnet", "--augment", *Training.Recipe.augment, "sharpness"]
SMALL = ["--nb-conv", "2", "--epochs", "32", "--learning-rate", "2e-3"]
LARGE = ["--nb-conv", "3", "--epochs", "45", "--learning-rate", "5e-3"]
TRAININGS = {  # name: (learned from, measured on, options, teachers)
    "without_scut": (("16k", "aaf"), "scut", SMALL, ()),
    "without_aaf": (("16k", "scut"), "aaf", SMALL, ()),
    "large_without_aaf": (("16k", "scut"), "aaf", LARGE, ("without_aaf",)),
    "all": (("16k", "aaf", "scut"), "test4k", LARGE, ("without_scut", "without_aaf")),
}
LABELLER = ["--epochs", "10", "--augment", "flip", "--label-smoothing", "0", "--teaching", "1"]
NOBODY = "learn100k", "held10k"


@dataclasses.dataclass(frozen=True)
class Options:
    faces: Annotated[str, dict(help="folder of the databases", positional=True, metavar="FOLDER")]
    out: Annotated[str, dict(help="folder of the trainings", metavar="DIR")] = "checkpoints/pretrained"


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    for name, (learned, measured, recipe, teachers) in TRAININGS.items():
        print(f"{name}: learns from {', '.join(learned)}, measured on {measured}", flush=True)
        paths = [f"{options.faces}/data_{database}.bin" for database in (*learned, measured)]
        teacher = ["--teacher", *(f"{options.out}/{teacher}" for teacher in teachers)] if teachers else []
        if code := learn([*NET, *recipe, *teacher], paths, f"{options.out}/{name}"):
            return code
    export(f"{options.out}/all", synthesise.SHIPPED, {
        "learned_from": [f"data_{name}.bin" for name in learned], "recipe": " ".join([*NET, *recipe]),
        "teachers": {name: [f"data_{database}.bin" for database in TRAININGS[name][0]] for name in teachers}})
    print("labeller: learns what that net says of faces of nobody", flush=True)
    shipped = str(synthesise.SHIPPED)
    paths = [f"{options.out}/data_{name}.bin" for name in NOBODY]
    if missing := [name for name, path in zip(NOBODY, paths) if not Path(path).exists()]:
        for line in synthesise.make(missing, options.out, teacher=Models.load(shipped)[0]):
            print(line, flush=True)
    if code := learn([*LABELLER, "--teacher", shipped], paths, f"{options.out}/labeller"):
        return code
    export(f"{options.out}/labeller", synthesise.LABELLER, {"recipe": " ".join(LABELLER), "teacher": "pretrained"})
    return 0


def learn(arguments, paths, out):
    """Main.py's exit code: it learns from all paths but the last, which it measures on; what was begun goes on."""
    begun = any((Path(out) / "last").glob("*.index"))
    return Main.main([*(["--resume"] if begun else [*arguments, "--train", *paths[:-1], "--test", paths[-1]]),
                      "--out", out])


def export(checkpoint, folder, origin):
    """Write a net alone, without the optimizer, and its description with a record of its origin into a folder."""
    net = Models.load(checkpoint)[0]
    tf.train.Checkpoint(net=net).write(str(folder / "my_model-1"))
    description = json.dumps(json.loads(net.description) | origin, indent=1) + "\n"
    Dataset.write_whole(folder / Models.DESCRIPTION, description.encode())


if __name__ == "__main__":
    sys.exit(Console.run(main))
