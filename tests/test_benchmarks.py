"""The other benchmarks: what is learned and measured stays apart, and mistakes are one line."""
import json
import os
import re
import signal
import subprocess
import sys
import time
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


def test_ablations_tabulate_a_training(in_folder, capfd):
    options = ["--database", str(write_database(in_folder, "some", 60)), "--rows", "base", "--seeds", "1",
               "--epochs", "1", "--processes", "1"]
    assert Console.run(ablations.main, options) == 0
    out, err = capfd.readouterr()
    head, line, base, together = out.splitlines()[-4:]
    assert (head, line, err) == ("| changed | held out |", "| --- | --- |", "")
    (accuracy,) = re.fullmatch(r"\| base \| (\d+\.\d\d) \|", base).groups()
    (learned,) = Path("checkpoints/ablations/base-0").glob("accuracy.json")
    assert json.loads(learned.read_text()) == [pytest.approx(float(accuracy), abs=0.005)]
    assert together == f"| 1 base nets together | {accuracy} |"


def test_ablations_leave_out_what_a_database_without_a_meta_file_cannot_say(tmp_path, capsys):
    options = ablations.Options(str(write_database(tmp_path, "some", 4)), pretraining="some")
    rows = ablations.rows_of(options)
    lost = {"balanced by age and sex", "age and ethnicity told too"}
    assert {*ablations.ROWS, *ablations.UNTRAINED} - {*rows} == lost
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and all(f"left out: {row}, which needs {tmp_path / 'meta_some.csv'}" in err
                                        for row in lost)
    (tmp_path / "meta_some.csv").touch()
    assert lost < {*ablations.rows_of(options)} and not capsys.readouterr().err


def interrupt_table(job):
    """In the place of a training: it interrupts the process of the table, and saves when it is interrupted itself."""
    options, _, seed = job
    try:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        (Path(options.out) / f"saved-{seed}").touch()
        raise


def lose_process(job):
    """In the place of a training: what the system does where there is no memory left."""
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGKILL)


def test_ablations_save_at_an_interrupt(in_folder, monkeypatch, capsys):
    monkeypatch.setattr(ablations, "work", interrupt_table)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = Console.run(ablations.main, ["--database", str(write_database(in_folder, "some", 20)), "--rows", "base",
                                            "--processes", "1"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, capsys.readouterr().err) == (130, "interrupted, and saved; the same command goes on\n")
    assert [path.name for path in Path("checkpoints/ablations").glob("saved-*")] == ["saved-0"]


def test_ablations_say_that_a_process_was_lost(in_folder, monkeypatch, capsys):
    monkeypatch.setattr(ablations, "work", lose_process)
    code = Console.run(ablations.main, ["--database", str(write_database(in_folder, "some", 20)), "--rows", "base",
                                        "--seeds", "2", "--processes", "2"])
    err = capsys.readouterr().err
    assert code == 2 and "was killed" in err and err.count("\n") == 1


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
    "meta file": (ablations, ["--database", "BASE", "--rows", "base", "balanced by age and sex"], "needs "),
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
