"""The weights that ship: they answer without any training, and their card tells what they do."""
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import Console
import Dataset
import Main
import Main_inference
import Models
from DataBases import synthesise
from conftest import REAL_FACES, write_database

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


@pytest.fixture
def learn():
    """The module pretrained/learn.py."""
    spec = importlib.util.spec_from_file_location("learn", PRETRAINED / "learn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_interrupted_it_says_how_to_go_on_with_all(learn, tmp_path, monkeypatch, capsys):
    for interrupted in lambda options: 130, lambda options: (_ for _ in ()).throw(KeyboardInterrupt):
        monkeypatch.setattr(learn, "learn_all", interrupted)
        assert learn.main([str(tmp_path)]) == 130
        assert capsys.readouterr().out == "interrupted; the same python pretrained/learn.py goes on with all of it\n"


def test_what_is_exported_is_a_net_with_its_record(learn, tmp_path):
    net = Models.build("small")
    for number in 1, 2:
        net.cv1.b.assign_add(tf.ones([3]))
        learn.export(net, tmp_path, {"recipe": [number]})
        assert Models.load(tmp_path)[0].cv1.b.numpy().tolist() == [number] * 3
        assert json.loads((tmp_path / "network.json").read_text())["recipe"] == [number]
    assert len([*tmp_path.iterdir()]) == 3


def test_no_net_is_measured_on_what_it_or_a_teacher_learned_from(learn):
    seen = {}
    for name, (learned, measured, _, start, teachers) in learn.TRAININGS.items():
        before = [seen[net] for net in (start, *teachers) if net]
        seen[name] = seen[f"{name}_mean"] = set(learned).union(*before)
        assert measured not in seen[name]


def test_means_are_of_one_training_and_what_it_began_with(learn):
    for name, nets in learn.MEANS.items():
        assert set(nets) <= {name, f"{name}/last", learn.TRAININGS[name][3]} and len(set(nets)) == 2
    starts = {start for _, _, _, start, _ in learn.TRAININGS.values() if start}
    assert {start.removesuffix("_mean") for start in starts if start not in learn.TRAININGS} <= set(learn.MEANS)


def test_every_training_of_the_recipe_is_one_that_main_understands(learn):
    for name, (learned, measured, recipe, start, teachers) in learn.TRAININGS.items():
        given = Console.parse(Main.Options, [*recipe, *learn.CHANGES, *learn.taught("out", start, teachers),
                                             "--train", *learned, "--test", measured], "")
        assert given.get("start") == (f"out/{start}" if start else None)
        assert given.get("teacher", []) == [f"out/{net}" for net in [start, *teachers] if net]
        assert not (start and "net" in given)


def test_the_whole_recipe_runs_and_runs_again(learn, in_folder, monkeypatch, capsys):
    for seed, name in enumerate(("16k", "aaf", "scut", "test4k")):
        write_database(in_folder, name, 40, seed)
    for name, (learned, measured, _, start, teachers) in learn.TRAININGS.items():
        recipe = ["--epochs", "1", *([] if start else ["--net", "perceptron"])]
        monkeypatch.setitem(learn.TRAININGS, name, (learned, measured, recipe, start, teachers))
    monkeypatch.setattr(learn, "LABELLER", ["--net", "perceptron", "--epochs", "1"])
    monkeypatch.setattr(learn, "NOBODY", ("learn100", "held20"))
    monkeypatch.setattr(learn, "CHANGES", [])
    for part in "SHIPPED", "LABELLER":
        (in_folder / part).mkdir()
        monkeypatch.setattr(synthesise, part, in_folder / part)
    assert Console.run(learn.main, [".", "--out", "out"]) == 0
    weights = {part: Models.load(in_folder / part)[0].variables for part in ("SHIPPED", "LABELLER")}
    of_the_mean = [Models.load(in_folder / "out" / net)[0].variables for net in learn.MEANS["all_4"]]
    for variable, *parts in zip(weights["SHIPPED"], *of_the_mean, strict=True):
        np.testing.assert_allclose(variable, np.mean(parts, 0), rtol=1e-6, atol=1e-7)
    assert capsys.readouterr().out.count("data_aaf.bin: accuracy ") == 1
    assert Console.run(learn.main, [".", "--out", "out"]) == 0  # all is done already
    for part, before in weights.items():
        for variable, value in zip(Models.load(in_folder / part)[0].variables, before, strict=True):
            np.testing.assert_array_equal(variable, value)


def test_the_weights_tell_what_they_learned_from(learn):
    described = json.loads((PRETRAINED / Models.DESCRIPTION).read_text(encoding="utf-8"))
    record = json.loads(json.dumps(learn.origin(list(learn.TRAININGS)[-1])))
    assert {key: described[key] for key in record} == record
