"""The entry scripts as a user runs them, each in a process of its own."""
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import Attacks
import Console
import Dataset
import Main
import Main_adversarial
import Main_inference
import Main_robustness
import Models
import Training
from DataBases import photo
from conftest import write_database

ROOT = Path(__file__).resolve().parents[1]


def start(folder, script, *arguments, **options):
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("DISPLAY", "WAYLAND_DISPLAY", "TF_CPP_MIN_LOG_LEVEL")}
    return subprocess.Popen([sys.executable, str(ROOT / script), *map(str, arguments)], cwd=folder, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(folder, script, *arguments):
    process = start(folder, script, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory, database):
    """A folder in which Main.py has run; its output."""
    folder = tmp_path_factory.mktemp("work")
    code, out, err = run(folder, "Main.py", "--train", database, "--test", database.parent / "data_test.bin",
                         "--net", "small", "--epochs", "25", "--batch-size", "16")
    assert (code, err) == (0, "")
    face = Dataset.read_faces(database.parent / "data_test.bin")[:2].reshape(2, 48, 48)
    for name, grey in zip(("man", "woman"), face):
        Image.fromarray(grey).save(folder / f"{name}.png")
    return folder, out


def test_learn_then_use_on_the_test_base_gives_the_same_accuracy(trained, database):
    folder, out = trained
    last = out.splitlines()[-1]
    assert last.startswith("test accuracy ") and last.endswith(" of 60)")
    code, said, err = run(folder, "Main_inference.py", database.parent / "data_test.bin", "--json")
    (answer,) = json.loads(said)
    assert (code, err) == (0, "")
    assert last == f"test accuracy {100 * answer['accuracy']:.2f} %  ({answer['correct']} of {answer['faces']})"
    assert answer["accuracy"] > 0.9


def pixels(path):
    with Image.open(path) as picture:
        return np.array(picture)


def test_mislead_writes_files_that_inference_calls_wrong(trained):
    folder, _ = trained
    code, out, err = run(folder, "Main_adversarial.py", "woman.png", "homme", "--name", "ann_bob")
    assert code == 0
    assert err == "picture saved as adv_ann_bob.png\n"
    assert out.startswith("woman.png: woman ") and "adv_ann_bob_mod.raw: man " in out
    ori, mod, amp = (np.fromfile(folder / f"adv_ann_bob_{kind}.raw", np.uint8) for kind in ("ori", "mod", "amp"))
    np.testing.assert_array_equal(ori.reshape(48, 48), pixels(folder / "woman.png"))
    np.testing.assert_array_equal(amp, np.clip(50 * np.abs(mod.astype(int) - ori), 0, 255))
    for kind, face in ("ori", ori), ("mod", mod), ("amp", amp):
        np.testing.assert_array_equal(pixels(folder / f"adv_ann_bob_{kind}.png"), face.reshape(48, 48))
    code, out, err = run(folder, "Main_inference.py", "adv_ann_bob_mod.raw", "adv_ann_bob_mod.png", "woman.png")
    assert [line.split()[1] for line in out.splitlines()] == ["man", "man", "woman"]


def test_importing_a_script_starts_nothing(tmp_path):
    code = ("import Main, Main_inference, Main_adversarial, Main_robustness, Main_retrain, Main_meta\n"
            "from DataBases import build, fit, synthesise")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not [path for path in tmp_path.iterdir() if path.name != "__pycache__"]


def test_the_oldest_python_that_is_promised_reads_every_file(tmp_path):
    oldest = re.search(r'requires-python = ">=(.*)"', (ROOT / "pyproject.toml").read_text())[1]
    python = shutil.which(f"python{oldest}")
    if not python or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"no Python {oldest} here")
    code = "import sys; [compile(open(path, encoding='utf-8').read(), path, 'exec') for path in sys.argv[1:]]"
    files = [path for folder in (".", "DataBases", "benchmarks", "pretrained", "tests")
             for path in (ROOT / folder).glob("*.py")]
    done = subprocess.run([python, "-c", code, *files], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_mistake_is_one_line_without_traceback(tmp_path):
    code, out, err = run(tmp_path, "Main_inference.py", "nobody.png")
    assert (code, out) == (2, "")
    assert err == "Main_inference.py: nobody.png: no such file\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full always is a full disk, on Linux")
def test_full_disk_under_the_output_is_one_line(trained):
    folder, _ = trained
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, str(ROOT / "Main_inference.py"), "woman.png"], cwd=folder, stdout=full,
                              stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "Main_inference.py: the disk is full; make room, or choose another folder\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_without_stdout_or_stderr_the_work_is_done(trained, closed):
    folder, _ = trained
    done = subprocess.run(f"{sys.executable} {ROOT / 'Main_inference.py'} woman.png --no-show --out closed {closed}",
                          shell=True, cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "closed" / "inference.png").is_file()
    shutil.rmtree(folder / "closed")


def wait_for(condition, seconds=120):
    while not condition():
        seconds -= 0.1
        assert seconds > 0
        time.sleep(0.1)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, database):
    process = start(tmp_path, "Main.py", "--train", database, "--net", "small", "--epochs", "100000", "--out", "run")
    wait_for((tmp_path / "run" / "metrics.json").exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert out.endswith(", and saved; go on with\n    python Main.py --resume --out run\n")
    process = start(tmp_path, "Main.py", "--resume", "--out", "run")
    saved = (tmp_path / "run" / "metrics.json").stat().st_mtime
    wait_for(lambda: (tmp_path / "run" / "metrics.json").stat().st_mtime > saved)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0].endswith("python Main.py --resume --out run\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("ending, ignored", [("SIGTERM", "SIGINT"), ("SIGHUP", None)])  # SIGINT is, behind a script's &
def test_the_end_of_a_batch_system_or_a_terminal_saves_too(tmp_path, database, ending, ignored):
    def begin():  # the tests themselves may run behind nohup
        signal.signal(getattr(signal, ending), signal.SIG_DFL)
        if ignored:
            signal.signal(getattr(signal, ignored), signal.SIG_IGN)
    process = start(tmp_path, "Main.py", "--train", database, "--net", "small", "--epochs", "100000", "--out", "run",
                    preexec_fn=begin)
    wait_for((tmp_path / "run" / "metrics.json").exists)
    process.send_signal(getattr(signal, ending))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert out.endswith(", and saved; go on with\n    python Main.py --resume --out run\n")


def call(script, *arguments):
    return Console.run(script.main, [str(argument) for argument in arguments])


def test_json_of_faces_and_of_a_database(in_folder, checkpoint, capsys):
    data = write_database(in_folder, "some", 20)
    (in_folder / "meta_some.csv").write_text("age,ethnicity\n" + "30,0\n" * 12 + "4,2\n" * 8)
    Image.fromarray(Dataset.read_faces(data)[0].reshape(48, 48)).resize((96, 130)).save("large.png")
    assert call(Main_inference, "large.png", data, "--checkpoint", checkpoint, "--json") == 0
    out, err = capsys.readouterr()
    face, base = json.loads(out)
    assert err == ""
    assert face.keys() == {"path", "label", "probability", "logits"}
    share = np.exp(face["logits"]) / np.sum(np.exp(face["logits"]))
    assert face["label"] == ("man", "woman")[int(np.argmax(share))]
    assert face["probability"] == pytest.approx(share.max(), abs=1e-6)
    (mm, mw), (wm, ww) = base["confusion"]
    assert base["faces"] == 20 and base["correct"] == mm + ww and base["accuracy"] == (mm + ww) / 20
    assert base["balanced_accuracy"] == pytest.approx((mm / (mm + mw) + ww / (wm + ww)) / 2)
    assert base["groups"]["age"]["16-30"]["faces"] == base["groups"]["age"]["16+"]["faces"] == 12
    assert base["groups"]["ethnicity"]["Asian"]["faces"] == 8
    assert sum(group["correct"] for group in base["groups"]["ethnicity"].values()) == base["correct"]


def test_several_nets_and_views_answer_with_their_mean(in_folder, checkpoint, database, capsys):
    other = Models.build("small")
    Dataset.make_folder("other")
    tf.train.Checkpoint(net=other).write("other/my_model-1")
    Path("other/network.json").write_text(other.description)
    face = Dataset.read_faces(database)[0]
    face.tofile("face.raw")
    assert Console.run(Main_inference.main, ["face.raw", "--json", "--checkpoint", str(checkpoint), "other",
                                             "--views", "flip"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    views = Dataset.to_float(np.stack([face, face.reshape(48, 48)[:, ::-1].ravel()]))
    says = [tf.nn.log_softmax(net(tf.constant(views))) for net in (Models.load(checkpoint)[0], other)]
    np.testing.assert_allclose(answer["logits"], np.mean(says, (0, 1)), atol=1e-5)


def test_crops_are_the_corners_enlarged():
    seen = []
    Console.Committee([lambda face: seen.append(face) or tf.zeros([1, 2])], ["crops"])(
        tf.constant(np.arange(Dataset.DIM, dtype=np.float32)[None]))
    assert [tuple(face.shape) for face in seen] == [(1, Dataset.DIM)] * 5  # what every net takes
    whole, *corners = (face.numpy().reshape(48, 48) for face in seen)
    for corner, (top, left) in zip(corners, [(0, 0), (0, 2), (2, 0), (2, 2)], strict=True):
        assert corner.mean() == pytest.approx(whole[top:top + 46, left:left + 46].mean(), rel=1e-3)
        assert corner[0, 0] == whole[top, left] and corner[-1, -1] == whole[top + 45, left + 45]


def test_a_resized_picture_is_said(in_folder, checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(photo, "installed", lambda: False)
    Image.new("L", (300, 200), 90).save("wide.jpg")
    assert call(Main_inference, "wide.jpg", "--checkpoint", checkpoint) == 0
    out, err = capsys.readouterr()
    assert out.startswith("wide.jpg: ") and out.count("\n") == 1
    assert err == ("wide.jpg: 300x200 pixels: the middle square was brought to 48x48; to have its face found: "
                   'pip install -e ".[photo]"\n'
                   "picture saved as inference.png\n")


def test_json_of_an_attack_tells_of_the_files(in_folder, checkpoint, capsys):
    face = Dataset.read_faces(write_database(in_folder, "some", 4))[0]
    face.tofile("man.raw")
    assert call(Main_adversarial, "man.raw", "1", "--checkpoint", checkpoint, "--json", "--box", "0,0,30,30") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    ori, mod = (np.fromfile(report["paths"][kind], np.uint8).astype(float) for kind in ("ori", "mod"))
    assert report["grey_levels"] == pytest.approx({"l2": np.linalg.norm(mod - ori), "l1": np.abs(mod - ori).sum(),
                                                   "linf": np.abs(mod - ori).max()})
    assert report["unit_interval"]["l2"] == pytest.approx(np.linalg.norm(mod - ori) / 255)
    assert report["pixels_changed"] == np.count_nonzero(mod != ori) > 0
    assert not np.any((mod != ori).reshape(48, 48)[30:]) and not np.any((mod != ori).reshape(48, 48)[:, 30:])
    assert (report["before"]["label"], report["after"]["label"]) == ("man", "woman")
    assert report["fools"] is True and 0.5 < report["after"]["probability"] <= 1
    assert report["steps"] == 300 and report["seconds"] > 0


@pytest.mark.parametrize("arguments, norm, reached", [
    (["fgsm", "--radius", "1"], "linf", 1.0), (["pgd", "--norm", "l2", "--radius", "400"], "l2", 400.0),
    (["deepfool"], "l2", None), (["jsma"], "l0", None)])
def test_json_of_a_named_attack(in_folder, checkpoint, capsys, arguments, norm, reached):
    Dataset.read_faces(write_database(in_folder, "some", 4))[0].tofile("man.raw")
    code = call(Main_adversarial, "man.raw", "1", "--checkpoint", checkpoint, "--json", "--attack", *arguments)
    report = json.loads(capsys.readouterr().out)
    assert (report["attack"], report["norm"]) == (arguments[0], norm)
    assert report["fools"] is (code == 0) is (report["after"]["label"] == "woman")
    assert report["fools"] is (arguments[0] != "fgsm")
    assert report["passes"] == {"forward": report["steps"] + 2, "backward": report["steps"]}
    assert "weight" not in report
    if reached:
        assert 0 < report["grey_levels"][norm] <= reached


@pytest.mark.parametrize("written", [["jpeg,light"], ["jpeg", "light"]], ids=["commas", "spaces"])
def test_a_face_that_shall_survive_tells_how_often(in_folder, checkpoint, capsys, written):
    Dataset.read_faces(write_database(in_folder, "some", 4))[0].tofile("man.raw")
    command = ["man.raw", "1", "--checkpoint", checkpoint, "--steps", "60", "--survive", *written]
    assert call(Main_adversarial, *command, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    net, _ = Models.load(checkpoint)
    shares = Attacks.survival(net, np.fromfile("adv_man_mod.raw", np.uint8)[None], [1], ["jpeg", "light"])
    assert report["survives"] == {change: share[0] for change, share in shares.items()}
    assert report["steps"] == 60 and report["passes"]["backward"] == 60 * (1 + 2 * Attacks.Survivor.DRAWS)
    assert call(Main_adversarial, *command) == 0
    jpeg, light = (100 * shares[change][0] for change in ("jpeg", "light"))
    assert (f"\nfools after jpeg {jpeg:.0f} %, light {light:.0f} % of 100 changes each\n"
            in capsys.readouterr().out)


@pytest.mark.parametrize("attack, more", [("dx", []), ("deepfool", []), ("dx", ["--survive", "shift"])],
                         ids=["dx", "deepfool", "survive"])
def test_the_logs_of_an_attack_show_the_noise_grow(in_folder, checkpoint, capsys, attack, more):
    Dataset.read_faces(write_database(in_folder, "some", 4))[0].tofile("man.raw")
    assert call(Main_adversarial, "man.raw", "1", "--checkpoint", checkpoint, "--attack", attack, "--steps", "100",
                "--logs", "logs", "--json", *more) == 0
    report = json.loads(capsys.readouterr().out)
    events = EventAccumulator("logs/adv_man", {"tensors": 0})
    events.Reload()
    curves = {tag: [float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
              for tag in events.Tags()["tensors"] if tag not in ("picture", "noise, 50 times")}
    norms = {f"noise/{norm}, grey levels" for norm in ("l2", "l1", "linf")}
    assert set(curves) == {"loss", "probability of the wrong label"} | norms | ({"weight"} if attack == "dx" else set())
    assert {len(values) for values in curves.values()} == {report["steps"]}
    assert curves["probability of the wrong label"][0] == pytest.approx(report["before"]["probability_of_wrong_label"],
                                                                      abs=1e-5)
    assert curves["noise/l2, grey levels"][0] == 0 < curves["noise/l2, grey levels"][-1]
    pictures = {event.step: decode(event) for event in events.Tensors("picture")}
    noises = {event.step: decode(event) for event in events.Tensors("noise, 50 times")}
    last = max(pictures)
    assert last == report["steps"] + 1 and len(pictures) == math.ceil(report["steps"] / 2) + 1
    ori, mod = (np.fromfile(report["paths"][kind], np.uint8).astype(int) for kind in ("ori", "mod"))
    np.testing.assert_array_equal(pictures[1], ori)
    np.testing.assert_array_equal(pictures[last], mod)
    assert list(noises) == list(pictures)
    for step, picture in pictures.items():
        np.testing.assert_array_equal(noises[step], np.clip(50 * abs(picture - ori), 0, 255))
        if step < last:
            assert np.linalg.norm(picture - ori) == pytest.approx(curves["noise/l2, grey levels"][step - 1])


def test_each_attack_has_logs_of_its_own(in_folder, checkpoint):
    Dataset.read_faces(write_database(in_folder, "some", 4))[0].tofile("man.raw")
    Path("logs").mkdir()
    Path("logs/adv_man-2").write_text("a file")
    for steps in "2", "1", "3":
        call(Main_adversarial, "man.raw", "1", "--checkpoint", checkpoint, "--attack", "ddn", "--steps", steps,
             "--logs", "logs")
    for folder, steps in ("adv_man", 2), ("adv_man-3", 1), ("adv_man-4", 3):
        events = EventAccumulator(f"logs/{folder}", {"tensors": 0})
        events.Reload()
        assert len(events.Tensors("loss")) == steps


def test_logs_of_a_name_that_is_no_text_are_refused(in_folder, checkpoint, capsys):
    name = os.fsdecode(b"\xff.raw")
    Dataset.read_faces(write_database(in_folder, "some", 4))[0].tofile(name)
    arguments = [name, "1", "--checkpoint", checkpoint, "--attack", "ddn", "--steps", "2"]
    assert call(Main_adversarial, *arguments, "--logs", "logs") == 2
    err = capsys.readouterr().err
    assert "TensorFlow opens no file whose name is not UTF-8" in err and err.count("\n") == 1
    assert not Path("logs").exists() and call(Main_adversarial, *arguments, "--name", "man", "--logs", "logs") in (0, 1)


def decode(event):
    """The picture of an event, [2304] int."""
    return tf.io.decode_png(tf.make_ndarray(event.tensor_proto)[2]).numpy().reshape(-1).astype(int)


def test_an_attack_without_logs_writes_none(in_folder, checkpoint, capsys):
    Dataset.read_faces(write_database(in_folder, "some", 4))[0].tofile("man.raw")
    call(Main_adversarial, "man.raw", "1", "--checkpoint", checkpoint, "--attack", "fgsm")
    assert not [path for path in in_folder.rglob("*") if path.is_dir() or "event" in path.name]
    assert "tensorboard" not in capsys.readouterr().err


def test_advice_names_options_that_the_attack_takes(in_folder, checkpoint, capsys):
    Dataset.read_faces(write_database(in_folder, "some", 4))[0].tofile("man.raw")
    assert call(Main_adversarial, "man.raw", "1", "--checkpoint", checkpoint, "--attack", "fgsm", "--radius", "1") == 1
    assert capsys.readouterr().out.endswith("; try a larger --radius\n")
    assert call(Main_adversarial, "man.raw", "1", "--checkpoint", checkpoint, "--weight", "1e9",
                "--box", "0,0,9,9") == 1
    assert capsys.readouterr().out.endswith("; try more --steps or a smaller --weight or a larger --box\n")
    call(Main_adversarial, "man.raw", "1", "--checkpoint", checkpoint, "--box", "0,0,2,2", "--no-rounding")
    assert capsys.readouterr().out.endswith("; try it without --no-rounding\n")


def test_attack_that_fails_exits_1_and_says_how_far_it_came(in_folder, checkpoint, capsys):
    Dataset.read_faces(write_database(in_folder, "some", 4))[0].tofile("man.raw")
    assert call(Main_adversarial, "man.raw", "femme", "--checkpoint", checkpoint, "--weight", "1e9") == 1
    assert "not misled: the net gives woman " in capsys.readouterr().out


def test_attack_on_a_face_called_so_already_says_it(in_folder, checkpoint, capsys):
    face = Dataset.read_faces(write_database(in_folder, "some", 4))[0]
    face.tofile("man.raw")
    assert call(Main_adversarial, "man.raw", "male", "--checkpoint", checkpoint) == 0
    assert "says man of the original already" in capsys.readouterr().out
    np.testing.assert_array_equal(np.fromfile("adv_man_mod.raw", np.uint8), face)


def test_progress_is_told_of_a_long_database_and_of_a_range_test(database, in_folder, checkpoint, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert call(Main_inference, str(database), "--checkpoint", checkpoint) == 0
    assert "100 %" in "".join(terminal) and "faces/s" in "".join(terminal)
    terminal.clear()
    assert call(Main, "--train", str(database), "--net", "small", "--find-lr") == 0
    assert "steps/s" in "".join(terminal) and "loss" in "".join(terminal)


@pytest.fixture
def interruptible():
    """Ctrl-C as at a terminal: a process started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_misleading_writes_nothing(in_folder, checkpoint, monkeypatch, capsys, interruptible):
    def interrupted(search):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Attacks.Misleading, "_step", interrupted)
    monkeypatch.setattr(sys, "argv", ["Main_adversarial.py"])
    face = in_folder / "face.raw"
    face.write_bytes(bytes(Dataset.DIM))
    assert call(Main_adversarial, face, "man", "--checkpoint", checkpoint) == 130
    assert capsys.readouterr() == ("", "Main_adversarial.py: interrupted\n")
    assert list(in_folder.iterdir()) == [face]


@pytest.mark.parametrize("arguments, display, opened", [
    ([], ":9", 1), (["--no-show"], ":9", 0), (["--json"], ":9", 0), ([], "", 0)])
def test_a_window_opens_only_where_it_should(in_folder, checkpoint, monkeypatch, capsys, arguments, display, opened):
    windows = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Console.ImageShow, "show", lambda picture, title: windows.append(picture.size) or True)
    monkeypatch.setenv("DISPLAY", display)
    Image.new("L", (48, 48), 90).save("face.png")
    assert call(Main_inference, "face.png", "--checkpoint", checkpoint, *arguments) == 0
    assert len(windows) == opened
    assert ("picture shown, and saved" in capsys.readouterr().err) == bool(opened)
    with Image.open("inference.png") as sheet:
        assert sheet.size == (208, 232)


def test_newest_training_is_the_default(in_folder):
    for number, folder in enumerate(["checkpoints/old", "checkpoints/new", "checkpoints/new/last"]):
        path = in_folder / folder / "my_model-1.index"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (number, number))
    (in_folder / "checkpoints/new/network.json").touch()
    assert Console.default_checkpoint() == Path("checkpoints/new/my_model-1.index")
    (in_folder / "checkpoints/last").mkdir()  # a training of that name
    (in_folder / "checkpoints/last/my_model-1.index").touch()
    assert Console.default_checkpoint() == Path("checkpoints/last/my_model-1.index")
    (in_folder / "checkpoints/last/my_model-2_temp").mkdir()  # while TensorFlow writes
    (in_folder / "checkpoints/last/my_model-2_temp/part-00000-of-00001.index").touch()
    assert Console.default_checkpoint() == Path("checkpoints/last/my_model-1.index")
    (in_folder / "checkpoints/last/my_model-3.index").symlink_to("gone")
    assert Console.default_checkpoint() == Path("checkpoints/last/my_model-1.index")


def test_an_option_that_stands_twice_is_one_list():
    given = Console.parse(Main.Options, ["--train", "a", "b", "--epochs", "3", "--train", "c"], "")
    assert given == {"train": ["a", "b", "c"], "epochs": 3}


def test_a_picture_taken_for_a_checkpoint_is_told_where_it_belongs(in_folder, capsys):
    assert Console.run(Main_inference.main, ["--checkpoint", "here", "face.png"]) == 2
    assert "are required: PATH (before the options)" in capsys.readouterr().err


def test_in_a_log_a_line_a_minute_tells_how_far_it_is(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(Console.time, "monotonic", lambda: now[0])
    progress = Console.Progress(400, unit="faces")
    for done, now[0] in (100, 30.0), (200, 61.0), (300, 90.0), (400, 119.0):
        progress.update(done, "ddn")
    progress.clear()
    assert capsys.readouterr() == ("", "50 %  3 faces/s  1:01 left  ddn\n")


class Terminal(list):
    """A stderr that is a terminal and keeps what is written."""
    write = list.append

    def isatty(self):
        return True

    def fileno(self):
        raise OSError

    def flush(self):
        pass


def test_the_bar_asks_the_terminal_that_it_is_drawn_on(monkeypatch):
    """Not that of stdout, which may be a file."""
    fcntl, termios = map(pytest.importorskip, ("fcntl", "termios"))
    main, side = os.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    monkeypatch.delenv("COLUMNS", raising=False)
    with os.fdopen(side, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        Console.Progress(4).update(3, "more text than this terminal has room for")
    drawn = os.read(main, 1000).decode()
    assert drawn.startswith("\r  75 %") and len(drawn.strip("\r").removesuffix("\x1b[K")) == 49


def test_bar_fits_the_terminal_and_tells_rate_and_time_left(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    clock = iter([0.0, 30.0, 30.0, 30.0])
    monkeypatch.setattr(Console.time, "monotonic", lambda: next(clock))
    progress = Console.Progress(400, 100, "images", 128)
    progress.update(250, "loss 0.412")
    (drawn,) = terminal
    assert len(drawn.strip("\r").removesuffix("\x1b[K")) < 80
    assert " 62 %  640 images/s  0:30 left  loss 0.412" in drawn


def test_an_error_does_not_stand_behind_the_bar(in_folder, checkpoint, monkeypatch):
    (in_folder / "face.raw").write_bytes(bytes(Dataset.DIM))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert call(Main_inference, "face.raw", "face.raw", "none.png", "--checkpoint", checkpoint) == 2
    told = "".join(terminal)
    assert told.rpartition("\x1b[K")[2].endswith("none.png: no such file\n") and "pictures/s" in told
    assert told.rpartition("\x1b[K")[0].endswith("\r")


@pytest.mark.parametrize("script, more", [(Main_adversarial, ["--attack", "fgsm"]),
                                          (Main_robustness, ["--attack", "fgsm", "--norm", "linf", "--no-show"])])
def test_attacks_are_deterministic(in_folder, database, checkpoint, monkeypatch, script, more):
    seeds = []
    monkeypatch.setattr(Training, "make_deterministic", seeds.append)
    Dataset.read_faces(database)[0].tofile("man.raw")
    faces = ["man.raw", "1"] if script is Main_adversarial else [str(database), "--faces", "3"]
    assert call(script, *faces, "--checkpoint", checkpoint, *more) in (0, 1) and seeds == [0]


def test_an_interrupted_attack_leaves_no_bar(in_folder, checkpoint, monkeypatch):
    Dataset.read_faces(write_database(in_folder, "some", 4))[0].tofile("man.raw")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(Attacks.Attack, "result", lambda attack: (_ for _ in ()).throw(KeyboardInterrupt))
    assert call(Main_adversarial, "man.raw", "1", "--checkpoint", checkpoint, "--steps", "2") == 130
    assert "".join(terminal).rpartition("\r\x1b[K")[2].endswith(": interrupted\n")


def test_the_report_of_a_database_by_hand(tmp_path):
    faces = np.zeros((7, Dataset.DIM), np.uint8)
    faces[:, 0] = [0, 0, 0, 255, 255, 0, 0]  # said: three men, two women, two men
    path = tmp_path / "data_some.bin"
    faces.tofile(path)
    np.eye(2, dtype="<f4")[[0, 0, 0, 0, 1, 1, 1]].tofile(tmp_path / "gender_some.bin")
    (tmp_path / "meta_some.csv").write_text("age,ethnicity\n" + "30,0\n" * 3 + "4,2\n" * 4)
    answer = Main_inference.measure(str(path), Dataset.open_database(path),
                                    lambda x: tf.stack([-x[:, 0], x[:, 0]], 1))
    assert answer["confusion"] == [[3, 1], [2, 1]] and answer["correct"] == 4
    assert answer["accuracy"] == pytest.approx(4 / 7)
    assert answer["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert answer["groups"]["age"] == {"0-5": {"faces": 4, "correct": 1, "accuracy": 0.25},
                                       "16-30": {"faces": 3, "correct": 3, "accuracy": 1.0},
                                       "16+": {"faces": 3, "correct": 3, "accuracy": 1.0}}
    assert [line.split() for line in Main_inference.table(answer)[1:6]] == [
        ["as", "annotated", "said", "man", "said", "woman", "accuracy"], ["man", "3", "1", "75.00", "%"],
        ["woman", "2", "1", "33.33", "%"],
        ["age", "faces", "accuracy"], ["0-5", "4", "25.00", "%"]]
    assert "accuracy 57.14 %  (4 of 7), balanced 54.17 %" in Main_inference.table(answer)[0]
