"""A user's mistake is one line on stderr (file or value, expected, found, remedy), exit code 2, and nothing written."""
import contextlib
import errno
import io
import os
import shutil
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
import tensorflow as tf

import Console
import Dataset
import Main
import Main_adversarial
import Main_inference
import Main_retrain
import Main_robustness
import Models
from conftest import write_database

FACE = np.arange(Dataset.DIM, dtype=np.uint8)


def refuse(outcome, *expected):
    code, out, err = outcome
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1 and err.endswith("\n"), err
    for words in expected:
        assert words in err
    return err


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# Each: what is done to a good database, and what the message must say.
DATABASES = {
    "data missing": (lambda d, g: d.unlink(), "data_bad.bin: no such file"),
    "data empty": (lambda d, g: d.write_bytes(b""), "data_bad.bin: empty"),
    "data truncated": (lambda d, g: d.write_bytes(d.read_bytes()[:-1]), "not a whole number of 48x48 faces"),
    "faces of 64x64": (lambda d, g: d.write_bytes(bytes(64 * 64 * 20)), "not a whole number of 48x48 faces"),
    "data is a folder": (lambda d, g: (d.unlink(), d.mkdir()), "data_bad.bin: not a file"),
    "labels missing": (lambda d, g: g.unlink(), "gender_bad.bin: no such file"),
    "labels empty": (lambda d, g: g.write_bytes(b""), "gender_bad.bin: empty"),
    "labels truncated": (lambda d, g: g.write_bytes(g.read_bytes()[:-3]), "not a whole number of labels"),
    "a label too few": (lambda d, g: g.write_bytes(g.read_bytes()[:-8]), "19 labels, but"),
    "a face too few": (lambda d, g: d.write_bytes(d.read_bytes()[:-2304]), "holds 19 faces"),
    "labels not one-hot": (lambda d, g: np.ones((20, 2), "<f4").tofile(g), "label 0 is (1, 1); expected one-hot"),
    "labels of doubles": (lambda d, g: np.eye(2)[np.zeros(10, int)].tofile(g), "expected one-hot"),
    "labels as 0 and 1 in one column": (lambda d, g: (np.arange(20) % 2).astype("<f4").tofile(g), "10 labels, but"),
    "labels NaN": (lambda d, g: np.full((20, 2), np.nan, "<f4").tofile(g), "label 0 is (nan, nan)"),
}


@pytest.mark.parametrize("spoil, words", DATABASES.values(), ids=DATABASES.keys())
@pytest.mark.parametrize("role", ["train", "test", "inference"])
def test_malformed_database(run, in_folder, database, checkpoint, spoil, words, role):
    bad = write_database(in_folder, "bad", 20)
    spoil(bad, in_folder / "gender_bad.bin")
    before = files(in_folder)
    if role == "inference":
        outcome = run(Main_inference, bad, "--checkpoint", checkpoint)
    else:
        other = {"train": ("--test", database), "test": ("--train", database)}[role]
        outcome = run(Main, f"--{role}", bad, *other)
    refuse(outcome, words)
    assert files(in_folder) == before


MAIN = {
    "unknown net": (["--net", "vgg"], "invalid choice: 'vgg'"),
    "unknown optimizer": (["--optimizer", "adamw"], "invalid choice: 'adamw'"),
    "unknown flag": (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
    "no change and a change": (["--augment", "none", "flip"], "--augment none flip: none stands alone"),
    "no epochs": (["--epochs", "0"], "--epochs: 0: expected 1 or more"),
    "more epochs than can be counted": (["--epochs", "9" * 20], f"--epochs: {'9' * 20}: too large"),
    "half an epoch": (["--epochs", "0.5"], "'0.5' is not a whole number"),
    "a word for a number": (["--batch-size", "many"], "'many' is not a whole number"),
    "batch of none": (["--batch-size", "-4"], "--batch-size: -4: expected 1 or more"),
    "dropout of all": (["--dropout", "1"], "--dropout: 1: expected a number in [0, 1)"),
    "a label of more than the teachers": (["--teaching", "1.01"], "--teaching: 1.01: expected a number in [0, 1]"),
    "dropout NaN": (["--dropout", "nan"], "--dropout: nan: expected a number in [0, 1)"),
    "learning rate 0": (["--learning-rate", "0"], "--learning-rate: 0: expected 1e-12 or more"),
    "learning rate infinite": (["--learning-rate", "inf"], "--learning-rate: inf"),
    "negative seed": (["--seed", "-1"], "--seed: -1"),
    "all faces validate": (["--validation", "1"], "--validation: 1: expected"),
    "no filters": (["--nb-filter", "0"], "--nb-filter: 0"),
    "too many blocks": (["--nb-block", "40"], "--nb-block: 40"),
    "share of no teacher": (["--teaching", "0.5"], "--teaching does nothing without --teacher; add that"),
    "frozen first weights": (["--freeze", "2"], "--freeze does nothing without --from; add that"),
    "steps of no attack": (["--adversarial-steps", "2"], "--adversarial-steps does nothing without --adversarial;"),
    "depth of another net": (["--output-dim", "16"], "net resnet has no option output_dim"),
    "option of another net": (["--net", "nn4", "--nb-conv", "3"], "net nn4 has no option nb_conv; it has activation"),
    "option of no net": (["--net", "perceptron", "--nb-block", "2"], "net perceptron has no option nb_block"),
    "value missing": (["--out"], "--out: expected one argument"),
    "name of no database": (["--test", "elsewhere"], "data_elsewhere.bin: no such file"),
    "file of another name": (["--test", "faces.bin"], "faces.bin: expected a name such as 10k"),
    "nothing to resume": (["--resume"], "no training under checkpoints/"),
    "nothing to resume there": (["--resume", "--out", "empty"], "network.json: missing, or not written by Main.py"),
}


@pytest.mark.parametrize("arguments, words", MAIN.values(), ids=MAIN.keys())
def test_mistake_in_learning(run, in_folder, database, arguments, words):
    train = [] if "--resume" in arguments else ["--train", database]
    refuse(run(Main, *train, *arguments), words)
    assert files(in_folder) == []


def test_test_base_among_the_training_bases(run, database):
    refuse(run(Main, "--train", database, "--test", database), "holds faces never learned")


def test_too_few_faces_to_split(run, in_folder):
    refuse(run(Main, "--train", write_database(in_folder, "one", 1)), "too few to keep 1 for validation")


@pytest.mark.parametrize("option", ["--out", "--logs"])
def test_folder_that_cannot_be_written(run, in_folder, database, option):
    (in_folder / "file").write_bytes(b"mine")
    arguments = ["--train", database, "--net", "small", "--out", "run"]
    refuse(run(Main, *arguments, option, in_folder / "file" / "deeper"), "choose another")
    assert [*in_folder.iterdir()] == [in_folder / "file"]


@pytest.mark.parametrize("name", ["run [1]", "run*", "run?"])
def test_folder_in_which_tensorflow_finds_no_checkpoint(run, in_folder, database, name):
    expected = f"{name}: TensorFlow finds no checkpoint"
    refuse(run(Main, "--train", database, "--net", "small", "--out", name), expected)
    refuse(run(Main_retrain, "--from", "nothing", "--train", database, "--out", name), expected)
    assert not files(in_folder)


def test_name_too_long(run, in_folder, checkpoint):
    (in_folder / "face.raw").write_bytes(bytes(Dataset.DIM))
    refuse(run(Main_inference, "x" * 300, "--checkpoint", checkpoint), "x: no such file")
    refuse(run(Main_inference, "face.raw", "--checkpoint", "x" * 300), "File name too long")
    refuse(run(Main_inference, f"data_{'x' * 300}.bin", "--checkpoint", checkpoint), "File name too long")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text here")
def test_name_that_is_no_text(run, in_folder, checkpoint):
    (in_folder / os.fsdecode(b"\xff.raw")).write_bytes(bytes(Dataset.DIM))
    code, out, _ = run(Main_inference, os.fsdecode(b"\xff.raw"), "--checkpoint", checkpoint)
    assert code == 0 and out.startswith(r"\udcff.raw: ")


@pytest.mark.parametrize("script, arguments", [
    (Main, ["--train", "DATABASE", "--out"]), (Main, ["--train", "DATABASE", "--logs"]), (Main, ["--train"]),
    (Main_inference, ["face.raw", "--checkpoint"]), (Main_robustness, ["DATABASE", "--checkpoint"])])
def test_folder_whose_name_tensorflow_cannot_open(run, in_folder, database, script, arguments):
    (in_folder / "face.raw").write_bytes(bytes(Dataset.DIM))
    arguments = [database if argument == "DATABASE" else argument for argument in arguments]
    refuse(run(script, *arguments, os.fsdecode(b"data_\xff.bin")), "TensorFlow opens no file whose name is not UTF-8")
    assert files(in_folder) == [in_folder / "face.raw"]


def test_a_picture_is_not_written_over_by_the_sheet_of_its_answers(run, in_folder, checkpoint):
    Image.fromarray(FACE.reshape(48, 48)).save("inference.png")
    before = Path("inference.png").read_bytes()
    refuse(run(Main_inference, in_folder / "inference.png", "--checkpoint", checkpoint), "would be written over")
    assert Path("inference.png").read_bytes() == before
    assert run(Main_inference, "inference.png", "--checkpoint", checkpoint, "--out", "sheets", "--no-show")[0] == 0


@pytest.mark.parametrize("read", ["adv_a_ori.raw", "adv_a_mod.raw", "adv_a_amp.raw"])
def test_a_face_is_not_written_over_by_what_misleads_about_it(run, in_folder, checkpoint, read):
    Path(read).write_bytes(FACE.tobytes())
    arguments = ["man", "--checkpoint", checkpoint, "--steps", 1, "--no-show"]
    refuse(run(Main_adversarial, read, *arguments, "--name", "a"), "would be written over", "--name or --out")
    assert files(in_folder) == [in_folder / read] and Path(read).read_bytes() == FACE.tobytes()
    assert run(Main_adversarial, read, *arguments, "--name", "b")[0] in (0, 1)
    assert Path(read).read_bytes() == FACE.tobytes()


def test_a_blank_in_a_name_is_told_as_it_is(run, in_folder):
    refuse(run(Main_inference, "a  b.png"), "a  b.png: no such file")


def test_a_notebook_s_stdout_is_written_to(in_folder, checkpoint):
    (in_folder / "face.raw").write_bytes(bytes(Dataset.DIM))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert Console.run(Main_inference.main, ["face.raw", "--checkpoint", str(checkpoint)]) == 0
    assert out.getvalue().startswith("face.raw: ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_not_taken_for_full_memory(run, number):
    def fill(argv):
        raise tf.errors.ResourceExhaustedError(None, None, f"my_model-1.data; {os.strerror(number)}")
    refuse(run(types.SimpleNamespace(__name__="Main", main=fill)), "the disk is full")


def test_error_of_ours_that_names_a_file_keeps_its_traceback(run):
    with pytest.raises(FileNotFoundError):
        run(types.SimpleNamespace(__name__="Main", main=lambda argv: open("never written")))


@pytest.mark.parametrize("option, answer, note", [([], "face.raw: ", "inference.png: cannot be written"),
                                                  (["--json"], "[", "")])
def test_answer_is_given_where_its_picture_cannot_be_written(run, in_folder, checkpoint, option, answer, note):
    (in_folder / "inference.png").mkdir()
    (in_folder / "face.raw").write_bytes(bytes(Dataset.DIM))
    code, out, err = run(Main_inference, "face.raw", "--checkpoint", checkpoint, *option)
    assert code == 0 and out.startswith(answer) and err.startswith(note) and err.count("\n") == bool(note)


def test_folder_of_steps_that_cannot_be_written(run, in_folder, checkpoint):
    (in_folder / "file").write_bytes(b"mine")
    (in_folder / "face.raw").write_bytes(bytes(Dataset.DIM))
    refuse(run(Main_adversarial, "face.raw", "man", "--checkpoint", checkpoint, "--logs", "file"), "file: the folder")


@pytest.mark.parametrize("option", [["--weight", "1e39"], ["--attack", "pgd", "--radius", "1e30"]])
def test_number_beyond_every_picture(run, in_folder, checkpoint, option):
    (in_folder / "face.raw").write_bytes(bytes(Dataset.DIM))
    refuse(run(Main_adversarial, "face.raw", "man", "--checkpoint", checkpoint, *option), "expected a number in [")


@pytest.mark.parametrize("script, arguments", [
    (Main_inference, ["face.raw"]), (Main_inference, ["DATABASE"]), (Main_adversarial, ["face.raw", "man"]),
    (Main_robustness, ["DATABASE", "--attack", "ddn", "pgd", "--steps", "2"]),
    (Main_robustness, ["DATABASE", "--transfer", "--steps", "2"]),
    (Main_robustness, ["DATABASE", "--transfer", "--substitute", "small", "--query-faces", "DATABASE"])],
    ids=["use", "measure", "mislead", "curves", "transfer", "black box"])
def test_net_whose_weights_are_no_numbers(run, in_folder, database, script, arguments):
    net = Models.build("perceptron")
    net.fc2.b.assign([np.nan, 0.0])
    tf.train.Checkpoint(net=net).write(str(in_folder / "my_model-1"))
    (in_folder / "face.raw").write_bytes(bytes(Dataset.DIM))
    arguments = [database if argument == "DATABASE" else argument for argument in arguments]
    before = files(in_folder)
    more = ["--queries", "100"] if "--substitute" in arguments else []
    refuse(run(script, *arguments, *more, "--checkpoint", in_folder), "answers with no number")
    if script is not Main_robustness or more:
        assert files(in_folder) == before


def test_options_that_cannot_go_together(run, in_folder, database, checkpoint):
    (in_folder / "face.raw").write_bytes(bytes(Dataset.DIM))
    refuse(run(Main, "--train", database, "--from", checkpoint, "--net", "resnet"), "leave --net out")
    refuse(run(Main, "--train", database, "--find-lr", "--teacher", "nowhere"), "nowhere: no checkpoint")
    refuse(run(Main, "--train", database, "--find-lr", "--warm-up", "0"), "leave --warm-up out")
    refuse(run(Main, "--train", database, "--from", checkpoint, "--freeze", "99"), "one must learn")
    shutil.copytree(checkpoint, in_folder.parent / "my[1]")
    refuse(run(Main, "--train", database, "--from", in_folder.parent / "my[1]"), "from-my[1]-")
    assert not (in_folder / "checkpoints").exists()
    refuse(run(Main_adversarial, "face.raw", "man", "--checkpoint", checkpoint, "--norm", "none", "--weight", "5"),
           "weight 5: norm none has no penalty")
    transfer = [database, "--checkpoint", checkpoint, "--transfer"]
    refuse(run(Main_robustness, *transfer, "--norm", "l1", "--radii", "16", "--substitute", "small", "--query-faces",
               database, "--queries", "100"), "--radii 16: PGD needs 48 or more under l1")
    refuse(run(Main_robustness, *transfer, "--radii", "1e39"), "expected a number in [1, ")
    refuse(run(Main_robustness, database, "--checkpoint", checkpoint, "--purify", "1e200"), "expected a number in [0, ")
    assert files(in_folder) == [in_folder / "face.raw"]


def test_folder_that_holds_a_training(run, in_folder, database, checkpoint):
    refuse(run(Main, "--train", database, "--out", checkpoint), "holds a training already that cannot go on;")
    shutil.copytree(checkpoint, in_folder / "a" / "last")
    refuse(run(Main, "--train", database, "--out", "a"), "holds a training already; go on with it with --resume")


def test_diverged_training(run, database):
    code, out, err = run(Main, "--train", database, "--net", "small", "--learning-rate", "1e30", "--epochs", "10",
                         "--optimizer", "sgd", "--logs", "none")
    assert code == 2 and err.count("\n") == 1
    assert "the training diverged; choose a smaller --learning-rate" in err


def test_diverged_weights_are_not_kept(run, in_folder, database):
    code, _, err = run(Main, "--train", database, "--net", "nn4", "--learning-rate", "1e30", "--epochs", "2",
                       "--optimizer", "sgd", "--batch-size", "30", "--logs", "none", "--out", "out")
    assert code == 2 and "the training diverged" in err
    assert not list(in_folder.rglob("*.index"))


def spoiled(picture, folder):
    folder.mkdir()
    return picture(folder)


PICTURES = {
    "missing": (lambda f: f / "face.png", "no such file"),
    "empty": (lambda f: _write(f / "face.png", b""), "not a picture"),
    "text": (lambda f: _write(f / "face.jpg", b"this is no picture"), "not a picture"),
    "truncated": (lambda f: _truncated(f / "face.png"), "not a picture that can be read"),
    "folder": (lambda f: f, "not a file"),
    "1x1": (lambda f: _picture(f / "face.png", (1, 1)), "1x1 pixels; a face needs at least 16x16"),
    "flat": (lambda f: _picture(f / "face.png", (400, 8)), "400x8 pixels"),
    "huge": (lambda f: _huge(f / "face.png"), "million pixels; reduce it first"),
    "raw too short": (lambda f: _write(f / "face.raw", FACE.tobytes()[1:]), "2303 bytes; a .raw face is 48x48"),
    "raw too long": (lambda f: _write(f / "face.raw", bytes(64 * 64)), "4096 bytes; a .raw face is 48x48"),
    "raw empty": (lambda f: _write(f / "face.raw", b""), "0 bytes; a .raw face is 48x48"),
}


def _write(path, content):
    path.write_bytes(content)
    return path


def _picture(path, size):
    Image.new("L", size).save(path)
    return path


def _truncated(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99), np.uint8)).save(path)
    return _write(path, path.read_bytes()[:3000])


def _huge(path):
    content = bytearray(_picture(path, (1, 1)).read_bytes())
    content[16:24] = (20000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return _write(path, bytes(content))


@pytest.mark.parametrize("picture, words", PICTURES.values(), ids=PICTURES.keys())
@pytest.mark.parametrize("script", [Main_inference, Main_adversarial], ids=["use", "mislead"])
def test_picture_that_is_none(run, in_folder, checkpoint, script, picture, words):
    path = spoiled(picture, in_folder / "given")
    before = files(in_folder)
    label = ["woman"] if script is Main_adversarial else []
    err = refuse(run(script, path, *label, "--checkpoint", checkpoint), words)
    assert str(path) in err
    assert files(in_folder) == before


def test_one_bad_picture_among_good_ones_stops_before_any_answer(run, in_folder, checkpoint):
    good = _picture(in_folder / "good.png", (48, 48))
    refuse(run(Main_inference, good, in_folder / "bad.png", "--checkpoint", checkpoint), "bad.png: no such file")


ATTACKS = {
    "unknown label": (["child"], "unknown label 'child'; expected one of man"),
    "no label": ([], "the following arguments are required: WRONGLABEL"),
    "unknown norm": (["man", "--norm", "l3"], "invalid choice: 'l3'"),
    "unknown attack": (["man", "--attack", "magic"], "invalid choice: 'magic'"),
    "option of another attack": (["man", "--attack", "fgsm", "--steps", "9"], "attack fgsm has no option steps; "
                                 "it has radius"),
    "weight of another attack": (["man", "--attack", "ddn", "--weight", "3"], "attack ddn has no option weight"),
    "radius of another attack": (["man", "--radius", "3"], "attack dx has no option radius"),
    "norm of another attack": (["man", "--attack", "pgd", "--norm", "l1"], "norm l1: this attack has linf, l2"),
    "no radius": (["man", "--attack", "fgsm", "--radius", "0"], "--radius: 0: expected a number in [1, 12240]"),
    "negative weight": (["man", "--weight", "-1"], "--weight: -1: expected a number in [0, 1e+09]"),
    "a change that is none": (["man", "--survive", "jpeg,rain"], "no change 'rain' to survive; expected jpeg, shift, "
                              "light"),
    "a change without a name": (["man", "--survive", "jpeg,"], "no change '' to survive"),
    "no change": (["man", "--survive"], "--survive: expected at least one argument"),
    "no steps": (["man", "--steps", "0"], "--steps: 0: expected 1 or more"),
    "more steps than can be counted": (["man", "--steps", "2147483648"], "--steps: 2147483648: too large"),
    "box of three": (["man", "--box", "1,2,3"], "--box 1,2,3: expected X,Y,W,H"),
    "box of words": (["man", "--box", "a,b,c,d"], "expected X,Y,W,H"),
    "box outside": (["man", "--box", "40,0,10,10"], "inside 48x48"),
    "box of nothing": (["man", "--box", "4,4,0,9"], "inside 48x48"),
    "name with a folder": (["man", "--name", "a/b"], "expected a name without folders"),
}


@pytest.mark.parametrize("arguments, words", ATTACKS.values(), ids=ATTACKS.keys())
def test_mistake_in_misleading(run, in_folder, checkpoint, arguments, words):
    face = _write(in_folder / "face.raw", FACE.tobytes())
    refuse(run(Main_adversarial, face, *arguments, "--checkpoint", checkpoint), words)
    assert files(in_folder) == [face]


@pytest.mark.parametrize("script", [Main_inference, Main_adversarial], ids=["use", "mislead"])
def test_results_folder_that_cannot_be_written(run, in_folder, checkpoint, script):
    face = _write(in_folder / "face.raw", FACE.tobytes())
    label = ["woman"] if script is Main_adversarial else []
    refuse(run(script, face, *label, "--checkpoint", checkpoint, "--out", face / "deeper"), "cannot be written")


def _half(folder):
    next(folder.glob("*.data*")).unlink()


def _truncated_weights(folder):
    data = next(folder.glob("*.data*"))
    data.write_bytes(data.read_bytes()[:500])


def _no_index(folder):
    next(folder.glob("*.index")).unlink()


def _another_net(folder):
    (folder / Models.DESCRIPTION).write_text(Models.build("nn4").description)


def _broken_description(folder):
    (folder / Models.DESCRIPTION).write_text("{")


def _without_net(folder):
    shutil.rmtree(folder)
    tf.train.Checkpoint(step=tf.Variable(1)).save(str(folder / "my_model"))


CHECKPOINTS = {
    "half of it": (_half, "not a whole tf.train.Checkpoint"),
    "truncated": (_truncated_weights, "not a whole tf.train.Checkpoint"),
    "no index": (_no_index, "no checkpoint; expected a folder with one"),
    "missing": (shutil.rmtree, "no checkpoint; expected a folder with one"),
    "of another net": (_another_net, "checkpoint of another net than the SmallConvNet expected: net/cv1/b is (3,)"),
    "broken description": (_broken_description, "network.json: does not describe a net"),
    "without a net": (_without_net, "no net in it; expected variables net/..."),
}


@pytest.mark.parametrize("spoil, words", CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_checkpoint_that_cannot_be_restored(run, in_folder, checkpoint, spoil, words):
    folder = in_folder / "trained"
    shutil.copytree(checkpoint, folder)
    spoil(folder)
    face = _write(in_folder / "face.raw", FACE.tobytes())
    before = files(in_folder)
    refuse(run(Main_inference, face, "--checkpoint", folder), words)
    assert files(in_folder) == before


def test_nothing_learned_yet(run, in_folder, monkeypatch):
    monkeypatch.setattr(Console, "__file__", str(in_folder / "Console.py"))
    face = _write(in_folder / "face.raw", FACE.tobytes())
    refuse(run(Main_inference, face), "nothing learned yet", "python Main.py")


def test_meta_file_of_another_database(run, in_folder, checkpoint):
    data = write_database(in_folder, "x", 20)
    (in_folder / "meta_x.csv").write_text("age,ethnicity\n30,0\n")
    refuse(run(Main_inference, data, "--checkpoint", checkpoint), "meta_x.csv: expected the columns age,ethnicity")


@pytest.mark.parametrize("system, word, expected", [
    ("posix", "a b", "'a b'"), ("posix", "checkpoints/a", "checkpoints/a"), ("nt", r"checkpoints\a", r"checkpoints\a"),
    ("nt", r"my nets\a", r'"my nets\a"')])
def test_a_command_to_go_on_is_quoted_as_the_system_reads_it(monkeypatch, system, word, expected):
    monkeypatch.setattr(Console.os, "name", system)
    assert Console.quoted(word) == expected
