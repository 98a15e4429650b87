"""Scripts and checkpoints written as the course's slides teach run and restore unchanged."""
import numpy as np
import pytest
import tensorflow as tf

import Dataset
import Layers
import Models


@pytest.fixture(autouse=True)
def seed():
    tf.random.set_seed(0)


class ConvNeuralNet(tf.Module):
    def __init__(self):
        self.unflat = Layers.unflat('unflat', 48, 48, 1)
        self.cv1 = Layers.conv('conv_1', output_dim=3, filterSize=3, stride=1)
        self.mp = Layers.maxpool('pool', 2)
        self.cv2 = Layers.conv('conv_2', output_dim=6, filterSize=3, stride=1)
        self.cv3 = Layers.conv('conv_3', output_dim=12, filterSize=3, stride=1)
        self.flat = Layers.flat()
        self.fc = Layers.fc('fc', 2)

    def __call__(self, x, log_summary):
        x = self.unflat(x, log_summary)
        x = self.cv1(x, log_summary)
        x = self.mp(x)
        x = self.cv2(x, log_summary)
        x = self.mp(x)
        x = self.cv3(x, log_summary)
        x = self.mp(x)
        x = self.flat(x)
        x = self.fc(x, log_summary)
        return x


class VariedConvNet(ConvNeuralNet):
    def __init__(self, filters, kernels):
        self.unflat = Layers.unflat('unflat', 48, 48, 1)
        self.mp = Layers.maxpool('pool', 2)
        self.cv1 = Layers.conv('cv 1', filters[0], kernels[0], 1)
        self.cv2 = Layers.conv('cv 2', filters[1], kernels[1], 1)
        self.cv3 = Layers.conv('cv 3', filters[2], kernels[2], 1)
        self.flat = Layers.flat()
        self.fc = Layers.fc('fc', 2)


class DeepConvNet(tf.Module):
    def __init__(self, nb_block=3, nb_conv=2, nb_filter=4, kernel=3, batchnorm=False, hidden=None, rate=0.1):
        self.list = []
        self.list.append(Layers.unflat('unflat', 48, 48, 1))
        for b in range(nb_block):
            for c in range(nb_conv):
                self.list.append(Layers.conv('b%d cv%d' % (b, c), nb_filter, kernel, 1, rate, batchnorm=batchnorm))
            self.list.append(Layers.maxpool('b%d pool' % b, 2))
        self.list.append(Layers.flat())
        if hidden:
            self.list.append(Layers.fc('fc1', hidden))
        self.list.append(Layers.fc('fc2', 2))

    def __call__(self, x, log_summary, training):
        for l in self.list:
            x = l(x, log_summary, training)
        return x


class DeepConvNetFcOutside(tf.Module):
    def __init__(self, convs=((5, 3), (7, 5)), hidden=None):
        self.unflat = Layers.unflat('unflat', 48, 48, 1)
        self.list = []
        for b, block in enumerate(convs):
            for c, nb_filter in enumerate(block):
                self.list.append(Layers.conv('cv %d_%d' % (b, c), nb_filter, 3 + 2 * b, 1))
            self.list.append(Layers.maxpool('pool', 2))
        self.flat = Layers.flat()
        self.hidden = hidden
        if hidden:
            self.fc1 = Layers.fc('fc1', hidden)
            self.fc2 = Layers.fc('fc2', 2)
        else:
            self.fc = Layers.fc('fc', 2)

    def __call__(self, x, log_summary, training):
        x = self.unflat(x, log_summary)
        for l in self.list:
            x = l(x, log_summary, training)
        x = self.flat(x)
        if self.hidden:
            return self.fc2(self.fc1(x, log_summary, training), log_summary, training)
        return self.fc(x, log_summary, training)


class DenseNet(tf.Module):
    def __init__(self, nb_filter=3, nb_block=4, nb_conv=2, outdim=8, kernel=3, hidden=50, batchnorm=False):
        self.unflat = Layers.unflat('unflat', 48, 48, 1)
        self.list = []
        for i in range(nb_block):
            self.list.append(Layers.DenseBlock('b1%d' % i, nb_conv, nb_filter, outdim, kernel, 1, 0.05,
                                               batchnorm=batchnorm))
        self.flat = Layers.flat()
        self.fc1 = Layers.fc('fc1', hidden)
        self.fc2 = Layers.fc('fc2', 2)

    def __call__(self, x, log_summary, training):
        x = self.unflat(x)
        for block in self.list:
            x = block(x, log_summary, training)
        x = self.flat(x)
        x = self.fc1(x, log_summary, training)
        x = self.fc2(x, log_summary, training)
        return x


class Perceptron(tf.Module):
    def __init__(self):
        self.fc1 = Layers.fc('fc1', 20)
        self.fc2 = Layers.fc('fc2', 2)

    def __call__(self, x, log_summary):
        return self.fc2(tf.sigmoid(self.fc1(x, log_summary)), log_summary)


def flags(model, training):
    """What the scripts pass after the images."""
    return (False, training) if isinstance(model, (DeepConvNet, DeepConvNetFcOutside, DenseNet)) else (False,)


def cross_entropy(model, image, label, *flags):
    y = tf.nn.log_softmax(model(image, *flags))
    return -tf.reduce_sum(label * y)


def train_one_iter(model, optimizer, image, label, *flags):
    with tf.GradientTape() as tape:
        loss = cross_entropy(model, image, label, *flags)
    grads = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(grads, model.trainable_variables))
    return loss


def eight_faces():
    patches = np.random.default_rng(3).random([8, 6, 1, 6, 1]) - 0.5
    image = np.broadcast_to(patches, [8, 6, 8, 6, 8]).reshape(8, 2304)
    return image.astype(np.float32), np.eye(2, dtype=np.float32)[[0, 1, 1, 0, 1, 0, 0, 1]]


def trained(make, steps, step=train_one_iter, seed=2):
    tf.random.set_seed(seed)
    image, label = eight_faces()
    model, optimizer = make(), tf.optimizers.Adam(1e-3)
    ckpt = tf.train.Checkpoint(step=tf.Variable(1), optimizer=optimizer, net=model)
    for _ in range(steps):
        step(model, optimizer, image, label, *flags(model, True))
    return model, optimizer, ckpt


SCRIPTS = {"small": (ConvNeuralNet, 45), "deep": (lambda: DeepConvNet(2, 2, 10), 30),
           "deep, fc outside": (lambda: DeepConvNetFcOutside(((12,), (16, 12))), 20),
           "dense": (lambda: DenseNet(8, 2, 2, 16), 30), "perceptron": (Perceptron, 30)}


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_students_net_overfits_eight_faces(name, traced):
    make, steps = SCRIPTS[name]
    image, label = eight_faces()
    model, *_ = trained(make, steps, tf.function(train_one_iter) if traced else train_one_iter)
    logits = model(image, *flags(model, False))
    loss = float(cross_entropy(model, image, label, *flags(model, False)))
    assert loss < 0.4 * 8 * np.log(2)
    np.testing.assert_array_equal(np.argmax(logits, 1), label.argmax(1))


@pytest.mark.parametrize("make", [ConvNeuralNet, Perceptron, DeepConvNetFcOutside])
def test_traced_steps_are_the_eager_steps(make):
    image, label = eight_faces()
    losses = []
    for step in train_one_iter, tf.function(train_one_iter):
        model, optimizer, _ = trained(make, 0)
        losses.append([float(step(model, optimizer, image, label, *flags(model, True))) for _ in range(6)])
    assert losses[0][5] < losses[0][0] - 0.05
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize("first_call", ["before", "after"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_students_checkpoint_restores_and_goes_on_identically(tmp_path, name, first_call):
    make, _ = SCRIPTS[name]
    image, label = eight_faces()
    model, optimizer, ckpt = trained(make, 3)
    prefix = ckpt.save(str(tmp_path / 'saved_model'))
    assert prefix.endswith("saved_model-1")
    again, again_optimizer = make(), tf.optimizers.Adam(1e-3)
    if first_call == "before":
        again(image, *flags(again, False))
        again_optimizer.build(again.trainable_variables)
    status = tf.train.Checkpoint(step=tf.Variable(1), optimizer=again_optimizer, net=again).restore(prefix)
    logits = model(image, *flags(model, False))
    np.testing.assert_array_equal(again(image, *flags(again, False)), logits)
    assert np.ptp(logits) > 0.01
    losses = []
    for net, chosen in (model, optimizer), (again, again_optimizer):
        losses += [float(train_one_iter(net, chosen, image, label, *flags(net, False))) for _ in range(3)]
    status.assert_consumed()
    np.testing.assert_allclose(losses[:3], losses[3:], rtol=1e-6)


def test_restore_inside_a_traced_function_before_the_first_call(tmp_path):
    image, _ = eight_faces()
    model, _, ckpt = trained(ConvNeuralNet, 2)
    prefix = ckpt.save(str(tmp_path / 'saved_model'))
    again = ConvNeuralNet()
    tf.train.Checkpoint(net=again).restore(prefix).expect_partial()
    np.testing.assert_allclose(tf.function(again)(image, False), model(image, False), rtol=1e-5, atol=1e-6)


CHECKPOINTS = {
    "small": ConvNeuralNet,
    "5x5": lambda: VariedConvNet((4, 4, 4), (5, 5, 5)),
    "mixed kernels, odd filter counts": lambda: VariedConvNet((7, 1, 13), (5, 3, 1)),
    "even kernel": lambda: VariedConvNet((3, 5, 2), (3, 2, 4)),
    "perceptron": Perceptron,
    "deep": DeepConvNet,
    "deep, one convolution a block": lambda: DeepConvNet(4, 1, 5),
    "deep, four convolutions a block, 5x5": lambda: DeepConvNet(2, 4, 3, 5),
    "deep, hidden layer": lambda: DeepConvNet(3, 1, 3, hidden=9),
    "deep, BatchNorm": lambda: DeepConvNet(3, 2, 3, batchnorm=True),
    "deep, twelve places in the list": lambda: DeepConvNet(5, 2, 2, 1),
    "deep, fc outside": DeepConvNetFcOutside,
    "deep, two fc outside": lambda: DeepConvNetFcOutside(((3,), (4, 2, 6)), hidden=11),
    "dense": DenseNet,
    "dense, 5x5, three blocks": lambda: DenseNet(5, 3, 1, 7, 5, 13),
    "dense, many convolutions": lambda: DenseNet(2, 4, 11, 3),
    "dense, BatchNorm": lambda: DenseNet(3, 4, 2, 5, batchnorm=True),
}


def with_other_weights(model, training=False):
    """The model, built, no variable at its initial value."""
    image, _ = eight_faces()
    generator = np.random.default_rng(5)
    model(image, *flags(model, training))
    for variable in model.variables:
        variable.assign(variable * generator.uniform(0.5, 1.5, variable.shape)
                        + generator.uniform(0.0, 0.1, variable.shape))
    return model


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_net_is_rebuilt_from_a_students_checkpoint_alone(tmp_path, name):
    image, _ = eight_faces()
    model = with_other_weights(CHECKPOINTS[name]())
    optimizer = tf.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    ckpt = tf.train.Checkpoint(step=tf.Variable(1), optimizer=optimizer, net=model)
    prefix = ckpt.save(str(tmp_path / 'saved_model'))
    net, found = Models.load(prefix)
    assert found == prefix
    logits = model(image, *flags(model, False)).numpy()
    assert np.ptp(logits) > 1e-3
    np.testing.assert_array_equal(net(image), logits)
    (tmp_path / "network.json").write_text(net.description)
    prefix = tf.train.Checkpoint(net=net).save(str(tmp_path / "my_model"))
    np.testing.assert_array_equal(Models.load(prefix)[0](image), logits)


def test_a_checkpoint_is_found_by_folder_prefix_and_file(tmp_path):
    image, _ = eight_faces()
    model = with_other_weights(ConvNeuralNet())
    logits = model(image, False).numpy()
    ckpt = tf.train.Checkpoint(step=tf.Variable(1), optimizer=tf.optimizers.Adam(1e-3), net=model)
    first = ckpt.save(str(tmp_path / 'saved_model'))
    model.fc.b.assign_add([1.0, 2.0])
    second = ckpt.save(str(tmp_path / 'saved_model'))
    for path, prefix, expected in ((first, first, logits), (tmp_path, second, logits + [1, 2]),
                                   (str(tmp_path), second, logits + [1, 2]), (f"{first}.index", first, logits),
                                   (f"{first}.data-00000-of-00001", first, logits), (second, second, logits + [1, 2])):
        net, found = Models.load(path)
        assert found == prefix
        np.testing.assert_allclose(net(image), expected, rtol=1e-6, atol=1e-6)


def test_a_checkpoint_under_another_prefix_and_a_moved_folder_load(tmp_path):
    image, _ = eight_faces()
    model = with_other_weights(ConvNeuralNet())
    (tmp_path / "before").mkdir()
    tf.train.Checkpoint(net=model).save(str(tmp_path / "before" / "mon.modele v2"))
    (tmp_path / "before").rename(tmp_path / "after")
    for path in tmp_path / "after", tmp_path / "after" / "mon.modele v2-1":
        np.testing.assert_array_equal(Models.load(path)[0](image), model(image, False))


def test_a_folder_without_the_state_file_gives_its_newest_checkpoint(tmp_path):
    image, _ = eight_faces()
    model = with_other_weights(ConvNeuralNet())
    ckpt = tf.train.Checkpoint(net=model)
    ckpt.save(str(tmp_path / "my_model"))
    model.fc.b.assign_add([1.0, 2.0])
    ckpt.save(str(tmp_path / "my_model"))
    (tmp_path / "checkpoint").unlink()
    net, prefix = Models.load(tmp_path)
    assert prefix.endswith("my_model-2")
    np.testing.assert_array_equal(net(image), model(image, False))


def test_a_checkpoint_with_slot_variables_of_an_older_optimiser_loads(tmp_path):
    image, label = eight_faces()
    model, optimizer = ConvNeuralNet(), tf.compat.v1.train.AdamOptimizer(1e-3)
    train_one_iter(model, optimizer, image, label, False)
    prefix = tf.train.Checkpoint(optimizer=optimizer, net=model).save(str(tmp_path / "saved_model"))
    assert any("OPTIMIZER_SLOT" in key for key in tf.train.load_checkpoint(prefix).get_variable_to_shape_map())
    np.testing.assert_array_equal(Models.load(prefix)[0](image), model(image, False))


def paths(model, tmp_path):
    prefix = tf.train.Checkpoint(net=with_other_weights(model)).save(str(tmp_path / "saved_model"))
    keys = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    return {key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE") for key in keys if key.startswith("net/")}


def weights(*layers):
    return {f"net/{layer}/{kind}" for layer in layers for kind in "wb"}


def test_variable_paths_of_the_small_net(tmp_path):
    assert paths(ConvNeuralNet(), tmp_path) == weights("cv1", "cv2", "cv3", "fc")


def test_variable_paths_of_the_deep_net(tmp_path):
    assert paths(DeepConvNet(2, 2, 3), tmp_path) == weights("list/1", "list/2", "list/4", "list/5", "list/8")


def test_variable_paths_of_the_dense_net(tmp_path):
    assert paths(DenseNet(3, 2, 2), tmp_path) == weights(
        "list/0/block/0", "list/0/block/1", "list/0/cv", "list/1/block/0", "list/1/block/1", "list/1/cv", "fc1", "fc2")


@pytest.mark.parametrize("student, ours", [
    (ConvNeuralNet, lambda: Models.build("small")),
    (lambda: DeepConvNet(3, 2, 4), lambda: Models.build("convnet", nb_block=3, nb_conv=2, nb_filter=4)),
    (lambda: DenseNet(3, 4, 2, 8), lambda: Models.build("densenet", nb_filter=3, output_dim=8)),
    (Perceptron, lambda: Models.build("perceptron", hidden=20))], ids=["small", "deep", "dense", "perceptron"])
def test_a_students_checkpoint_restores_in_our_net(tmp_path, student, ours):
    image, _ = eight_faces()
    model, net = with_other_weights(student()), ours()
    prefix = tf.train.Checkpoint(step=tf.Variable(1), net=model).save(str(tmp_path / "saved_model"))
    tf.train.Checkpoint(step=tf.Variable(1), net=net).restore(prefix).assert_consumed()
    np.testing.assert_array_equal(net(image), model(image, *flags(model, False)))


def database(folder, name, count, seed):
    """A database of noise; the upper half of women is brighter."""
    generator = np.random.default_rng(seed)
    woman = generator.integers(0, 2, count)
    grey = generator.integers(60, 160, [count, 2304])
    grey[:, :1152] += 60 * woman[:, None]
    data, gender = folder / f"data_{name}.bin", folder / f"gender_{name}.bin"
    grey.astype(np.uint8).tofile(data)
    np.eye(2, dtype="<f4")[woman].tofile(gender)
    return str(data), str(gender), grey, woman


def logged_iter(model, optimizer, image, label, log_summary):
    with tf.GradientTape() as tape:
        loss = cross_entropy(model, image, label, log_summary)
        if log_summary:
            tf.summary.scalar('cross entropy', loss)
    grads = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(grads, model.trainable_variables))
    return loss


def test_the_course_training_loop_learns_and_logs(tmp_path):
    tf.random.set_seed(1)
    data, gender, *_ = database(tmp_path, "x", 40, 1)
    test_data, test_gender, *_ = database(tmp_path, "test", 24, 2)
    train = Dataset.DataSet(data, gender, 40, batchSize=16)
    test = Dataset.DataSet(test_data, test_gender)
    assert (train.nbdata, train.dim, train.batchSize, train.curPos, test.nbdata) == (40, 2304, 16, 0, 24)
    optimizer, simple_cnn = tf.optimizers.Adam(1e-3), ConvNeuralNet()
    writer = tf.summary.create_file_writer(str(tmp_path / "logs"))
    losses = []
    for it in range(60):
        ima, lab = train.NextTrainingBatch()
        with writer.as_default():
            tf.summary.experimental.set_step(it)
            losses.append(logged_iter(simple_cnn, optimizer, ima, lab, it % 30 == 0).numpy() / len(ima))
    writer.close()
    assert np.mean(losses[-9:]) < 0.3 * np.mean(losses[:9])
    assert test.mean_accuracy(simple_cnn) > 0.95
    [events] = (tmp_path / "logs").iterdir()
    logged = [(event.step, value.tag) for record in tf.data.TFRecordDataset(str(events))
              for event in [tf.compat.v1.Event.FromString(record.numpy())] for value in event.summary.value]
    tags = {"cross entropy", "unflat"} | {f"{layer}/{kind}" for layer in ("conv_1", "conv_2", "conv_3", "fc")
                                          for kind in ("w", "w/mean", "w/max", "b", "b/mean", "b/max")}
    assert sorted(logged) == sorted((step, tag) for step in (0, 30) for tag in tags)


def test_batches_hold_the_faces_of_the_files_in_the_course_scale(tmp_path):
    data, gender, grey, woman = database(tmp_path, "x", 20, 3)
    train = Dataset.DataSet(data, gender, batchSize=8)
    seen = {}
    for _ in range(3):
        ima, lab = train.NextTrainingBatch()
        assert ima.dtype == lab.dtype == np.float32
        seen.update({row.tobytes(): label.argmax() for row, label in zip(ima, lab)})
    expected = {row.tobytes(): label for row, label in zip(((grey - 128) / 256).astype(np.float32), woman)}
    assert seen == expected


def test_mean_accuracy_of_models_with_one_two_and_three_arguments(tmp_path):
    data, gender, grey, woman = database(tmp_path, "x", 37, 4)
    test = Dataset.DataSet(data, gender, batchSize=16)
    two, three, ours = ConvNeuralNet(), DeepConvNet(2, 1, 3, rate=0.5), Models.build("small")
    seen = []

    def one(x):
        seen.append(len(x))
        return tf.stack([-x[:, 0], x[:, 0]], 1)

    x = ((grey - 128) / 256).astype(np.float32)
    assert test.mean_accuracy(one) == pytest.approx(np.mean((x[:, 0] > 0) == woman))
    assert seen == [16, 16, 5]
    for model, given, last in (two, [False], two.fc), (three, [False, False], three.list[-1]), (ours, [], ours.fc):
        logits = model(x, *given).numpy()
        last.b.assign([0.0, np.median(logits[:, 0] - logits[:, 1])])
        logits = model(x, *given).numpy()
        assert 0.2 < np.mean(logits.argmax(1)) < 0.8
        assert test.mean_accuracy(model) == pytest.approx(np.mean(logits.argmax(1) == woman))


def test_the_course_adversarial_loop_misleads_a_loaded_net(tmp_path):
    image, label = eight_faces()
    _, _, ckpt = trained(ConvNeuralNet, 45, tf.function(train_one_iter))
    prefix = ckpt.save(str(tmp_path / "saved_model"))
    optimizer, simple_cnn = tf.optimizers.Adam(1e-3), ConvNeuralNet()
    status = tf.train.Checkpoint(step=tf.Variable(1), optimizer=optimizer, net=simple_cnn).restore(prefix)
    ima, wrong = image[:1], 1.0 - label[:1]
    noise = tf.Variable(tf.constant(0.0, shape=[1, 2304]))
    optimizer = tf.optimizers.Adam(5e-3)
    for _ in range(40):
        with tf.GradientTape() as tape:
            loss = cross_entropy(simple_cnn, ima + noise, wrong, False) + tf.reduce_mean(tf.square(noise))
        grads = tape.gradient(loss, [noise])
        optimizer.apply_gradients(zip(grads, [noise]))
    status.expect_partial()
    net, _ = Models.load(prefix)
    mod_image = ima + noise.numpy()
    assert np.argmax(net(ima)) == label[0].argmax()
    assert np.argmax(net(mod_image)) == wrong[0].argmax()
