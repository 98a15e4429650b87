"""The networks by name and from checkpoints: their sizes, their values, what they say when they cannot be."""
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import Dataset
import Layers
import Models


@pytest.fixture(autouse=True)
def seed():
    tf.random.set_seed(0)


def faces(count=5, seed=0):
    return tf.constant(np.random.default_rng(seed).random([count, 2304]) - 0.5, tf.float32)


def parameters(net):
    return sum(int(np.prod(variable.shape)) for variable in net.trainable_variables)


def convolution(inputs, outputs, size=3):
    return size * size * inputs * outputs + outputs


def with_other_weights(net, seed=1):
    """The net, no variable at its initial value."""
    generator = np.random.default_rng(seed)
    for variable in net.variables:
        variable.assign(variable * generator.uniform(0.5, 1.5, variable.shape)
                        + generator.uniform(0.0, 0.1, variable.shape))
    return net


def save(net, folder, description=None):
    """A checkpoint of `net` in `folder`, beside network.json unless `description` is empty; its prefix."""
    folder.mkdir(exist_ok=True)
    if description != "":
        (folder / "network.json").write_text(description or net.description)
    return tf.train.Checkpoint(step=tf.Variable(1), net=net).save(str(folder / "my_model"))


def load_error(path):
    with pytest.raises(Models.NetworkError) as error:
        Models.load(path)
    assert isinstance(error.value, Dataset.UserError)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nn4_has_the_parameters_of_the_course():
    assert parameters(Models.build("nn4")) == 24_882


def test_perceptron_has_the_parameters_of_the_course():
    for name in "perceptron", "nn1", "nn3":
        assert parameters(Models.build(name)) == 115_352


def test_small_net_of_the_course():
    expected = convolution(1, 3) + convolution(3, 6) + convolution(6, 12) + 6 * 6 * 12 * 2 + 2
    assert parameters(Models.build("small")) == expected == 1_724


def test_densenet_goes_from_48x48x1_to_3x3x32_to_2():
    net = Models.build("densenet")
    x, sizes = faces(4), []
    for layer in net.sequence():
        x = layer(x)
        sizes.append(x.shape[1:])
    assert sizes == [(48, 48, 1), (24, 24, 32), (12, 12, 32), (6, 6, 32), (3, 3, 32), (288,), (50,), (2,)]
    first = convolution(1, 16) + convolution(17, 16) + convolution(33, 32, 1)
    other = convolution(32, 16) + convolution(48, 16) + convolution(64, 32, 1)
    assert parameters(net) == first + 3 * other + 288 * 50 + 50 + 50 * 2 + 2 == 59_160


@pytest.mark.parametrize("options, expected", [
    ({}, convolution(1, 16) + 3 * convolution(16, 16) + 3 * 3 * 16 * 2 + 2),
    ({"nb_block": 3, "nb_conv": 2, "nb_filter": 8}, convolution(1, 8) + 5 * convolution(8, 8) + 6 * 6 * 8 * 2 + 2),
    ({"nb_block": 2, "nb_conv": 3, "nb_filter": 4, "filter_size": 5, "batchnorm": True},
     convolution(1, 4, 5) + 5 * convolution(4, 4, 5) + 6 * (4 + 4) + 12 * 12 * 4 * 2 + 2),
    ({"nb_block": 1, "nb_conv": 4, "nb_filter": 4, "filter_size": [[3, 1], [1, 5]]},
     12 + 4 + 80 + 4 + 48 + 4 + 80 + 4 + 24 * 24 * 4 * 2 + 2),
    ({"filters": [[3, 5], [7]], "filter_size": [1, 3, 5], "hidden": [11]},
     convolution(1, 3, 1) + convolution(3, 5, 3) + convolution(5, 7, 5) + 12 * 12 * 7 * 11 + 11 + 11 * 2 + 2),
    ({"dropout": 0.3, "initializer": "he", "nb_filter": None}, 7_410)], ids=str)
def test_convnet_has_the_parameters_of_its_meta_parameters(options, expected):
    assert parameters(Models.build("convnet", **options)) == expected


@pytest.mark.parametrize("options, expected", [
    ({"nb_block": 2, "nb_conv": 1, "nb_filter": 4, "output_dim": 6, "hidden": 7},
     convolution(1, 4) + convolution(5, 6, 1) + convolution(6, 4) + convolution(10, 6, 1) + 864 * 7 + 7 + 7 * 2 + 2)],
    ids=str)
def test_densenet_has_the_parameters_of_its_meta_parameters(options, expected):
    assert parameters(Models.build("densenet", **options)) == expected


def test_resnet_has_the_parameters_of_its_blocks():
    expected = convolution(1, 32) + 2 * 32 + 2 * (convolution(32, 32) + 2 * 32)
    for depth in 32, 64:
        expected += convolution(depth, 2 * depth) + convolution(2 * depth, 2 * depth) + convolution(depth, 2 * depth, 1)
        expected += 3 * 2 * 2 * depth
    assert parameters(Models.build("resnet")) == expected + 128 * 2 + 2


def test_nn4_is_its_keras_twin():
    net = with_other_weights(Models.build("nn4"))
    twin = keras.Sequential([keras.Input([2304]), keras.layers.Reshape([48, 48, 1])])
    for depth in 64, 32, 16:
        twin.add(keras.layers.Conv2D(depth, 3, padding="same", activation="relu"))
        twin.add(keras.layers.MaxPool2D(2))
    twin.add(keras.layers.Flatten())
    twin.add(keras.layers.Dense(2))
    for layer, theirs in zip((net.cv1, net.cv2, net.cv3, net.fc), [k for k in twin.layers if k.weights]):
        theirs.set_weights([layer.w.numpy(), layer.b.numpy()])
    x = faces()
    gradients = []
    for f in net, twin:
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = f(x)
        gradients.append((logits, tape.gradient(logits, x)))
    for ours, theirs in zip(*gradients):
        assert np.ptp(theirs) > 1e-3
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_perceptron_is_numpy():
    net, x = with_other_weights(Models.build("perceptron")), faces()
    w1, b1, w2, b2 = (v.numpy().astype(np.float64) for v in (net.fc1.w, net.fc1.b, net.fc2.w, net.fc2.b))
    expected = 1 / (1 + np.exp(-(x.numpy() @ w1 + b1))) @ w2 + b2
    np.testing.assert_allclose(net(x), expected, rtol=1e-4, atol=1e-5)


def test_resnet_ends_in_the_mean_over_the_picture():
    net, x = with_other_weights(Models.build("resnet")), faces()
    *body, _, fc = net.sequence()
    y = x
    for layer in body:
        y = layer(y)
    assert y.shape == (5, 6, 6, 128)
    np.testing.assert_allclose(net(x), y.numpy().mean((1, 2)) @ fc.w.numpy() + fc.b.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", Models.NETWORKS)
def test_a_net_comes_back_from_its_checkpoint_and_network_json(tmp_path, name):
    net, x = with_other_weights(Models.build(name)), faces()
    logits = net(x).numpy()
    assert logits.shape == (5, 2) and np.ptp(logits[:, 0]) > 1e-4
    prefix = save(net, tmp_path)
    for path in prefix, tmp_path:
        again, found = Models.load(path)
        assert found == prefix
        assert again.description == net.description
        np.testing.assert_array_equal(again(x), logits)


OPTIONS = {"perceptron": {"hidden": 9, "activation": "relu"}, "nn4": {"filter_size": [5, 3, 1]}, "small": {},
           "convnet": {"nb_block": 2, "nb_conv": 2, "filter_size": 5},
           "densenet": {"nb_block": 2, "nb_filter": 3, "output_dim": 5}, "resnet": {"nb_block": 2, "nb_filter": 4}}


@pytest.mark.parametrize("name", OPTIONS)
def test_network_json_keeps_every_option(tmp_path, name):
    options = {"batchnorm": True, "activation": "leaky_relu", "initializer": "xavier", "dropout": 0.4} | OPTIONS[name]
    net, x = Models.build(name, **options), faces()
    net(x, False, True)
    with_other_weights(net)
    again, _ = Models.load(save(net, tmp_path))
    assert json.loads(again.description) == json.loads(net.description)
    assert options.items() <= json.loads(net.description)["options"].items()
    np.testing.assert_array_equal(again(x), net(x))
    dropped = []
    for f in net, again:
        with Layers.dropout_seed(tf.constant([1, 2])):
            dropped.append(f(x, False, True).numpy())
    np.testing.assert_array_equal(*dropped)
    assert np.any(dropped[0] != net(x))


@pytest.mark.parametrize("name", Models.NETWORKS)
def test_paths_of_variables_are_those_of_a_checkpoint(tmp_path, name):
    net = Models.build(name, batchnorm=True)
    prefix = tf.train.Checkpoint(net=net).save(str(tmp_path / "my_model"))
    stored = {key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"): shape
              for key, shape in tf.train.load_checkpoint(prefix).get_variable_to_shape_map().items()
              if key.startswith("net/")}
    assert stored == {path: variable.shape.as_list() for path, variable in net.variables_by_path().items()}


@pytest.mark.parametrize("name", Models.NETWORKS)
def test_a_net_gives_what_its_last_layer_is_given(name):
    net = Models.build(name)
    x = tf.random.stateless_uniform([2, 2304], (1, 2), -0.5, 0.5)
    features = net(x, False, False, last=-1)
    assert features.shape == (2, net.sequence()[-1].w.shape[0])
    np.testing.assert_array_equal(net.sequence()[-1](features), net(x))


@pytest.mark.parametrize("name", ["convnet", "densenet", "resnet"])
def test_a_traced_net_takes_batches_of_any_size(name):
    net = with_other_weights(Models.build(name, nb_block=2, batchnorm=True))
    traced = tf.function(net, input_signature=[tf.TensorSpec([None, 2304])])
    for count in 1, 3:
        np.testing.assert_allclose(traced(faces(count)), net(faces(count)), rtol=1e-4, atol=1e-4)


def test_flags_are_taken_by_position_and_by_name():
    net, x = Models.build("small", dropout=0.5), faces()
    np.testing.assert_array_equal(net(x), net(x, False, False))
    np.testing.assert_array_equal(net(x), net(x, log_summary=False))
    assert np.any(net(x, training=True) != net(x))
    assert np.any(net(x, False, True) != net(x))


@pytest.mark.parametrize("optimizer", [False, True], ids=["weights alone", "with Adam"])
@pytest.mark.parametrize("name, options", [("perceptron", {}), ("nn4", {}), ("small", {"batchnorm": True}),
                                           ("convnet", {"nb_conv": 2, "nb_block": 3}), ("densenet", {"nb_conv": 3})])
def test_the_nets_of_the_course_are_rebuilt_from_shapes_alone(tmp_path, name, options, optimizer):
    net, x = with_other_weights(Models.build(name, **options)), faces()
    roots = {"net": net, "step": tf.Variable(1)}
    if optimizer:
        roots["optimizer"] = tf.optimizers.Adam(1e-3)
        roots["optimizer"].build(net.trainable_variables)
    again, _ = Models.load(tf.train.Checkpoint(**roots).save(str(tmp_path / "my_model")))
    np.testing.assert_array_equal(again(x), net(x))


@pytest.mark.parametrize("name, options", [("small", {"filter_size": [[3, 1], [1, 3]]}),
                                           ("densenet", {"filter_size": [5, 3]}),
                                           ("convnet", {"filter_size": [[5, 3]]})])
def test_kernels_of_any_shape_are_rebuilt_from_shapes_alone(tmp_path, name, options):
    net, x = with_other_weights(Models.build(name, **options)), faces()
    again, _ = Models.load(tf.train.Checkpoint(net=net).save(str(tmp_path / "my_model")))
    np.testing.assert_array_equal(again(x), net(x))


def test_a_net_overfits_eight_faces():
    tf.random.set_seed(1)
    patches = np.random.default_rng(3).random([8, 6, 1, 6, 1]) - 0.5
    image = tf.constant(np.broadcast_to(patches, [8, 6, 8, 6, 8]).reshape(8, 2304), tf.float32)
    label = tf.one_hot([0, 1, 1, 0, 1, 0, 0, 1], 2)
    net, optimizer = Models.build("nn4"), tf.optimizers.Adam(1e-3)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(label, net(image, False, True)))
        weights = net.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
        return loss

    losses = [float(step()) for _ in range(40)]
    assert losses[0] > 0.6 and losses[-1] < 0.05
    np.testing.assert_array_equal(np.argmax(net(image), 1), np.argmax(label, 1))


def test_unknown_net_is_answered_with_the_known_ones():
    with pytest.raises(Models.NetworkError) as error:
        Models.build("nn5")
    assert "unknown net 'nn5'" in str(error.value)
    assert all(name in str(error.value) for name in Models.NETWORKS)


@pytest.mark.parametrize("name, option, known", [("nn4", "nb_block", "filter_size"), ("nn4", "filters", "dropout"),
                                                 ("perceptron", "nb_conv", "hidden"), ("resnet", "layer", "nb_filter"),
                                                 ("convnet", "batch_norm", "batchnorm")])
def test_unknown_option_is_answered_with_the_known_ones(name, option, known):
    with pytest.raises(Models.NetworkError) as error:
        Models.build(name, **{option: 3})
    message, choices = str(error.value).split(";")
    assert message == f"net {name} has no option {option}"
    assert known in choices.replace(",", " ").split() and option not in choices.replace(",", " ").split()


def test_an_option_that_is_none_is_left_to_the_net():
    net = Models.build("convnet", nb_block=2, nb_filter=None, activation=None, nonsense=None)
    assert net.description == Models.build("convnet", nb_block=2).description


def test_a_value_that_makes_no_layer_names_the_layer():
    with pytest.raises(ValueError, match=r"layer cv1: unknown 'tanh'; expected one of relu"):
        Models.build("nn4", activation="tanh")
    with pytest.raises(ValueError, match=r"layer b0_cv0: dropout_rate 1.5 is not in \[0, 1\)"):
        Models.build("convnet", dropout=1.5)


def test_missing_checkpoint(tmp_path):
    for path in tmp_path / "my_model-1", tmp_path / "nowhere", tmp_path / "my_model-1.index":
        message = load_error(path)
        assert message.startswith(f"{path}: no checkpoint") and "expected a folder" in message


def test_folder_without_a_checkpoint(tmp_path):
    (tmp_path / "network.json").write_text(Models.build("small").description)
    message = load_error(tmp_path)
    assert message.startswith(f"{tmp_path}: no checkpoint") and "expected a folder" in message


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a checkpoint of the small net and its network.json."""
    folder = tmp_path_factory.mktemp("small")
    save(with_other_weights(Models.build("small")), folder)
    return folder


INDEX, DATA = "my_model-1.index", "my_model-1.data-00000-of-00001"


@pytest.mark.parametrize("name, edit", [
    (DATA, lambda content: None), (DATA, lambda content: b""), (DATA, lambda content: content[:len(content) // 2]),
    (DATA, lambda content: content[:-1]), (DATA, lambda content: bytes(255 - byte for byte in content)),
    (INDEX, lambda content: b""), (INDEX, lambda content: content[:100]), (INDEX, lambda content: b"junk" * 500)],
    ids=["no data", "empty data", "half the data", "a byte less", "other data", "empty index", "half the index",
         "junk index"])
def test_damaged_checkpoint_is_named(tmp_path, small, name, edit):
    folder = tmp_path / "copy"
    shutil.copytree(small, folder)
    content = edit((folder / name).read_bytes())
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    for path in folder, folder / "my_model-1":
        assert str(folder / "my_model-1") in load_error(path)


def test_checkpoint_without_its_index(tmp_path, small):
    shutil.copytree(small, tmp_path / "copy")
    (tmp_path / "copy" / INDEX).unlink()
    for path in tmp_path / "copy", tmp_path / "copy" / "my_model-1", tmp_path / "copy" / DATA:
        assert load_error(path).startswith(f"{path}: no checkpoint")


def test_damaged_state_file_does_not_hide_the_checkpoint(tmp_path, small):
    shutil.copytree(small, tmp_path / "copy")
    for content in b"\x00\xff junk", b"", b'model_checkpoint_path: "gone-7"\n':
        (tmp_path / "copy" / "checkpoint").write_bytes(content)
        assert Models.load(tmp_path / "copy")[1] == str(tmp_path / "copy" / "my_model-1")


def test_checkpoint_without_a_net(tmp_path):
    for number, roots in enumerate(({"step": tf.Variable(1)}, {"model": Models.build("small")}, {"net": tf.Module()})):
        prefix = tf.train.Checkpoint(**roots).save(str(tmp_path / f"model{number}"))
        message = load_error(prefix)
        assert message.startswith(f"{prefix}: no net in it") and "tf.train.Checkpoint(net=" in message


def test_checkpoint_of_tensorflow_1(tmp_path):
    prefix = str(tmp_path / "model.ckpt")
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=["Variable"], shape_and_slices=[""], tensors=[tf.zeros([3])])
    assert load_error(prefix).startswith(prefix)


def test_checkpoint_of_another_net_than_network_json_tells(tmp_path):
    prefix = save(Models.build("small"), tmp_path, Models.build("nn4").description)
    message = load_error(prefix)
    assert prefix in message and "another net" in message and "SmallConvNet" in message
    assert "net/cv1/b" in message and "(3,)" in message and "(64,)" in message
    assert message.index("(3,)") < message.index("(64,)")


@pytest.mark.parametrize("stored, described, path", [
    (lambda: Models.build("convnet", nb_block=3), lambda: Models.build("convnet", nb_block=3, batchnorm=True),
     "net/list/1/bn/beta"),
    (lambda: Models.build("convnet", nb_block=3, batchnorm=True), lambda: Models.build("convnet", nb_block=3),
     "net/list/1/bn/beta"),
    (lambda: Models.build("small"), lambda: Models.build("perceptron"), "net/cv1/b")])
def test_a_variable_that_only_one_of_the_two_nets_has_is_named(tmp_path, stored, described, path):
    message = load_error(save(stored(), tmp_path, described().description))
    assert path in message and "missing" in message


def test_only_the_filter_size_differs(tmp_path):
    stored, described = Models.build("small", filter_size=5), Models.build("small")
    message = load_error(save(stored, tmp_path, described.description))
    assert "net/cv1/w" in message and "(5, 5, 1, 3)" in message and "(3, 3, 1, 3)" in message


def described(network="SmallConvNet", **options):
    return json.dumps({"network": network, "options": options})


BROKEN = {
    "no JSON": "{", "empty": "", "a list": "[]", "null": "null", "no options": '{"network": "SmallConvNet"}',
    "options are a list": '{"network": "SmallConvNet", "options": []}',
    "network is a list": described(["SmallConvNet"]),
    "unknown network": described("nn5"), "the base class": described("Network"), "unknown option": described(depth=3),
    "unknown activation": described(activation="tanh"), "activation is a list": described(activation=[]),
    "impossible dropout": described(dropout=2), "filters is a number": described(filters=3),
    "negative filters": described(filters=[-3, 6, 12]), "fractional filters": described(filters=[3.5, 6, 12]),
    "filters are words": described(filters=["a", "b", "c"]), "filter size 0": described(filter_size=0),
    "no filter sizes": described(filter_size=[]), "filter size is a word": described(filter_size="3"),
    "no filter sizes of a deep net": described("ConvNet", filter_size=[]),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_network_json_is_named(tmp_path, small, content):
    folder = tmp_path / "copy"
    shutil.copytree(small, folder)
    (folder / "network.json").write_text(content)
    assert load_error(folder).startswith(f"{folder / 'network.json'}: does not describe a net")


def test_network_json_that_is_no_text(tmp_path, small):
    shutil.copytree(small, tmp_path / "copy")
    (tmp_path / "copy" / "network.json").write_bytes(b"\xff\xfe\x00")
    message = load_error(tmp_path / "copy")
    assert message.startswith(f"{tmp_path / 'copy' / 'network.json'}: does not describe a net")


@pytest.mark.parametrize("options", [{}, {"nb_block": 1}, {"batchnorm": False}], ids=str)
def test_resnet_without_network_json(tmp_path, options):
    message = load_error(save(Models.build("resnet", **options), tmp_path, description=""))
    assert "network.json" in message and "not named as in the course" in message


def test_a_net_of_other_names_without_network_json(tmp_path):
    class Other(tf.Module):
        def __init__(self):
            self.layers = [Layers.fc("fc", 2)]

    net = Other()
    net.layers[0](faces())
    message = load_error(tf.train.Checkpoint(net=net).save(str(tmp_path / "my_model")))
    assert "network.json" in message and "layers/0/b" in message


@pytest.mark.parametrize("layers", [
    lambda: [Layers.unflat("u", 48, 48, 1), Layers.conv("a", 4, 3, 1), Layers.maxpool("p", 4),
             Layers.conv("b", 5, 3, 1), Layers.conv("c", 6, 3, 1), Layers.flat(), Layers.fc("fc", 2)],
    lambda: [Layers.unflat("u", 48, 48, 1), Layers.maxpool("p", 2), Layers.conv("a", 4, 3, 1), Layers.maxpool("p", 2),
             Layers.conv("b", 5, 3, 1), Layers.flat(), Layers.fc("fc", 2)],
    lambda: [Layers.unflat("u", 48, 48, 1), Layers.conv("a", 4, 3, 1), Layers.maxpool("p", 2), Layers.maxpool("p", 2),
             Layers.conv("b", 5, 3, 1), Layers.flat(), Layers.fc("fc", 2)]], ids=["of four", "first", "two"])
def test_a_net_whose_maxpools_stand_elsewhere_is_not_taken_for_the_courses(tmp_path, layers):
    """The shapes would fit: a net rebuilt from them would answer otherwise than the student's."""
    net = tf.Module()
    net.list = layers()
    x = tf.zeros([1, Dataset.DIM])
    for layer in net.list:
        x = layer(x)
    prefix = tf.train.Checkpoint(net=net).save(str(tmp_path / "my_model"))
    assert "not named as in the course's nets" in load_error(prefix)


def test_a_folder_gives_what_was_saved_last_also_where_numbers_began_again(tmp_path):
    first, second = (Models.build("perceptron") for _ in range(2))
    for net, times in (first, 3), (second, 2):
        saver = tf.train.Checkpoint(net=net)
        for _ in range(times):
            saver.save(str(tmp_path / "my_model"))
    assert Models.find_checkpoint(tmp_path) == str(tmp_path / "my_model-2")
    np.testing.assert_array_equal(Models.load(tmp_path)[0].fc1.w, second.fc1.w)
    (tmp_path / "checkpoint").write_text((tmp_path / "checkpoint").read_text().replace("my_model-2", "my_model-9"))
    assert Models.find_checkpoint(tmp_path) == str(tmp_path / "my_model-3")
    (tmp_path / "checkpoint").unlink()
    assert Models.find_checkpoint(tmp_path) == str(tmp_path / "my_model-3")


def test_a_net_with_another_pooling_is_not_taken_for_the_courses(tmp_path):
    class Pooled(Models.SmallConvNet):
        def sequence(self):
            return self.unflat, self.cv1, self.mp, self.cv2, self.mp, self.cv3, self.flat, self.fc

    message = load_error(save(Pooled((3, 6, 12)), tmp_path, description=""))
    assert "net/fc/w" in message and "(1728, 2)" in message and "(432, 2)" in message


@pytest.mark.parametrize("net", [Models.build("small"), Models.build("convnet", nb_conv=2, batchnorm=True),
                                 Models.ConvNet(filters=[[], [4], []])])
def test_a_net_is_its_layers_one_after_the_other(net):
    x = faces()
    for layer in net.sequence():
        x = layer(x)
    np.testing.assert_allclose(net(faces()), x, rtol=1e-5, atol=1e-6)


def test_layers_and_models_together_stay_under_500_lines():
    assert sum(len(Path(module.__file__).read_text().splitlines()) for module in (Layers, Models)) < 500
