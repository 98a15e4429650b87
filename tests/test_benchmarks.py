"""The other benchmarks: what is learned and measured stays apart, and mistakes are one line."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import Attacks
import Console
import Dataset
from benchmarks import ablations, detectors, mislead, norms, samplers, throughput
from conftest import write_database

ROOT = Path(Dataset.__file__).resolve().parent


def photographs(path, count):
    """Make each face of the database another, and the last the first in a mirror and half the light: the faces."""
    grey = np.random.default_rng(1).integers(0, 256, (count, Dataset.DIM), np.uint8)
    grey[-1] = grey[0].reshape(48, 48)[:, ::-1].reshape(-1) // 2
    grey.tofile(path)
    return grey


def test_ablations_learn_no_photograph_that_they_measure(tmp_path):
    database = write_database(tmp_path, "some", 20)
    grey = photographs(database, 20)
    (tmp_path / "meta_some.csv").write_text("age,ethnicity\n" + "".join(f"{number},1\n" for number in range(20)))
    ablations.hold_out(ablations.Options(str(database), out=str(tmp_path / "out")))
    for name, rows in ("learn", np.arange(1, 16)), ("held", np.arange(16, 20)):
        np.testing.assert_array_equal(Dataset.read_faces(tmp_path / f"out/data_{name}.bin"), grey[rows])
        assert (tmp_path / f"out/meta_{name}.csv").read_text().splitlines()[1:] == [f"{row},1" for row in rows]
        assert len(Dataset.read_labels(tmp_path / f"out/gender_{name}.bin")) == len(rows)


@pytest.mark.parametrize("length", [20.0, 32.2, 150.0])
def test_random_noise_is_as_long_as_asked_once_it_is_saved(length):
    face = np.full((1, Dataset.DIM), 100, np.uint8)
    assert Attacks.distances(face, norms.with_noise(face, length))["l2"][0] == pytest.approx(length, rel=0.003)


def test_a_search_that_fooled_nobody_has_no_medians(monkeypatch):
    monkeypatch.setattr(mislead, "search", lambda net, faces, *_: Attacks.Result(faces, faces, np.array([False]), 1, 1))
    row = mislead.run(lambda x: tf.constant([[1.0, 0.0]] * len(x)), np.zeros((1, Dataset.DIM), np.uint8),
                      np.array([1]), "l2", 1, (), ("light",))
    assert row[:7] == ["0 of 1", *"------"] and len(row) == 8


MISTAKES = {
    "faces": (throughput, ["--database", "BASE"], "20 faces; --steps 30 needs 3840 or more"),
    "row": (samplers, ["BASE", "--test", "BASE", "--rows", "GAM"], "--rows GAM: expected some of "),
    "pretraining": (ablations, ["--database", "BASE", "--rows", "transfer from pretraining"], "needs --pretraining"),
    "nothing": (detectors, [], "nothing to measure; name --pictures"),
    "sheets of nothing": (detectors, ["--template", "BASE", "--sheets", "x"], "nothing without --pictures"),
}


@pytest.mark.parametrize("script, arguments, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_line(script, arguments, words, in_folder, capsys):
    base = write_database(in_folder, "some", 20)
    assert Console.run(script.main, [str(base) if argument == "BASE" else argument for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and not out


def test_a_missing_database_is_told_before_hours_of_training(tmp_path):
    for name in "16k", "aaf", "scut":
        write_database(tmp_path, name, 4)
    done = subprocess.run([sys.executable, ROOT / "pretrained" / "learn.py", tmp_path, "--out", tmp_path / "out"],
                          capture_output=True, text=True)
    assert done.returncode == 2 and "data_test4k.bin" in done.stderr and done.stdout == ""
    assert not (tmp_path / "out").exists()
