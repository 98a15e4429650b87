import Console  # first: it silences TensorFlow's start

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import Dataset
import Models

REAL_FACES = Path(__file__).resolve().parents[2] / "shared" / "faces"


def write_database(folder, name, count, seed=0):
    """A database that can be learned: women have a bright square at the top, men at the bottom, in noise."""
    random = np.random.default_rng(seed)
    faces = random.normal(128, 40, (count, 48, 48))
    women = np.arange(count) % 2 == 1
    faces[women, 4:20, 12:36] += 60
    faces[~women, 28:44, 12:36] += 60
    path = folder / f"data_{name}.bin"
    np.clip(faces, 0, 255).astype(np.uint8).tofile(path)
    np.eye(2, dtype="<f4")[women.astype(int)].tofile(folder / f"gender_{name}.bin")
    return path


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """The path of a data_learn.bin of 200 faces; beside it data_test.bin, 60 others."""
    folder = tmp_path_factory.mktemp("databases")
    write_database(folder, "test", 60, seed=1)
    return write_database(folder, "learn", 200)


def train_by_hand(net, dataset, steps=40):
    """A few steps of Adam: enough for the databases of `write_database`."""
    optimizer = tf.keras.optimizers.Adam(1e-3)
    x, y = tf.constant(dataset.data[:]), tf.constant(dataset.label)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(y, net(x, False, True)))
        optimizer.apply_gradients(zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables))
    return optimizer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, database):
    """The folder of a small net that has learned `database`, with network.json."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tf.random.set_seed(0)
    net = Models.build("small")
    optimizer = train_by_hand(net, Dataset.open_database(database))
    tf.train.Checkpoint(step=tf.Variable(40), optimizer=optimizer, net=net).save(str(folder / "my_model"))
    (folder / Models.DESCRIPTION).write_text(net.description)
    return folder


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """An empty working folder, without a display."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return tmp_path


@pytest.fixture
def run(in_folder, capsys, monkeypatch):
    """Runs an entry script, a module, with arguments: (exit code, stdout, stderr)."""
    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py"])
        code = Console.run(script.main, [str(argument) for argument in arguments])
        return code, *capsys.readouterr()
    return run
