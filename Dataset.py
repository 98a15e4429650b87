"""Faces: the .bin databases, the pixel scale, pictures to 48x48 grey and back.

A database is two files that lie side by side: `data_<name>.bin`, N x 2304 uint8, a row a face of 48x48 pixels; and
`gender_<name>.bin`, N x 2 float32 little-endian, one-hot, column 0 = man, column 1 = woman. A file `meta_<name>.csv`
may lie beside them: age in years and ethnicity (0 White, 1 Black, 2 Asian, 3 Indian, 4 other), a line a face.
"""
import csv
import errno
import inspect
import io
import mmap
import os
import secrets
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIDE = 48
DIM = SIDE * SIDE
LABELS = ("man", "woman")
ETHNICITIES = ("White", "Black", "Asian", "Indian", "other")
AGE_BANDS = ((0, 5), (6, 15), (16, 30), (31, 50), (51, 150))
TRAITS = {"age": len(AGE_BANDS), "ethnicity": len(ETHNICITIES)}  # how long the one-hot code of each is
BALANCES = ("sex", *TRAITS)
SMALLEST_PICTURE = 16  # pixels a side; fewer hold no face
DATABASES = Path(__file__).resolve().parent / "DataBases"


class UserError(Exception):
    """A mistake of the user: the file or value, what was expected, what was found, what to do. No traceback."""


class DataError(UserError):
    """A file that is not what it should be."""


# The pixel scale: grey level g in 0..255 <-> x = (g - 128) / 256 in [-0.5, 0.49609375].

GREY_LEVELS = 256.0  # grey levels in one unit of x
MIDDLE = 128.0       # the grey level of x = 0
BLACK, WHITE = -0.5, 0.49609375

CHECKED_FACES = 2000  # whose pixels tell one database from another
READ_AT_ONCE = 1024  # faces; reading one makes up to 64 kB of its file resident


def to_float(grey):
    """Grey levels 0..255, any shape, to float32 in [-0.5, 0.49609375], the course's scale."""
    return (np.asarray(grey).astype(np.float32) - MIDDLE) / GREY_LEVELS


def to_grey(x):
    """The course's scale, any shape, to uint8: rounded to the nearest grey level, clipped to 0..255."""
    return np.clip(np.rint(np.asarray(x, np.float32) * GREY_LEVELS + MIDDLE), 0, 255).astype(np.uint8)


class FaceArray:
    """[N, 2304] faces that stay uint8, on disk or in memory, and read as float32 in the course's scale.

    Indexing converts what is indexed and nothing else; any other use as an array converts all faces.

    parts  list of uint8 arrays [n_i, 2304]; their rows, in order, are numbered 0 .. sum(n_i) - 1
    rows   which of them this array holds, in order; all of them by default
    """
    dtype = np.dtype(np.float32)
    ndim = 2
    __hash__ = None  # as NumPy's arrays

    def __init__(self, parts, rows=None):
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])
        self.rows = np.arange(self.starts[-1]) if rows is None else np.asarray(rows)

    def __len__(self):
        return len(self.rows)

    def __repr__(self):
        return f"<FaceArray of {len(self)} faces, [{len(self)}, {DIM}] float32 in the course's scale>"

    @property
    def shape(self):
        return len(self.rows), DIM

    def grey(self, index=slice(None)):
        """The uint8 faces at `index` (a slice, or an array of row numbers or booleans): [n, 2304]."""
        rows = self.rows[index]
        grey = np.empty((len(rows), DIM), np.uint8)
        for first in range(0, len(rows), READ_AT_ONCE):
            some = slice(first, first + READ_AT_ONCE)
            part_of = np.searchsorted(self.starts, rows[some], side="right") - 1
            for number in np.unique(part_of):
                mine = part_of == number
                grey[some][mine] = self.parts[number][rows[some][mine] - self.starts[number]]
                give_back(self.parts[number])
        return grey

    def __getitem__(self, key):
        rows, columns = key if isinstance(key, tuple) and len(key) == 2 else (key, slice(None))
        if isinstance(rows, (int, np.integer)):
            return to_float(self.grey([rows])[0])[columns]
        vector = isinstance(rows, slice) or isinstance(rows, (list, np.ndarray)) and np.ndim(rows) == 1
        if vector and isinstance(columns, (int, slice)):
            return to_float(self.grey(rows))[:, columns]
        return np.asarray(self)[key]

    def __array__(self, dtype=None, copy=None):
        return to_float(self.grey()).astype(dtype or np.float32, copy=False)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        def loaded(values):
            return [np.asarray(value) if isinstance(value, FaceArray) else value for value in values]

        if "out" in kwargs:  # data -= mean: what was read from the file becomes an array of its own
            kwargs["out"] = tuple(loaded(kwargs["out"]))
        return getattr(ufunc, method)(*loaded(inputs), **kwargs)

    def __getattr__(self, name):
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(np.asarray(self), name)


for _name, _operator in vars(np.lib.mixins.NDArrayOperatorsMixin).items():
    if callable(_operator):  # an operator of NumPy's own arrays, which leave a tf.Variable its part of the work
        setattr(FaceArray, _name, lambda faces, *others, _name=_name: getattr(np.asarray(faces), _name)(*others))


def give_back(mapped):
    """Let go of the memory that pages of a file take which were read through a numpy.memmap; the system's cache keeps
    them. On Windows, and for an array in memory, nothing happens."""
    if getattr(mapped, "_mmap", None) is not None and hasattr(mmap, "MADV_DONTNEED"):  # a copy has none
        mapped._mmap.madvise(mmap.MADV_DONTNEED)


class DataSet:
    """A database of faces with its labels, as the course's scripts use it.

    filename_data    path of data_<name>.bin
    filename_gender  path of gender_<name>.bin
    nbdata           how many faces to use, from the first; all of them by default
    batchSize        faces a batch

    Attributes nbdata, dim (2304), data (FaceArray, reads as [nbdata, 2304] float32), label ([nbdata, 2] float32
    one-hot), batchSize, curPos (where in the epoch the next batch begins), seed (0; the order of the faces depends on
    seed and epoch alone), group (None, or [nbdata] numbers of groups to draw equally often), traits (None, or
    [nbdata, 10] float32, the codes of TRAITS side by side). The faces stay on disk until they are asked for.

    Raises DataError for a file that is missing, truncated, not one-hot or of another count than the other.
    """

    def __init__(self, filename_data, filename_gender, nbdata=None, batchSize=128):
        faces, label = read_faces(filename_data), read_labels(filename_gender)
        if len(faces) != len(label):
            raise DataError(f"{filename_gender}: {len(label)} labels, but {filename_data} holds {len(faces)} faces; "
                            "expected one label a face")
        if nbdata is not None and not 1 <= nbdata <= len(faces):
            raise DataError(f"{filename_data}: {nbdata} faces asked for, it holds {len(faces)}")
        if batchSize < 1:
            raise DataError(f"batchSize {batchSize}: expected 1 or more")
        self._hold(FaceArray([faces[:nbdata]]), label[:nbdata], batchSize)

    def _hold(self, data, label, batch_size, group=None, traits=None):
        self.data, self.label, self.batchSize, self.group, self.traits = data, label, batch_size, group, traits
        self.nbdata, self.dim = data.shape
        self.seed, self.epoch, self.curPos = 0, 0, 0
        self._order = None, None  # (seed, epoch), the order they give

    @classmethod
    def join(cls, datasets):
        """All faces of several DataSets as one, none of them loaded."""
        parts = [part for dataset in datasets for part in dataset.data.parts]
        offsets = np.cumsum([0, *(dataset.data.starts[-1] for dataset in datasets)])
        rows = np.concatenate([offset + dataset.data.rows for offset, dataset in zip(offsets, datasets)])
        group, traits = (None if any(each is None for each in arrays) else np.concatenate(arrays)
                         for arrays in zip(*((dataset.group, dataset.traits) for dataset in datasets)))
        joined = cls.__new__(cls)
        joined._hold(FaceArray(parts, rows), np.concatenate([d.label for d in datasets]), datasets[0].batchSize,
                     group, traits)
        return joined

    def subset(self, rows):
        """The faces at `rows` (an array of row numbers), in that order, as a DataSet."""
        subset = type(self).__new__(type(self))
        subset._hold(FaceArray(self.data.parts, self.data.rows[rows]), self.label[rows], self.batchSize,
                     *(None if each is None else each[rows] for each in (self.group, self.traits)))
        return subset

    def order(self, epoch):
        """The order of the faces in an epoch, which (seed, epoch) determine: a permutation of 0 .. nbdata - 1.

        Where `group` is given, nbdata draws instead, from each group equally often.
        """
        generator = np.random.default_rng([self.seed, epoch])
        if self.group is None:
            return generator.permutation(self.nbdata)
        _, member, count = np.unique(self.group, return_inverse=True, return_counts=True)
        return generator.choice(self.nbdata, self.nbdata, p=1.0 / (count[member] * len(count)))

    def NextTrainingBatch(self):
        """The next batch: [n, 2304] float32 faces and [n, 2] float32 labels.

        An epoch shows every face exactly once; its last batch holds what remains, n <= batchSize.
        """
        if self.curPos >= self.nbdata:
            self.curPos, self.epoch = 0, self.epoch + 1
        if self._order[0] != (self.seed, self.epoch):
            self._order = (self.seed, self.epoch), self.order(self.epoch)
        rows = self._order[1][self.curPos:self.curPos + self.batchSize]
        self.curPos += len(rows)
        return self.data[rows], self.label[rows]

    def logits(self, model):
        """What `model` says of all faces, a batch at a time: [nbdata, 2] float32. Raises DataError for any other shape.

        model  called as model(x), model(x, False) or model(x, False, False), as its signature asks
        """
        flags = [False] * (len(_required_parameters(model)) - 1)
        batches = (slice(start, min(start + self.batchSize, self.nbdata))
                   for start in range(0, self.nbdata, self.batchSize))
        logits = np.concatenate([np.asarray(model(self.data[batch], *flags), np.float32) for batch in batches])
        if logits.shape != (self.nbdata, 2):
            raise DataError(f"the net answers {list(logits.shape)} about {self.nbdata} faces; expected two numbers a "
                            "face, one for man and one for woman")
        return logits

    def answers(self, model):
        """The label that `model` (called as `logits` does) says of each face: [nbdata] int, 0 man, 1 woman.

        Raises UserError where it answers with no number.
        """
        return finite(self.logits(model)).argmax(1)

    def checksum(self):
        """What tells these faces from others, wherever they lie: of all labels and the first faces."""
        return zlib.crc32(self.label.tobytes() + self.data.grey(slice(CHECKED_FACES)).tobytes())

    def mean_accuracy(self, model):
        """The share of all faces, in [0, 1], that `model` (called as `logits` does) labels as annotated."""
        return float(np.mean(self.logits(model).argmax(1) == self.label[:self.nbdata].argmax(1)))


def finite(logits):
    """Logits [N, 2] as they are; UserError where a net answers with no number."""
    if not np.isfinite(logits).all():
        raise UserError("the net answers with no number: its training diverged; choose another --checkpoint")
    return logits


def _required_parameters(model):
    parameters = inspect.signature(model).parameters.values()
    return [p for p in parameters
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def file_size(path):
    """The size of a file in bytes. Raises DataError where there is none to read."""
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file")
    if not os.path.isfile(path):
        raise DataError(f"{path}: not a file")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: may not be read; check its permissions")
    return os.path.getsize(path)


def read_faces(path):
    """The faces of a data_*.bin, [N, 2304] uint8, mapped into memory, not read."""
    size = file_size(path)
    if size == 0:
        raise DataError(f"{path}: empty; expected 48x48 faces of {DIM} bytes each")
    if size % DIM:
        raise DataError(f"{path}: {size} bytes is not a whole number of 48x48 faces ({DIM} bytes each); "
                        "the file is truncated or no face database")
    return np.memmap(path, np.uint8, "r").reshape(-1, DIM)


def read_labels(path):
    """The labels of a gender_*.bin, [N, 2] float32, every row (1, 0) for a man or (0, 1) for a woman."""
    size = file_size(path)
    if size == 0:
        raise DataError(f"{path}: empty; expected two float32 a face")
    if size % 8:
        raise DataError(f"{path}: {size} bytes is not a whole number of labels (two float32, 8 bytes each)")
    label = np.fromfile(path, "<f4").reshape(-1, 2).astype(np.float32, copy=False)
    wrong = ~((label == (1, 0)).all(1) | (label == (0, 1)).all(1))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{path}: label {row} is ({label[row, 0]:g}, {label[row, 1]:g}); "
                        "expected one-hot float32: (1, 0) for man, (0, 1) for woman")
    return label


def database_files(name, folder=DATABASES):
    """The data_, gender_ and meta_ files of a database.

    name  a path of a data_<name>.bin, or a name: `10k` means data_10k.bin in `folder`
    """
    path = Path(name)
    if path.suffix != ".bin" and path.name == str(name):
        path = Path(folder) / f"data_{name}.bin"
    if not (path.name.startswith("data_") and path.suffix == ".bin"):
        raise DataError(f"{name}: expected a name such as 10k, or a file called data_<name>.bin")
    stem = path.stem.removeprefix("data_")
    return path, path.with_name(f"gender_{stem}.bin"), path.with_name(f"meta_{stem}.csv")


def open_database(name, batchSize=128, nbdata=None):
    """The DataSet of a name or of a path of a data_<name>.bin; of its first `nbdata` faces, all by default."""
    data, gender, _ = database_files(name)
    if not data.exists() and str(data) != str(name):
        raise DataError(f"{data}: no such file; expected the path of a data_<name>.bin, or the name of one in "
                        f"{DATABASES} (python -m DataBases.synthesise 10k makes one)")
    return DataSet(data, gender, nbdata, batchSize)


def open_databases(names):
    """{name: DataSet} of several databases, each once, however often and in whatever spelling it is named."""
    once = {database_files(name)[0].resolve(): name for name in names}
    return {name: open_database(name) for name in once.values()}


def set_apart(databases, measured=None):
    """Leave out the faces that are measured, and those that an earlier database holds already (`10k` begins with `1k`).

    databases  {name: DataSet}, as open_databases gives them;  measured  DataSet, or None
    returns    ({name: DataSet} of those with faces left, {name: how many were left out} of those without some)

    A face that one database alone holds several times stays as it is.
    """
    seen, kept, left_out = set(_contents(measured) if measured else ()), {}, {}
    for name, dataset in databases.items():
        contents = _contents(dataset)
        rows = [row for row, content in enumerate(contents) if content not in seen]
        seen.update(contents)
        if rows:
            kept[name] = dataset.subset(np.array(rows))
        if len(rows) < dataset.nbdata:
            left_out[name] = dataset.nbdata - len(rows)
    return kept, left_out


def _contents(dataset):
    """What tells faces apart: a number for each."""
    parts = (dataset.data.grey(slice(first, first + READ_AT_ONCE)) for first in range(0, dataset.nbdata, READ_AT_ONCE))
    return [hash(face.tobytes()) for part in parts for face in part]


def default_databases(folder=DATABASES):
    """The largest training database in `folder` and the largest whose name begins with `test`, as paths or None."""
    paths = sorted(filter(Path.is_file, Path(folder).glob("data_*.bin")),
                   key=lambda path: (path.stat().st_size, path.name))
    tests = [path for path in paths if path.name.startswith("data_test")]
    trainings = [path for path in paths if path not in tests]
    return (trainings[-1] if trainings else None), (tests[-1] if tests else None)


def read_groups(path, nbdata):
    """Which faces belong to which group, from a meta_*.csv: {title: {group: [nbdata] bool}}, faces in file order.

    Titles are "age" (bands of years, and "16+") and "ethnicity"; where a value is empty the face is in no group.
    """
    file_size(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # Excel begins a file with a mark
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a text file with the columns age,ethnicity ({error})") from None
    if len(rows) != nbdata or not rows or not {"age", "ethnicity"} <= rows[0].keys():
        raise DataError(f"{path}: expected the columns age,ethnicity and {nbdata} lines, found {len(rows)} lines"
                        f"{' of ' + ','.join(map(str, rows[0])) if rows else ''}")
    try:
        age, ethnicity = (np.array([float(row[column] or "nan") for row in rows]) for column in ("age", "ethnicity"))
    except ValueError as error:
        raise DataError(f"{path}: ages and ethnicities are numbers, or empty; {error}") from None
    wrong = (age < 0) | ~(np.isnan(ethnicity) | np.isin(ethnicity, range(len(ETHNICITIES))))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{path}: face {row} has age {age[row]:g} and ethnicity {ethnicity[row]:g}; expected years, "
                        f"and 0 to {len(ETHNICITIES) - 1} ({', '.join(ETHNICITIES)}), empty where unknown")
    age = np.floor(age)
    ages = {f"{low}-{high}": (age >= low) & (age <= high) for low, high in AGE_BANDS[:-1]}
    ages[f"{AGE_BANDS[-1][0]}+"] = age >= AGE_BANDS[-1][0]
    ages["16+"] = age >= 16
    return {"age": ages, "ethnicity": {name: ethnicity == code for code, name in enumerate(ETHNICITIES)}}


def balance_groups(databases, balance):
    """Set DataSet.group, the number of each face's group, of databases that are learned together.

    databases  {name: DataSet}, as open_databases gives them
    balance    "sex", or "age" or "ethnicity": sex together with the groups of the meta_*.csv; faces of which none says
               anything are a group of their own

    Raises DataError where age or ethnicity is asked for and there is no meta_*.csv that says anything.
    """
    groups = {} if balance == "sex" else _known_groups(databases, f"--balance {balance}", "choose --balance sex")
    for name, dataset in databases.items():
        members = _bands(groups[name][balance]) if name in groups else []
        dataset.group = dataset.label.argmax(1) + 2 * sum(number * member for number, member in enumerate(members, 1))


def read_traits(databases):
    """Set DataSet.traits, age band and ethnicity of each face as one-hot codes, of databases learned together.

    databases  {name: DataSet}, as open_databases gives them; where the meta_*.csv does not say, a code is zeros

    Raises DataError where there is no meta_*.csv at all, or none that says anything.
    """
    groups = _known_groups(databases, "--traits", "leave the option out")
    for name, dataset in databases.items():
        dataset.traits = np.zeros((dataset.nbdata, sum(TRAITS.values())), np.float32)
        if name in groups:
            dataset.traits[:] = np.stack([member for title in TRAITS for member in _bands(groups[name][title])], 1)


def _known_groups(databases, option, instead):
    """What read_groups says of those databases that have a meta_*.csv, by name; DataError where none tells anything."""
    metas = {name: database_files(name)[2] for name in databases}
    groups = {name: read_groups(meta, databases[name].nbdata) for name, meta in metas.items() if meta.exists()}
    if not any(member.any() for titles in groups.values() for title in titles.values() for member in title.values()):
        raise DataError(f"{option}: {next(iter(metas.values()))} is missing, or empty; expected a line age,ethnicity "
                        f"of each face there, or {instead}")
    return groups


def _bands(groups):
    """The groups of a title that exclude each other."""
    return [member for name, member in groups.items() if name != "16+"]


def read_face(path):
    """A picture file as one face: ([48, 48] uint8, note).

    A .raw file is 2304 bytes. Any other picture is taken as `middle_square` says; DataBases/photo.py looks for faces.

    Raises DataError for what is no picture, or too small to hold a face.
    """
    if Path(path).suffix.lower() != ".raw":
        return middle_square(read_picture(path))
    size = file_size(path)
    if size != DIM:
        raise DataError(f"{path}: {size} bytes; a .raw face is {SIDE}x{SIDE} pixels, {DIM} bytes, no header")
    return np.fromfile(path, np.uint8).reshape(SIDE, SIDE), ""


def read_picture(path):
    """A picture file as a PIL picture of mode RGB or L, 8 bit, upright; transparent pixels show white.

    Raises DataError for what is no picture, or too small to hold a face.
    """
    file_size(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            with Image.open(path) as opened:
                picture = _to_8_bit(ImageOps.exif_transpose(opened))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{path}: over {Image.MAX_IMAGE_PIXELS // 10**6} million pixels; reduce it first") from None
    except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
        raise DataError(f"{path}: not a picture that can be read (png, jpg, bmp, webp, ...): {error}") from None
    if min(picture.size) < SMALLEST_PICTURE:
        raise DataError(f"{path}: {picture.width}x{picture.height} pixels; "
                        f"a face needs at least {SMALLEST_PICTURE}x{SMALLEST_PICTURE}, best {SIDE}x{SIDE}")
    return picture


def _to_8_bit(picture):
    """A PIL picture of any mode as mode RGB, or L where it is grey of more than 8 bit."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, np.float64)
        scales = {1.0: 255.0} if picture.mode == "F" else {}
        scales |= {255.0: 1.0, 65535.0: 1.0 / 257.0}
        most = values.max(initial=0) / 1.05  # resampling overshoots
        fits = [scale for white, scale in scales.items() if most <= white]
        darker = fits and -fits[0] * values.min(initial=0) > 0.05 * 255
        if not fits or darker or not np.isfinite(values).all():
            raise ValueError("its grey levels are neither 0 to 1, nor 0 to 255, nor 0 to 65535")
        values = values * fits[0]
        if "transparency" in picture.info:
            values = np.where(np.asarray(picture) == picture.info["transparency"], 255, values)
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def middle_square(picture):
    """A PIL picture of mode RGB or L as one face: ([48, 48] uint8, note).

    Of a picture of another size than 48x48 the middle square is reduced to 48x48 and `note` says so; else it is empty.
    """
    grey = picture.convert("L")
    if grey.size == (SIDE, SIDE):
        return np.array(grey), ""
    face = ImageOps.fit(grey, (SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.array(face), f"{grey.width}x{grey.height} pixels: the middle square was brought to {SIDE}x{SIDE}"


def parse_label(text):
    """0 for man, 1 for woman; also male, female, homme, femme, 0, 1, in any case."""
    names = {"man": 0, "male": 0, "homme": 0, "0": 0, "woman": 1, "female": 1, "femme": 1, "1": 1}
    if text.lower() not in names:
        raise UserError(f"unknown label {text!r}; expected one of {', '.join(names)}")
    return names[text.lower()]


def to_png(picture):
    """The bytes of a PIL picture as PNG."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def make_folder(path):
    """Make a folder, and those it lies in, where there is none. Raises UserError where that is not possible."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: the folder cannot be written ({error.strerror}); choose another folder") from None


def part_of(path):
    """A name beside a file's for what is not whole yet: no other process's, on whatever machine or in a container."""
    return path.parent / f".{secrets.token_hex(8)}.part"


def write_whole(path, content):
    """Write bytes to a file that appears whole or not at all. Raises UserError where that is not possible."""
    write_all({path: content})


def write_all(contents):
    """Write files that belong together, {path: bytes}: each appears whole or not at all, none before all are written.
    Raises UserError where that is not possible."""
    parts = []
    try:
        try:
            for path in map(Path, contents):
                make_folder(path.parent)
                parts.append((part_of(path), path))
            for (part, path), content in zip(parts, contents.values()):
                part.write_bytes(content)
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            for part, path in parts:
                os.replace(part, path)
        finally:
            for part, _ in parts:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from None
