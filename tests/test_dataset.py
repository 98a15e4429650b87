"""Dataset.py: the pixel scale, the databases, their batches, groups and names, and files that appear whole."""
import copy
import errno
import operator
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import Dataset
from Dataset import DIM, DataError, DataSet, FaceArray, UserError

ROOT = Path(Dataset.__file__).resolve().parent


def random_faces(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, DIM), np.uint8)


def one_hot(classes):
    return np.eye(2, dtype=np.float32)[np.asarray(classes)]


def write_database(folder, faces, label, name="some"):
    """The two files of a database, as DataSet's first two arguments."""
    data, gender = folder / f"data_{name}.bin", folder / f"gender_{name}.bin"
    data.write_bytes(np.asarray(faces, np.uint8).tobytes())
    gender.write_bytes(np.asarray(label, "<f4").tobytes())
    return data, gender


def numbered_faces(count, first=0):
    """Faces that say which they are: the row number in the first two pixels, its lowest bit is the label."""
    rows = np.arange(first, first + count)
    faces = random_faces(count, seed=first)
    faces[:, 0], faces[:, 1] = rows // 256, rows % 256
    return faces, one_hot(rows % 2)


def numbers(x):
    """The row numbers of numbered faces, from [n, 2304] in the course's scale."""
    grey = np.asarray(x)[:, :2] * 256 + 128
    return (grey[:, 0] * 256 + grey[:, 1]).astype(int)


def numbered_dataset(folder, count, first=0, name="some", **options):
    return DataSet(*write_database(folder, *numbered_faces(count, first), name), **options)


def read_epoch(dataset):
    """All batches of one epoch, from where the dataset stands: a list of (faces, labels)."""
    batches = []
    for _ in range(dataset.nbdata):
        batches.append(dataset.NextTrainingBatch())
        if dataset.curPos >= dataset.nbdata:
            break
    return batches


def epoch_numbers(dataset):
    return np.concatenate([numbers(x) for x, _ in read_epoch(dataset)])


# The pixel scale


@pytest.mark.parametrize("grey, x", [(0, -0.5), (1, -0.49609375), (64, -0.25), (128, 0.0), (255, 0.49609375)])
def test_grey_level_and_float_are_the_course_scale(grey, x):
    assert Dataset.to_float(np.uint8(grey)) == x
    assert Dataset.to_grey(x) == grey


def test_named_ends_of_the_scale_are_grey_0_and_255():
    assert (Dataset.BLACK, Dataset.WHITE) == (-0.5, 0.49609375)
    assert Dataset.to_grey([Dataset.BLACK, Dataset.WHITE]).tolist() == [0, 255]


def test_all_256_levels_survive_the_round_trip():
    levels = np.arange(256, dtype=np.uint8)
    x = Dataset.to_float(levels)
    assert x.dtype == np.float32
    back = Dataset.to_grey(x)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, levels)


def test_to_grey_rounds_to_the_nearest_level():
    levels = np.array([10.4, 10.6, 99.49, 99.51, 254.6])
    assert Dataset.to_grey((levels - 128) / 256).tolist() == [10, 11, 99, 100, 255]


def test_to_grey_clips_and_does_not_wrap():
    levels = np.array([-1.0, -300.0, 256.0, 511.0, 1e6])
    assert Dataset.to_grey((levels - 128) / 256).tolist() == [0, 0, 255, 255, 255]


# .data looks like the course's float32 array


@pytest.fixture(params=["one file", "two files", "subset"])
def array(request, tmp_path):
    """A FaceArray of 7 faces, and the float32 array that it stands for."""
    faces = random_faces(7)
    reference = ((faces.astype(np.float64) - 128) / 256).astype(np.float32)
    if request.param == "two files":
        halves = [DataSet(*write_database(tmp_path, part, one_hot([0] * len(part)), name))
                  for part, name in ((faces[:3], "a"), (faces[3:], "b"))]
        return DataSet.join(halves).data, reference
    dataset = DataSet(*write_database(tmp_path, faces, one_hot([0] * 7)))
    if request.param == "subset":
        rows = [6, 2, 2, 0, 5]
        return dataset.subset(rows).data, reference[rows]
    return dataset.data, reference


KEYS = {
    "row": 2,
    "numpy integer": np.int64(3),
    "last row": -1,
    "slice": slice(1, 4),
    "slice from the end": slice(-3, None),
    "slice with step": slice(None, None, 2),
    "reversed": slice(None, None, -1),
    "empty slice": slice(2, 2),
    "slice past the end": slice(2, 100),
    "[i:j, :]": (slice(1, 4), slice(None)),
    "[i, :]": (1, slice(None)),
    "[:, column]": (slice(None), 17),
    "[:, columns]": (slice(None), [5, 3, 2000]),
    "[:, a:b]": (slice(None), slice(100, 200)),
    "[i, j]": (3, 1000),
    "[i, -1]": (-2, -1),
    "list": [4, 0, 0],
    "negative list": [-1, -5],
    "empty list": [],
    "array": np.array([3, 1, 2]),
    "array and column": (np.array([3, 1, 2]), 7),
    "row and column lists": ([0, 2, 1], [5, 6, 7]),
    "two-dimensional array": np.array([[0, 1], [2, 3]]),
    "Ellipsis": Ellipsis,
    "[..., column]": (Ellipsis, 9),
    "[i, ...]": (2, Ellipsis),
    "[:, None]": (slice(None), None),
    "None": None,
    "empty tuple": (),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_indexing_gives_what_the_float_array_gives(array, key):
    data, reference = array
    found, expected = data[key], reference[key]
    assert found.dtype == np.float32
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_array_equal(found, expected)


def test_indexing_by_a_mask_of_rows(array):
    data, reference = array
    mask = reference[:, 0] > np.median(reference[:, 0])
    assert 0 < mask.sum() < len(mask)
    np.testing.assert_array_equal(data[mask], reference[mask])
    np.testing.assert_array_equal(data[mask, 5:9], reference[mask, 5:9])
    np.testing.assert_array_equal(data[mask.tolist()], reference[mask])


def test_indexing_by_a_mask_of_pixels(array):
    data, reference = array
    np.testing.assert_array_equal(data[reference > 0.25], reference[reference > 0.25])


@pytest.mark.parametrize("key", [100, -100, [0, 100], (0, DIM), (0, 0, 0), np.ones(50, bool), 1.5])
def test_index_out_of_range_raises_index_error(array, key):
    with pytest.raises(IndexError):
        array[0][key]


def test_shape_dtype_ndim_and_len(array):
    data, reference = array
    assert (data.shape, data.dtype, data.ndim, data.size, len(data)) == (
        reference.shape, np.float32, 2, reference.size, len(reference))


def test_iteration_yields_every_row_once(array):
    data, reference = array
    rows = list(data)
    assert len(rows) == len(reference)
    np.testing.assert_array_equal(np.stack(rows), reference)


def test_asarray_and_array_give_float32_or_what_is_asked_for(array):
    data, reference = array
    for found in (np.asarray(data), np.array(data), np.array(data, copy=True), np.asarray(data, np.float64)):
        np.testing.assert_array_equal(found, reference)
    assert np.asarray(data).dtype == np.float32
    assert np.asarray(data, np.float64).dtype == np.float64


def test_converted_faces_may_be_written_to_without_changing_the_database(array):
    data, reference = array
    for faces in (data[0:2], data[0], np.asarray(data)):
        faces += 1
    np.testing.assert_array_equal(data[:], reference)


def test_arithmetic(array):
    data, reference = array
    weights = np.linspace(-1, 1, DIM * 2, dtype=np.float32).reshape(DIM, 2)
    pairs = [(data + 0.5, reference + 0.5), (0.5 - data, 0.5 - reference), (-data, -reference),
             (data * data, reference * reference), (data / 2, reference / 2), (abs(data), abs(reference)),
             (data > 0, reference > 0), (data == data[0], reference == reference[0]),
             (reference + data, reference + reference), (np.sqrt(data + 1), np.sqrt(reference + 1)),
             (data @ weights, reference @ weights), (np.add.reduce(data), np.add.reduce(reference))]
    for found, expected in pairs:
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_arithmetic_in_place_makes_an_array_and_leaves_the_file(array):
    data, reference = array
    changed = data
    changed -= reference.mean(0)
    np.testing.assert_array_equal(changed, reference - reference.mean(0))
    np.testing.assert_array_equal(data, reference)


def test_numpy_functions(array):
    data, reference = array
    for function in (np.mean, np.sum, np.std, np.min, np.max, np.transpose, np.ravel):
        np.testing.assert_array_equal(function(data), function(reference))
    np.testing.assert_array_equal(np.mean(data, axis=0), np.mean(reference, axis=0))
    np.testing.assert_array_equal(np.clip(data, -0.1, 0.1), np.clip(reference, -0.1, 0.1))
    np.testing.assert_array_equal(np.concatenate([data, data]), np.concatenate([reference, reference]))


def test_array_methods(array):
    data, reference = array
    np.testing.assert_array_equal(data.reshape(-1, 48, 48, 1), reference.reshape(-1, 48, 48, 1))
    np.testing.assert_array_equal(np.reshape(data, (-1, 48, 48)), reference.reshape(-1, 48, 48))
    np.testing.assert_array_equal(data.mean(0), reference.mean(0))
    np.testing.assert_array_equal(data.astype(np.float64), reference)
    np.testing.assert_array_equal(data.T, reference.T)


@pytest.mark.parametrize("act", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_faces_with_a_variable_have_its_gradient(array, act):
    data, reference = array
    dx = tf.Variable(np.full((1, DIM), 0.5, np.float32))
    gradients = []
    for faces in data, tf.constant(reference):
        for one, other in (faces, dx), (dx, faces + 2.0):
            with tf.GradientTape() as tape:
                y = act(one, other)
            gradients.append((y, tape.gradient(y, dx)))
    for found, expected in zip(gradients[:2], gradients[2:]):
        for value, right in zip(found, expected):
            np.testing.assert_allclose(value, right, rtol=1e-5)


def test_faces_times_a_matrix_have_its_gradient(array):
    data, reference = array
    w = tf.Variable(tf.ones([DIM, 2]))
    with tf.GradientTape() as tape:
        y = data @ w
    np.testing.assert_allclose(tape.gradient(y, w), reference.sum(0)[:, None].repeat(2, 1), atol=1e-5)


def test_printed_it_tells_its_shape(array):
    assert f"[{len(array[1])}, 2304]" in repr(array[0])


def test_what_no_array_has_is_an_attribute_error(array):
    with pytest.raises(AttributeError, match="FaceArray has no attribute 'nosuch'"):
        array[0].nosuch


def test_grey_gives_the_bytes_of_the_file(array):
    data, reference = array
    for index in (slice(None), slice(1, 3), np.array([3, 0]), np.arange(len(reference)) % 2 == 0):
        grey = data.grey(index)
        assert grey.dtype == np.uint8
        np.testing.assert_array_equal(grey, (reference[index] * 256 + 128).astype(np.uint8))


# Faces stay on disk


MEASURE = """
import re
import sys
import numpy as np
from Dataset import DataSet

def megabytes(title):
    return int(re.search(title + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

before = megabytes("VmRSS")
dataset = DataSet(*sys.argv[1:])
"""
OPEN_AND_READ = """
assert dataset.nbdata == 1_000_000
assert len(np.unique(dataset.order(3))) == 1_000_000
seen = [dataset.NextTrainingBatch()[0] for _ in range(5)]
assert all((x[:, :-1] == -0.5).all() for x in seen)
assert dataset.data[999_999, 2303] == 0.49609375
"""
READ_AN_EPOCH = """
bright = 0
while dataset.curPos < dataset.nbdata:
    bright += (dataset.NextTrainingBatch()[0] == 0.49609375).sum()
assert bright == 1
"""
READ_ALL_AT_ONCE = """
assert dataset.data.grey(dataset.order(0)).sum() == 255
"""


def tells_peak_memory():
    status = Path("/proc/self/status")
    return status.exists() and "VmHWM" in status.read_text()


@pytest.mark.skipif(not tells_peak_memory(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("script, faces, most", [
    (OPEN_AND_READ, 1_000_000, 200),
    (READ_AN_EPOCH, 150_000, 120),            # 330 MB on disk
    (READ_ALL_AT_ONCE, 150_000, 330 + 120),   # of which the array itself 330
], ids=["open and read", "an epoch", "all at once"])
def test_peak_memory_does_not_grow_with_the_file(tmp_path, script, faces, most):
    data, gender = tmp_path / "data_some.bin", tmp_path / "gender_some.bin"
    with open(data, "wb") as file:
        file.truncate(faces * DIM)
        file.seek(-1, 2)
        file.write(b"\xff")
    one_hot(np.arange(faces) % 2).tofile(gender)
    ran = subprocess.run([sys.executable, "-c", MEASURE + script + 'print(megabytes("VmHWM") - before)', data, gender],
                         cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < most, f"peak resident memory grew by {ran.stdout.strip()} MB"


def test_faces_are_uint8_mapped_from_the_file(tmp_path):
    dataset = numbered_dataset(tmp_path, 5)
    joined = DataSet.join([dataset, dataset.subset([1, 2])])
    for held in (dataset, dataset.subset([3, 1]), joined):
        for part in held.data.parts:
            assert part.dtype == np.uint8
            assert isinstance(part, np.memmap)


def test_a_face_array_in_memory_reads_as_one_on_disk():
    faces = random_faces(3)
    np.testing.assert_array_equal(FaceArray([faces], [2, 0])[:], Dataset.to_float(faces[[2, 0]]))


def test_a_copy_reads_as_the_original(tmp_path):
    dataset = numbered_dataset(tmp_path, 5)
    np.testing.assert_array_equal(copy.deepcopy(dataset.data)[:3], dataset.data[:3])


def test_the_database_cannot_be_written_through_the_dataset(tmp_path):
    dataset = numbered_dataset(tmp_path, 5)
    with pytest.raises(TypeError):
        dataset.data[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        dataset.data.parts[0][0] = 0


# Opening


def test_dataset_holds_the_files_values(tmp_path):
    faces, label = numbered_faces(9)
    dataset = DataSet(*write_database(tmp_path, faces, label))
    assert (dataset.nbdata, dataset.dim, dataset.batchSize, dataset.curPos) == (9, 2304, 128, 0)
    np.testing.assert_array_equal(dataset.data, (faces.astype(np.float32) - 128) / 256)
    assert dataset.label.dtype == np.float32
    np.testing.assert_array_equal(dataset.label, label)


def test_label_bytes_are_little_endian_man_first(tmp_path):
    data, gender = write_database(tmp_path, random_faces(2), one_hot([0, 0]))
    gender.write_bytes(bytes.fromhex("0000803f00000000" "000000000000803f"))
    assert DataSet(data, gender).label.tolist() == [[1, 0], [0, 1]]


def test_paths_may_be_text(tmp_path):
    data, gender = write_database(tmp_path, *numbered_faces(3))
    assert numbers(DataSet(str(data), str(gender)).data).tolist() == [0, 1, 2]


@pytest.mark.parametrize("nbdata", [1, 4, 9])
def test_nbdata_uses_the_first_faces_and_no_others(tmp_path, nbdata):
    faces, label = numbered_faces(9)
    dataset = DataSet(*write_database(tmp_path, faces, label), nbdata, 2)
    assert dataset.nbdata == len(dataset.data) == nbdata
    assert numbers(dataset.data).tolist() == list(range(nbdata))
    np.testing.assert_array_equal(dataset.label, label[:nbdata])
    assert sorted(epoch_numbers(dataset)) == list(range(nbdata))


# Batches


@pytest.mark.parametrize("count, batch_size, sizes", [
    (12, 4, [4, 4, 4]), (10, 4, [4, 4, 2]), (9, 4, [4, 4, 1]), (3, 4, [3]), (3, 1, [1, 1, 1]),
    (300, 128, [128, 128, 44])])
def test_an_epoch_shows_every_face_once_with_its_label(tmp_path, count, batch_size, sizes):
    dataset = numbered_dataset(tmp_path, count, batchSize=batch_size)
    for _ in range(3):
        batches = read_epoch(dataset)
        assert [len(x) for x, _ in batches] == sizes
        rows = np.concatenate([numbers(x) for x, _ in batches])
        assert sorted(rows) == list(range(count))
        np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), one_hot(rows % 2))


def test_a_batch_is_whole_faces_in_the_course_scale(tmp_path):
    faces, label = numbered_faces(20)
    dataset = DataSet(*write_database(tmp_path, faces, label), batchSize=7)
    x, y = dataset.NextTrainingBatch()
    assert (x.dtype, y.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(x, (faces[numbers(x)].astype(np.float32) - 128) / 256)


def test_cur_pos_says_where_the_next_batch_begins(tmp_path):
    dataset = numbered_dataset(tmp_path, 10, batchSize=4)
    positions = [dataset.curPos]
    for _ in range(4):
        dataset.NextTrainingBatch()
        positions.append(dataset.curPos)
    assert positions == [0, 4, 8, 10, 4]


def test_cur_pos_set_by_hand_is_where_the_next_batch_begins(tmp_path):
    dataset = numbered_dataset(tmp_path, 10, batchSize=4)
    first, second = (numbers(dataset.NextTrainingBatch()[0]) for _ in range(2))
    dataset.curPos = 4
    np.testing.assert_array_equal(numbers(dataset.NextTrainingBatch()[0]), second)
    dataset.curPos = 0
    np.testing.assert_array_equal(numbers(dataset.NextTrainingBatch()[0]), first)


def test_epochs_differ_in_order_and_from_the_files(tmp_path):
    dataset = numbered_dataset(tmp_path, 100, batchSize=30)
    orders = [epoch_numbers(dataset).tolist() for _ in range(3)]
    assert len({tuple(order) for order in [*orders, range(100)]}) == 4


def test_same_seed_and_epoch_same_batches(tmp_path):
    one, other = (numbered_dataset(tmp_path, 50, batchSize=8) for _ in range(2))
    one.seed = other.seed = 7
    for _ in range(3):
        np.testing.assert_array_equal(epoch_numbers(one), epoch_numbers(other))


def test_another_seed_another_order(tmp_path):
    one, other = (numbered_dataset(tmp_path, 50) for _ in range(2))
    other.seed = 1
    assert epoch_numbers(one).tolist() != epoch_numbers(other).tolist()


def test_a_seed_is_not_another_one_an_epoch_later(tmp_path):
    one, other = (numbered_dataset(tmp_path, 50) for _ in range(2))
    other.seed = 1
    assert one.order(1).tolist() != other.order(0).tolist()


def test_order_does_not_depend_on_batch_size(tmp_path):
    one, other = (numbered_dataset(tmp_path, 50, batchSize=size) for size in (7, 16))
    for _ in range(2):
        np.testing.assert_array_equal(epoch_numbers(one), epoch_numbers(other))


def test_a_dataset_that_begins_amid_an_epoch_goes_on_as_one_that_was_not_interrupted(tmp_path):
    whole = numbered_dataset(tmp_path, 50, batchSize=8)
    for _ in range(2):
        read_epoch(whole)
    for _ in range(3):
        whole.NextTrainingBatch()
    resumed = numbered_dataset(tmp_path, 50, batchSize=8)
    resumed.epoch, resumed.curPos = whole.epoch, whole.curPos
    for _ in range(10):
        np.testing.assert_array_equal(numbers(resumed.NextTrainingBatch()[0]), numbers(whole.NextTrainingBatch()[0]))


@pytest.mark.parametrize("changed", [{"epoch": 5}, {"seed": 3}, {"epoch": 0, "seed": 9}],
                         ids=["epoch", "seed", "both"])
def test_order_does_not_depend_on_what_was_read_before(tmp_path, changed):
    used, fresh = (numbered_dataset(tmp_path, 50, batchSize=8) for _ in range(2))
    for _ in range(3):
        used.NextTrainingBatch()
    for dataset in (used, fresh):
        vars(dataset).update(changed, curPos=0)
    np.testing.assert_array_equal(epoch_numbers(used), epoch_numbers(fresh))


def test_order_does_not_depend_on_numpys_generator(tmp_path):
    dataset = numbered_dataset(tmp_path, 50)
    np.random.seed(1)
    order = dataset.order(4)
    np.random.seed(2)
    np.testing.assert_array_equal(order, dataset.order(4))
    assert sorted(order) == list(range(50))


# Joining and choosing


def test_join_holds_all_faces_in_order_with_their_labels(tmp_path):
    one = numbered_dataset(tmp_path, 5, name="a", batchSize=3)
    two = numbered_dataset(tmp_path, 300, first=1000, name="b")
    three = numbered_dataset(tmp_path, 4, first=2001, name="c")
    joined = DataSet.join([one, two, three])
    expected = np.r_[0:5, 1000:1300, 2001:2005]
    assert (joined.nbdata, joined.dim, joined.batchSize) == (309, DIM, 3)
    assert numbers(joined.data).tolist() == expected.tolist()
    np.testing.assert_array_equal(joined.label, one_hot(expected % 2))
    np.testing.assert_array_equal(joined.data, np.concatenate([one.data, two.data, three.data]))


def test_rows_of_a_joined_dataset_come_from_the_right_file(tmp_path):
    joined = DataSet.join([numbered_dataset(tmp_path, 5, name="a"), numbered_dataset(tmp_path, 7, 100, "b")])
    assert numbers(joined.data[3:7]).tolist() == [3, 4, 100, 101]
    assert numbers(joined.data[[11, 0, 5, 4, -1]]).tolist() == [106, 0, 100, 4, 106]
    assert numbers(joined.data[[5]])[0] == 100
    assert numbers(joined.data[5][None])[0] == 100


def test_an_epoch_of_a_joined_dataset_mixes_the_files_and_shows_every_face_once(tmp_path):
    joined = DataSet.join([numbered_dataset(tmp_path, 40, name="a", batchSize=9),
                           numbered_dataset(tmp_path, 41, 101, "b")])
    batches = read_epoch(joined)
    rows = np.concatenate([numbers(x) for x, _ in batches])
    assert sorted(rows) == [*range(40), *range(101, 142)]
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), one_hot(rows % 2))
    assert {row < 100 for row in rows[:27]} == {True, False}


def test_subset_keeps_order_repeats_and_labels(tmp_path):
    dataset = numbered_dataset(tmp_path, 10, batchSize=4)
    subset = dataset.subset(np.array([7, 2, 2, 9]))
    assert (subset.nbdata, subset.batchSize) == (4, 4)
    assert numbers(subset.data).tolist() == [7, 2, 2, 9]
    assert subset.label.argmax(1).tolist() == [1, 0, 0, 1]


def test_subset_by_mask(tmp_path):
    dataset = numbered_dataset(tmp_path, 10)
    men = dataset.subset(dataset.label[:, 0] == 1)
    assert numbers(men.data).tolist() == [0, 2, 4, 6, 8]
    assert men.label.tolist() == [[1, 0]] * 5


def test_subsets_and_joins_nest(tmp_path):
    one, two = numbered_dataset(tmp_path, 10, name="a"), numbered_dataset(tmp_path, 10, 100, "b")
    inner = DataSet.join([two.subset([9, 1]), one.subset([3])])
    outer = DataSet.join([inner, two.subset([4]), one]).subset([1, 2, 3, 0, 13])
    assert numbers(outer.data).tolist() == [101, 3, 104, 109, 9]
    assert outer.label.argmax(1).tolist() == [1, 1, 0, 1, 1]


def test_subset_of_a_limited_dataset_stays_within_it(tmp_path):
    dataset = numbered_dataset(tmp_path, 10, nbdata=6)
    assert numbers(dataset.subset([-1, 0]).data).tolist() == [5, 0]
    with pytest.raises(IndexError):
        dataset.subset([6])


def test_subset_starts_its_own_epoch_and_leaves_the_dataset_alone(tmp_path):
    dataset, untouched = (numbered_dataset(tmp_path, 30, batchSize=4) for _ in range(2))
    dataset.NextTrainingBatch(), untouched.NextTrainingBatch()
    subset = dataset.subset(np.arange(8))
    assert sorted(epoch_numbers(subset)) == list(range(8))
    assert dataset.curPos == 4
    np.testing.assert_array_equal(numbers(dataset.NextTrainingBatch()[0]), numbers(untouched.NextTrainingBatch()[0]))


# Accuracy


FIRST_PIXELS = np.array([200, 10, 140, 127, 128, 0, 255], np.uint8)
CLASSES = [1, 0, 0, 0, 1, 1, 1]


def bright_is_woman(x):
    """Logits by the first pixel: woman where it is above grey level 128, man below."""
    return np.stack([-x[:, 0], x[:, 0]], 1)


@pytest.fixture
def first_pixel_dataset(tmp_path):
    faces = random_faces(len(CLASSES))
    faces[:, 0] = FIRST_PIXELS
    return DataSet(*write_database(tmp_path, faces, one_hot(CLASSES)), batchSize=3)


class Recorder:
    """A model of one to three required arguments that notes how it was called."""

    def __init__(self):
        self.sizes, self.flags = [], []

    def note(self, x, *flags):
        self.sizes.append(len(x))
        self.flags.append(flags)
        return bright_is_woman(x)

    def one(self, x):
        return self.note(x)

    def one_and_options(self, x, log_summary=True, training=True):
        return self.note(x, log_summary, training)

    def two(self, x, training):
        return self.note(x, training)

    def three(self, x, log_summary, training):
        return self.note(x, log_summary, training)


@pytest.mark.parametrize("form, flags", [("one", ()), ("two", (False,)), ("three", (False, False)),
                                         ("one_and_options", (True, True))])
def test_mean_accuracy_of_a_hand_worked_case_whatever_the_model_requires(first_pixel_dataset, form, flags):
    """Says 1 0 1 0 0 0 1 where 1 0 0 0 1 1 1 is right: 4 of 7 (the tie at grey level 128 goes to man)."""
    recorder = Recorder()
    assert first_pixel_dataset.mean_accuracy(getattr(recorder, form)) == pytest.approx(4 / 7, abs=1e-12)
    assert recorder.sizes == [3, 3, 1]
    assert set(recorder.flags) == {flags}


def test_a_callable_object_is_a_model(first_pixel_dataset):
    class Net:
        def __call__(self, x, log_summary, training):
            return bright_is_woman(x)

    assert first_pixel_dataset.mean_accuracy(Net()) == pytest.approx(4 / 7, abs=1e-12)


def test_a_lambda_of_one_required_argument_is_a_model(first_pixel_dataset):
    assert first_pixel_dataset.mean_accuracy(lambda x: bright_is_woman(x)) == pytest.approx(4 / 7, abs=1e-12)
    inverted = first_pixel_dataset.mean_accuracy(lambda x, *rest, **more: -bright_is_woman(x))  # 0 1 0 1 0 1 0
    assert inverted == pytest.approx(2 / 7, abs=1e-12)
    women_only = first_pixel_dataset.mean_accuracy(lambda x: [[0.0, 1.0]] * len(x))
    assert women_only == pytest.approx(4 / 7, abs=1e-12)


def test_mean_accuracy_is_0_and_1_at_its_ends(first_pixel_dataset):
    answers = iter([one_hot(CLASSES)[start:start + 3] for start in (0, 3, 6)])
    assert first_pixel_dataset.mean_accuracy(lambda x: next(answers)) == 1.0
    answers = iter([1 - one_hot(CLASSES)[start:start + 3] for start in (0, 3, 6)])
    assert first_pixel_dataset.mean_accuracy(lambda x: next(answers)) == 0.0


def test_mean_accuracy_is_of_the_first_nbdata_faces(first_pixel_dataset):
    """Says 1 0 1 0 where 1 0 0 0 is right; a batch of three, then what is left."""
    first_pixel_dataset.nbdata = 4
    recorder = Recorder()
    assert first_pixel_dataset.mean_accuracy(recorder.one) == 3 / 4
    assert recorder.sizes == [3, 1]


@pytest.mark.parametrize("answer", [lambda x: x[:, :1], lambda x: x[:, 0], lambda x: x[:, :3]])
def test_a_model_that_does_not_answer_two_numbers_a_face_is_refused(first_pixel_dataset, answer):
    with pytest.raises(DataError, match="about 7 faces; expected two numbers a face"):
        first_pixel_dataset.mean_accuracy(answer)


def test_logits_come_in_the_order_of_the_file_each_face_once(first_pixel_dataset):
    logits = first_pixel_dataset.logits(bright_is_woman)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits[:, 1] * 256 + 128, FIRST_PIXELS)


def test_measuring_does_not_move_the_epoch(tmp_path):
    dataset, untouched = (numbered_dataset(tmp_path, 30, batchSize=4) for _ in range(2))
    dataset.NextTrainingBatch(), untouched.NextTrainingBatch()
    dataset.mean_accuracy(bright_is_woman)
    assert dataset.curPos == 4
    np.testing.assert_array_equal(numbers(dataset.NextTrainingBatch()[0]), numbers(untouched.NextTrainingBatch()[0]))


# Malformed databases



DATABASE_ERRORS = {
    "data empty": ("data", lambda content: b"", "data_some.bin: empty; expected 48x48 faces of 2304 bytes"),
    "data truncated": ("data", lambda content: content[:-1],
                       "data_some.bin: 9215 bytes is not a whole number of 48x48 faces.*2304"),
    "data of less than a face": ("data", lambda content: content[:100], "data_some.bin: 100 bytes is not a whole"),
    "data too long by one": ("data", lambda content: content + b"x", "data_some.bin: 9217 bytes is not a whole"),
    "gender empty": ("gender", lambda content: b"", "gender_some.bin: empty; expected two float32 a face"),
    "gender truncated": ("gender", lambda content: content[:-3], "gender_some.bin: 29 bytes is not a whole number"),
    "gender cut amid a label": ("gender", lambda content: content[:-4], "gender_some.bin: 28 bytes is not a whole"),
    "a label too few": ("gender", lambda content: content[:-8],
                        "gender_some.bin: 3 labels, but .*data_some.bin holds 4 faces; expected one label a face"),
    "a label too many": ("gender", lambda content: content + content[:8], "gender_some.bin: 5 labels.* 4 faces"),
    "a face too few": ("data", lambda content: content[:-DIM], "gender_some.bin: 4 labels.* 3 faces"),
}


def assert_data_error(message, call):
    """`call` raises a DataError of one line that matches."""
    with pytest.raises(DataError, match=message) as caught:
        call()
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file, change, message", DATABASE_ERRORS.values(), ids=DATABASE_ERRORS.keys())
def test_malformed_file_is_named_with_what_was_expected(tmp_path, file, change, message):
    paths = write_database(tmp_path, *numbered_faces(4))
    path = paths[("data", "gender").index(file)]
    path.write_bytes(change(path.read_bytes()))
    assert_data_error(message, lambda: DataSet(*paths))


@pytest.mark.parametrize("file", ["data", "gender"])
def test_missing_file_is_named(tmp_path, file):
    paths = write_database(tmp_path, *numbered_faces(4))
    (tmp_path / f"{file}_some.bin").unlink()
    assert_data_error(f"{file}_some.bin: no such file", lambda: DataSet(*paths))


@pytest.mark.parametrize("file", ["data", "gender"])
def test_folder_in_place_of_a_file_is_named(tmp_path, file):
    paths = write_database(tmp_path, *numbered_faces(4))
    (tmp_path / f"{file}_some.bin").unlink()
    (tmp_path / f"{file}_some.bin").mkdir()
    assert_data_error(f"{file}_some.bin: not a file", lambda: DataSet(*paths))


@pytest.mark.parametrize("file", ["data", "gender"])
def test_file_that_may_not_be_read_is_named(tmp_path, monkeypatch, file):
    paths = write_database(tmp_path, *numbered_faces(4))
    monkeypatch.setattr(Dataset.os, "access", lambda path, mode: file not in Path(path).name)
    assert_data_error(f"{file}_some.bin: may not be read; check its permissions", lambda: DataSet(*paths))


WRONG_LABELS = {
    "two ones": ((1, 1), r"\(1, 1\)"),
    "two zeros": ((0, 0), r"\(0, 0\)"),
    "halves": ((0.5, 0.5), r"\(0.5, 0.5\)"),
    "half and one": ((0.5, 1), r"\(0.5, 1\)"),
    "negative": ((-1, 2), r"\(-1, 2\)"),
    "sums to one": ((0.25, 0.75), r"\(0.25, 0.75\)"),
    "one NaN": ((np.nan, 1), r"\(nan, 1\)"),
    "two NaN": ((np.nan, np.nan), r"\(nan, nan\)"),
    "inf": ((0, np.inf), r"\(0, inf\)"),
    "inf and -inf": ((np.inf, -np.inf), r"\(inf, -inf\)"),
    "largest floats": ((3e38, 3e38), r"\(3e\+38, 3e\+38\)"),
}


@pytest.mark.parametrize("row", [0, 2, 3])
@pytest.mark.parametrize("values, found", WRONG_LABELS.values(), ids=WRONG_LABELS.keys())
def test_label_that_is_not_one_hot_is_quoted_with_its_row(tmp_path, values, found, row):
    faces, label = numbered_faces(4)
    label[row] = values
    paths = write_database(tmp_path, faces, label)
    assert_data_error(f"gender_some.bin: label {row} is {found}; expected one-hot", lambda: DataSet(*paths))


def test_labels_of_another_byte_order_are_refused(tmp_path):
    data, gender = write_database(tmp_path, *numbered_faces(4))
    gender.write_bytes(one_hot([0, 1, 1, 0]).astype(">f4").tobytes())
    assert_data_error("gender_some.bin: label 0 is .* expected one-hot", lambda: DataSet(data, gender))


def test_data_and_gender_exchanged_are_refused(tmp_path):
    data, gender = write_database(tmp_path, *numbered_faces(4))
    with pytest.raises(DataError, match="gender_some.bin: 32 bytes is not a whole number of 48x48 faces"):
        DataSet(gender, data)


@pytest.mark.parametrize("nbdata", [5, 10**9, 0, -1])
def test_nbdata_beyond_the_file_is_refused(tmp_path, nbdata):
    paths = write_database(tmp_path, *numbered_faces(4))
    assert_data_error(f"data_some.bin: {nbdata} faces asked for, it holds 4", lambda: DataSet(*paths, nbdata))


@pytest.mark.parametrize("batch_size", [0, -5])
def test_batch_size_below_1_is_refused(tmp_path, batch_size):
    paths = write_database(tmp_path, *numbered_faces(4))
    assert_data_error(f"batchSize {batch_size}: expected 1 or more", lambda: DataSet(*paths, batchSize=batch_size))


# Names


@pytest.mark.parametrize("name", ["10k", "test10k", "my faces", "v1.2"])
def test_a_name_means_files_in_the_databases_folder(name):
    folder = ROOT / "DataBases"
    assert Dataset.database_files(name) == (
        folder / f"data_{name}.bin", folder / f"gender_{name}.bin", folder / f"meta_{name}.csv")


def test_a_name_means_files_in_the_folder_that_is_given(tmp_path):
    data, gender, meta = Dataset.database_files("1k", tmp_path)
    assert (data, gender, meta) == (tmp_path / "data_1k.bin", tmp_path / "gender_1k.bin", tmp_path / "meta_1k.csv")


@pytest.mark.parametrize("path", ["data_10k.bin", "here/data_10k.bin", "/far/away/data_10k.bin",
                                  "data_x/data_10k.bin", Path("here/data_10k.bin")])
def test_a_path_has_its_gender_and_meta_beside_it(path):
    folder = Path(path).parent
    assert Dataset.database_files(path, "/not/used") == (
        Path(path), folder / "gender_10k.bin", folder / "meta_10k.csv")


def test_only_the_first_data_of_a_file_name_is_replaced():
    assert Dataset.database_files("x/data_data_1.5.bin")[1:] == (Path("x/gender_data_1.5.bin"),
                                                                 Path("x/meta_data_1.5.csv"))


@pytest.mark.parametrize("name", ["gender_10k.bin", "10k.bin", "here/10k", "/here/data_10k", "x/data_10k.csv"])
def test_what_is_no_database_name_is_refused(name):
    assert_data_error("expected a name such as 10k, or a file called data_<name>.bin",
                      lambda: Dataset.database_files(name))


def test_open_database_by_path(tmp_path):
    data, _ = write_database(tmp_path, *numbered_faces(5), "mine")
    for path in (data, str(data)):
        dataset = Dataset.open_database(path, batchSize=2)
        assert numbers(dataset.data).tolist() == [0, 1, 2, 3, 4]
        assert dataset.batchSize == 2


def test_open_database_of_an_unknown_name_names_the_file():
    assert_data_error("data_nosuchdatabase.bin: no such file; expected the path of a data_<name>.bin",
                      lambda: Dataset.open_database("nosuchdatabase"))


def make_databases(folder, **counts):
    for name, count in counts.items():
        (folder / f"data_{name}.bin").write_bytes(bytes(count))


def test_default_databases_are_the_largest_training_and_the_largest_test(tmp_path):
    make_databases(tmp_path, **{"1k": 10, "10k": 100, "5k": 50, "test10k": 400, "test1k": 900, "test": 3})
    (tmp_path / "gender_10k.bin").write_bytes(bytes(5000))
    (tmp_path / "data_big.csv").write_bytes(bytes(5000))
    assert Dataset.default_databases(tmp_path) == (tmp_path / "data_10k.bin", tmp_path / "data_test1k.bin")


@pytest.mark.parametrize("counts, expected", [
    ({}, (None, None)), ({"1k": 1}, ("data_1k.bin", None)), ({"test": 1}, (None, "data_test.bin")),
    ({"mytest": 1}, ("data_mytest.bin", None)), ({"b": 1, "a": 1}, ("data_b.bin", None))])
def test_default_databases_where_some_are_missing(tmp_path, counts, expected):
    make_databases(tmp_path, **counts)
    assert Dataset.default_databases(tmp_path) == tuple(name and tmp_path / name for name in expected)


def test_default_databases_pass_over_a_link_to_nothing(tmp_path):
    make_databases(tmp_path, some=3)
    (tmp_path / "data_100k.bin").symlink_to(tmp_path / "unplugged" / "data_100k.bin")
    assert Dataset.default_databases(tmp_path) == (tmp_path / "data_some.bin", None)


def test_default_databases_of_no_folder(tmp_path):
    assert Dataset.default_databases(tmp_path / "none") == (None, None)


# Groups


META = """age,ethnicity
0,0
5,1
6,2
15,3
16,4
30,0
31,
,1
50,0
51,2
90,2
,
"""


@pytest.fixture
def meta(tmp_path):
    path = tmp_path / "meta_some.csv"
    path.write_text(META, encoding="utf-8")
    return path


def test_groups_of_a_hand_worked_file(meta):
    groups = Dataset.read_groups(meta, 12)
    rows = {title: {name: np.flatnonzero(mask).tolist() for name, mask in group.items()}
            for title, group in groups.items()}
    assert rows == {
        "age": {"0-5": [0, 1], "6-15": [2, 3], "16-30": [4, 5], "31-50": [6, 8], "51+": [9, 10],
                "16+": [4, 5, 6, 8, 9, 10]},
        "ethnicity": {"White": [0, 5, 8], "Black": [1, 7], "Asian": [2, 9, 10], "Indian": [3], "other": [4]}}
    for group in groups.values():
        for mask in group.values():
            assert (mask.dtype, mask.shape) == (bool, (12,))


def test_groups_find_their_columns_by_name(tmp_path):
    path = tmp_path / "meta.csv"
    path.write_text("source,ethnicity,age\r\n\"a, b\",3,40\r\nc,0,2\r\n", encoding="utf-8")
    groups = Dataset.read_groups(path, 2)
    assert groups["age"]["31-50"].tolist() == [True, False]
    assert groups["age"]["0-5"].tolist() == [False, True]
    assert groups["ethnicity"]["Indian"].tolist() == [True, False]


def test_groups_of_a_file_that_excel_wrote(tmp_path):
    path = tmp_path / "meta_some.csv"
    path.write_text("age,ethnicity\n20,0\n", encoding="utf-8-sig")
    assert Dataset.read_groups(path, 1)["age"]["16-30"].tolist() == [True]


@pytest.mark.parametrize("step", [1, 0.25], ids=["whole years", "quarters of a year"])
def test_every_age_is_in_one_band(tmp_path, step):
    ages = np.arange(0, 120, step)
    path = tmp_path / "meta.csv"
    path.write_text("age,ethnicity\n" + "".join(f"{age},0\n" for age in ages), encoding="utf-8")
    bands = Dataset.read_groups(path, len(ages))["age"]
    adults = bands.pop("16+")
    np.testing.assert_array_equal(np.sum(list(bands.values()), axis=0), np.ones(len(ages)))
    np.testing.assert_array_equal(adults, ages >= 16)


GROUP_ERRORS = {
    "a line too few": (b"age,ethnicity\n1,1\n", "expected the columns age,ethnicity and 2 lines, found 1 lines"),
    "a line too many": (b"age,ethnicity\n1,1\n2,2\n3,3\n", "and 2 lines, found 3 lines"),
    "header alone": (b"age,ethnicity\n", "and 2 lines, found 0 lines"),
    "empty": (b"", "and 2 lines, found 0 lines"),
    "no header": (b"1,1\n2,2\n3,3\n", "expected the columns age,ethnicity .* found 2 lines of 1"),
    "another column": (b"age,race\n1,1\n2,2\n", "expected the columns age,ethnicity .* of age,race"),
    "one column": (b"age\n1\n2\n", "expected the columns age,ethnicity .* of age"),
    "semicolons": (b"age;ethnicity\n1;1\n2;2\n", "expected the columns age,ethnicity .* of age;ethnicity"),
    "age in words": (b"age,ethnicity\n1,1\nforty,2\n", "numbers, or empty; .*forty"),
    "ethnicity in words": (b"age,ethnicity\n1,White\n40,2\n", "numbers, or empty; .*White"),
    "age below zero": (b"age,ethnicity\n1,1\n-1,2\n", r"face 1 has age -1 and ethnicity 2; expected years, and 0 to 4 "
                       r"\(White, Black, Asian, Indian, other\), empty where unknown"),
    "ethnicities from one": (b"age,ethnicity\n1,1\n40,5\n", "face 1 has age 40 and ethnicity 5"),
    "half an ethnicity": (b"age,ethnicity\n1,1.5\n40,2\n", "face 0 has age 1 and ethnicity 1.5"),
    "an ethnicity without age": (b"age,ethnicity\n1,1\n,-1\n", "face 1 has age nan and ethnicity -1"),
    "not text": (b"age,ethnicity\n1,1\n\xff\xfe,2\n", "not a text file"),
}


@pytest.mark.parametrize("content, message", GROUP_ERRORS.values(), ids=GROUP_ERRORS.keys())
def test_malformed_groups_are_named_with_what_was_expected(tmp_path, content, message):
    path = tmp_path / "meta_some.csv"
    path.write_bytes(content)
    assert_data_error(f"meta_some.csv: .*{message}", lambda: Dataset.read_groups(path, 2))


def test_missing_groups_are_named(tmp_path):
    assert_data_error("meta_some.csv: no such file", lambda: Dataset.read_groups(tmp_path / "meta_some.csv", 2))


def test_folder_in_place_of_groups_is_named(tmp_path):
    assert_data_error(f"{tmp_path.name}: not a file", lambda: Dataset.read_groups(tmp_path, 2))


# Labels


@pytest.mark.parametrize("text, label", [
    ("man", 0), ("male", 0), ("homme", 0), ("0", 0), ("Man", 0), ("HOMME", 0),
    ("woman", 1), ("female", 1), ("femme", 1), ("1", 1), ("Woman", 1), ("FEMALE", 1)])
def test_labels_by_name(text, label):
    assert Dataset.parse_label(text) == label
    assert Dataset.LABELS[label] == ("man", "woman")[label]


@pytest.mark.parametrize("text", ["", "2", "child", "wo man", "-1"])
def test_unknown_label_is_quoted_with_those_that_are_known(text):
    with pytest.raises(UserError, match=f"unknown label '{text}'; expected one of man, .*woman"):
        Dataset.parse_label(text)


# Files appear whole or not at all


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_whole_writes_and_leaves_nothing_else(tmp_path):
    Dataset.write_whole(tmp_path / "a.raw", b"first, and longer")
    Dataset.write_whole(str(tmp_path / "a.raw"), b"second")
    assert (tmp_path / "a.raw").read_bytes() == b"second"
    assert names(tmp_path) == ["a.raw"]


def test_write_whole_makes_the_folders(tmp_path):
    Dataset.write_whole(tmp_path / "a" / "b" / "c.raw", b"content")
    assert (tmp_path / "a" / "b" / "c.raw").read_bytes() == b"content"


def test_write_whole_never_shows_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "a.raw"
    path.write_bytes(b"old")
    seen = []
    replace = Dataset.os.replace

    def watched(source, target):
        seen.append((path.read_bytes(), Path(source).read_bytes(), Path(source).parent))
        replace(source, target)

    monkeypatch.setattr(Dataset.os, "replace", watched)
    Dataset.write_whole(path, b"new")
    assert seen == [(b"old", b"new", tmp_path)]
    assert path.read_bytes() == b"new"


def write_half(self, content):
    with open(self, "wb") as file:
        file.write(content[:len(content) // 2])
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("before", [None, b"old"], ids=["new file", "file there"])
def test_full_disk_leaves_all_as_it_was(tmp_path, monkeypatch, before):
    path = tmp_path / "a.raw"
    if before:
        path.write_bytes(before)
    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(UserError, match=r"a.raw: cannot be written \(No space left on device\); choose another"):
        Dataset.write_whole(path, b"0123456789")
    monkeypatch.undo()
    assert names(tmp_path) == (["a.raw"] if before else [])
    assert not before or path.read_bytes() == before


def test_interrupt_leaves_all_as_it_was(tmp_path, monkeypatch):
    def interrupted(self, content):
        with open(self, "wb") as file:
            file.write(content[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Dataset.write_whole(tmp_path / "a.raw", b"0123456789")
    assert names(tmp_path) == []


@pytest.mark.parametrize("in_the_way", ["folder", "full disk"])
def test_files_that_belong_together_are_all_written_or_none(tmp_path, monkeypatch, in_the_way):
    contents = {tmp_path / name: name.encode() for name in ("a", "b", "c")}
    (tmp_path / "a").write_bytes(b"old")
    if in_the_way == "folder":
        (tmp_path / "c").mkdir()
    else:
        write = Path.write_bytes
        monkeypatch.setattr(Path, "write_bytes", lambda path, content: (write_half if content == b"c" else write)(
            path, content))
    with pytest.raises(UserError, match="c: cannot be written"):
        Dataset.write_all(contents)
    monkeypatch.undo()
    assert names(tmp_path) == (["a", "c"] if in_the_way == "folder" else ["a"])
    assert (tmp_path / "a").read_bytes() == b"old"
    if in_the_way == "folder":
        (tmp_path / "c").rmdir()
    Dataset.write_all(contents)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == contents


@pytest.mark.parametrize("below", ["a.raw", "deeper/a.raw"])
def test_file_in_the_way_of_the_folder_is_a_user_error(tmp_path, below):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(UserError, match="file.*: the folder cannot be written .*; choose another folder"):
        Dataset.write_whole(tmp_path / "file" / below, b"content")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_folder_in_the_way_of_the_file_is_a_user_error(tmp_path):
    (tmp_path / "a.raw").mkdir()
    with pytest.raises(UserError, match="a.raw: cannot be written .*; choose another folder"):
        Dataset.write_whole(tmp_path / "a.raw", b"content")
    assert names(tmp_path) == ["a.raw"]
    assert names(tmp_path / "a.raw") == []


def test_no_name_at_all_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Dataset.UserError, match="cannot be written"):
        Dataset.write_whole(".", b"new")
    assert not [*tmp_path.iterdir()]


def test_name_too_long_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        Dataset.write_whole(tmp_path / ("a" * 300), b"content")
    assert names(tmp_path) == []


def test_read_only_folder_is_a_user_error(tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match=r"a.raw: cannot be written \(Read-only file system\)"):
        Dataset.write_whole(tmp_path / "a.raw", b"content")


def test_balanced_order_draws_each_group_equally_often(tmp_path):
    dataset = Dataset.DataSet(*write_database(tmp_path, np.zeros((400, 2304)), one_hot(np.arange(400) % 2)))
    dataset.group = np.repeat([0, 1, 2], [300, 80, 20])
    part = Dataset.DataSet.join([dataset.subset(np.arange(0, 400, 2)), dataset.subset(np.arange(1, 400, 2))])
    np.testing.assert_array_equal(np.bincount(part.group), [300, 80, 20])
    drawn = np.concatenate([part.order(epoch) for epoch in range(50)])
    assert len(part.order(0)) == 400
    np.testing.assert_allclose(np.bincount(part.group[drawn]) / len(drawn), 1 / 3, atol=0.01)
    np.testing.assert_array_equal(part.order(7), part.order(7))


def test_balance_groups_are_sex_with_what_the_meta_file_says(tmp_path):
    path, gender = write_database(tmp_path, np.zeros((6, 2304)), one_hot(np.arange(6) % 2), "a")
    other = write_database(tmp_path, np.zeros((2, 2304)), one_hot([1, 0]), "b")[0]
    databases = Dataset.open_databases([path, other])

    def groups(balance):
        Dataset.balance_groups(databases, balance)
        return [list(dataset.group) for dataset in databases.values()]
    assert groups("sex") == [[0, 1] * 3, [1, 0]]
    with pytest.raises(DataError, match="--balance age: .*meta_a.csv is missing"):
        groups("age")
    (tmp_path / "meta_a.csv").write_text("age,ethnicity\n3,0\n3,0\n60,1\n17,\n,4\n16,2\n")
    assert groups("age") == [[2, 3, 10, 7, 0, 7], [1, 0]]  # of the second nothing is said
    assert groups("ethnicity") == [[2, 3, 4, 1, 10, 7], [1, 0]]


def test_traits_are_age_band_and_ethnicity_as_far_as_the_meta_file_says(tmp_path):
    path, gender = write_database(tmp_path, np.zeros((4, 2304)), one_hot(np.arange(4) % 2), "a")
    other = write_database(tmp_path, np.zeros((2, 2304)), one_hot([1, 0]), "b")[0]
    databases = Dataset.open_databases([path, other])
    with pytest.raises(DataError, match="--traits: .*meta_a.csv is missing"):
        Dataset.read_traits(databases)
    (tmp_path / "meta_a.csv").write_text("age,ethnicity\n" + 4 * ",\n")
    with pytest.raises(DataError, match="--traits: .*meta_a.csv is missing, or empty"):
        Dataset.read_traits(databases)
    (tmp_path / "meta_a.csv").write_text("age,ethnicity\n5,4\n16.5,\n,0\n151,2\n")
    Dataset.read_traits(databases)
    joined = Dataset.DataSet.join(list(databases.values())).subset(np.array([5, 3, 2, 1, 0]))
    assert [list(np.flatnonzero(row)) for row in joined.traits] == [[], [4, 7], [5], [2], [0, 9]]
    assert joined.traits.dtype == np.float32
