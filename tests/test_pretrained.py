"""The weights that ship: they answer without any training, and their card tells what they do."""
import re
from pathlib import Path

import numpy as np
import pytest

import Console
import Dataset
import Main_inference
import Models
from conftest import REAL_FACES

PRETRAINED = Path(Console.__file__).resolve().parent / "pretrained"


def test_a_face_is_answered_before_any_training(in_folder, capsys):
    np.arange(Dataset.DIM, dtype=np.uint8).tofile("face.raw")
    assert Console.run(Main_inference.main, ["face.raw"]) == 0
    assert re.fullmatch(r"face\.raw: (man|woman) \d+\.\d %\n", capsys.readouterr().out)


def test_the_weights_take_at_most_5_mb():
    assert sum(path.stat().st_size for path in PRETRAINED.iterdir() if path.is_file()) < 5e6


@pytest.mark.skipif(not REAL_FACES.is_dir(), reason="no real faces beside the project")
def test_accuracy_on_real_faces_is_what_the_card_says():
    net, _ = Models.load(PRETRAINED)
    path = REAL_FACES / "data_test4k.bin"
    measured = Main_inference.measure(str(path), Dataset.open_database(path), net)
    assert measured["accuracy"] > 0.9
    card = (PRETRAINED / "README.md").read_text(encoding="utf-8")
    groups = measured["groups"]["age"] | measured["groups"]["ethnicity"]
    for name, group in groups.items():
        faces, accuracy = re.search(rf"^ *{re.escape(name)} +(\d+) +([\d.]+) %$", card, re.MULTILINE).groups()
        assert int(faces) == group["faces"]
        assert float(accuracy) == pytest.approx(100 * group["accuracy"], abs=0.3)
    whole = re.search(r"data_test4k.bin: accuracy ([\d.]+) %", card)[1]
    assert float(whole) == pytest.approx(100 * measured["accuracy"], abs=0.05)
