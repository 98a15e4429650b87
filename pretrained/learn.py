"""Learn the weights that ship, and put them into this folder and DataBases/labeller.

    python pretrained/learn.py path/to/faces

The folder holds data_16k.bin (UTKFace), data_aaf.bin (All-Age-Faces), data_scut.bin (SCUT-FBP5500) and, to be measured
only, data_test4k.bin (UTKFace), each with its gender_*.bin. Two nets of 2 residual blocks a stage learn first, each
with one set left out, on which it is measured: how well a net does on a collection that it has never seen. They teach
two nets of 3 blocks a stage: one that learns without All-Age-Faces, as its teacher did, and the one that ships, which
learns from all three sets. Both then learn on twice, at a lower rate, each taught by itself as it was before too; the
mean of the weights that validate best and of the last is measured. From there the one that ships learns on once more,
at a rate that does not fall, taught by that mean alone; the mean of before and after ships. At last a small net learns
what it says of faces of nobody: DataBases.synthesise asks that one first. About 7 hours on two cores; interrupted, the
same command goes on.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import Console

import dataclasses
import json
import tempfile
from typing import Annotated

import tensorflow as tf

import Dataset
import Main
import Main_inference
import Models
import Training
from DataBases import synthesise

CHANGES = ["--augment", *Training.Recipe.augment, "sharpness"]
SMALL = ["--net", "resnet", "--nb-conv", "2", "--epochs", "32", "--learning-rate", "2e-3"]
LARGE = ["--net", "resnet", "--nb-conv", "3", "--epochs", "45", "--learning-rate", "5e-3"]
FURTHER = ["--learning-rate", "2e-3", "--epochs"]
STEADY = ["--learning-rate", "1e-3", "--schedule", "constant", "--averaging", "0.9997", "--epochs", "14"]
NO_SCUT, NO_AAF, ALL = ("16k", "aaf"), ("16k", "scut"), ("16k", "aaf", "scut")
TRAININGS = {  # name: (learned from, measured on, options, the net it goes on with, further teachers)
    "without_scut": (NO_SCUT, "scut", SMALL, None, ()),
    "without_aaf": (NO_AAF, "aaf", SMALL, None, ()),
    "large_without_aaf": (NO_AAF, "aaf", LARGE, None, ("without_aaf",)),
    "large_without_aaf_2": (NO_AAF, "aaf", [*FURTHER, "35"], "large_without_aaf", ("without_aaf",)),
    "large_without_aaf_3": (NO_AAF, "aaf", [*FURTHER, "35"], "large_without_aaf_2", ("without_aaf",)),
    "all": (ALL, "test4k", LARGE, None, ("without_scut", "without_aaf")),
    "all_2": (ALL, "test4k", [*FURTHER, "21"], "all", ("without_scut", "without_aaf")),
    "all_3": (ALL, "test4k", [*FURTHER, "21"], "all_2", ("without_scut", "without_aaf")),
    "all_4": (ALL, "test4k", STEADY, "all_3_mean", ()),
}
MEANS = {  # name of a training: the nets whose mean is <name>_mean, written after it
    "large_without_aaf_3": ("large_without_aaf_3", "large_without_aaf_3/last"),
    "all_3": ("all_3", "all_3/last"),
    "all_4": ("all_3_mean", "all_4"),
}
LABELLER = ["--epochs", "10", "--augment", "flip", "--label-smoothing", "0", "--teaching", "1"]
NOBODY = "learn100k", "held10k"


@dataclasses.dataclass(frozen=True)
class Options:
    faces: Annotated[str, dict(help="folder of the databases", positional=True, metavar="FOLDER")]
    out: Annotated[str, dict(help="folder of the trainings", metavar="DIR")] = "checkpoints/pretrained"


def main(argv=None):
    options = Options(**Console.parse(Options, argv, __doc__))
    try:
        code = learn_all(options)
    except KeyboardInterrupt:
        code = 130
    if code == 130:
        print("interrupted; the same python pretrained/learn.py goes on with all of it")
    return code


def learn_all(options):
    """Every training that is left, one after another: the exit code."""
    for name in *ALL, "test4k":  # what is missing is told now, not hours later
        Dataset.open_database(f"{options.faces}/data_{name}.bin")
    for name, (learned, measured, recipe, start, teachers) in TRAININGS.items():
        print(f"{name}: learns from {', '.join(learned)}, measured on {measured}", flush=True)
        paths = [f"{options.faces}/data_{database}.bin" for database in (*learned, measured)]
        if code := learn([*recipe, *CHANGES, *taught(options.out, start, teachers)], paths, f"{options.out}/{name}"):
            return code
        if name in MEANS:
            folder = Path(f"{options.out}/{name}_mean")
            folder.mkdir(exist_ok=True)
            export(mean([f"{options.out}/{net}" for net in MEANS[name]]), folder, origin(name))
            Main_inference.main([paths[-1], "--checkpoint", str(folder)])
    export(Models.load(f"{options.out}/all_4_mean")[0], synthesise.SHIPPED, origin("all_4"))
    print("labeller: learns what that net says of faces of nobody", flush=True)
    shipped = str(synthesise.SHIPPED)
    paths = [f"{options.out}/data_{name}.bin" for name in NOBODY]
    if missing := [name for name, path in zip(NOBODY, paths) if not Path(path).exists()]:
        for line in synthesise.make(missing, options.out, teacher=Models.load(shipped)[0]):
            print(line, flush=True)
    if code := learn([*LABELLER, "--teacher", shipped], paths, f"{options.out}/labeller"):
        return code
    export(Models.load(f"{options.out}/labeller")[0], synthesise.LABELLER,
           {"recipe": " ".join(LABELLER), "teacher": "pretrained"})
    return 0


def taught(out, start, teachers):
    """Main.py's options of a net with teachers, the first of them the net that it goes on with, if any."""
    own = [f"{out}/{start}"] if start else []
    teachers = own + [f"{out}/{name}" for name in teachers]
    return [*(["--from", *own] if own else []), *(["--teacher", *teachers] if teachers else [])]


def origin(name):
    """What network.json tells of a net: the databases it learned from, the options of its trainings, its teachers."""
    learned, _, recipe, start, teachers = TRAININGS[name]
    start = start and start.removesuffix("_mean")
    return {"learned_from": [f"data_{database}.bin" for database in learned],
            "recipe": [*(origin(start)["recipe"] if start else []), " ".join([*recipe, *CHANGES])],
            "weights": f"mean of {' and '.join(MEANS.get(name, [name]))}",
            "teachers": (origin(start)["teachers"] if start else {})
            | {teacher: [f"data_{database}.bin" for database in TRAININGS[teacher][0]] for teacher in teachers}}


def learn(arguments, paths, out):
    """Main.py's exit code: it learns from all paths but the last, which it measures on; what was begun goes on."""
    recipe = ["--resume"] if Training.can_resume(out) else [*arguments, "--train", *paths[:-1], "--test", paths[-1]]
    return Main.main([*recipe, "--out", out])


def mean(folders):
    """The net whose weights are the mean of those of several (model soups, Wortsman et al. 2022)."""
    net, *others = (Models.load(folder)[0] for folder in folders)
    for variable, *values in zip(net.variables, *(other.variables for other in others)):
        variable.assign(tf.add_n([variable, *values]) / len(folders))
    return net


def export(net, folder, record):
    """Write a net alone, without the optimizer, and its description with a record of its origin into a folder."""
    description = json.dumps(json.loads(net.description) | record, indent=1) + "\n"
    with tempfile.TemporaryDirectory() as scratch:
        tf.train.Checkpoint(net=net).write(f"{scratch}/my_model-1")
        files = {folder / path.name: path.read_bytes() for path in Path(scratch).iterdir()}
    Dataset.write_all(files | {folder / Models.DESCRIPTION: description.encode()})


if __name__ == "__main__":
    sys.exit(Console.run(main))
