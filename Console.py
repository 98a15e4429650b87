"""What the entry scripts share: options, one-line errors, progress, windows, strips of faces.

An entry script imports this module first: TensorFlow, imported here, starts without its messages, and takes of a GPU's
memory what it needs.
"""
import argparse
import contextlib
import dataclasses
import errno
import io
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import types
import typing
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageShow

import Dataset


for _stream, _descriptor in ("stdout", 1), ("stderr", 2):
    if getattr(sys, _stream) is None:  # closed: what is said goes nowhere, and no file takes its number
        _nowhere = os.open(os.devnull, os.O_WRONLY)
        if _nowhere != _descriptor:
            os.dup2(_nowhere, _descriptor)
        setattr(sys, _stream, open(_descriptor, "w", encoding="utf-8", closefd=False))


@contextlib.contextmanager
def _without_stderr():
    """Nothing reaches the terminal's stderr inside, not even from TensorFlow's C++ side; exceptions still do."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_in_main = threading.current_thread() is threading.main_thread()  # in no other may signals be set
if _in_main:
    _interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the import ends without a traceback
with _without_stderr():
    import tensorflow as tf
    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # a program that imports this late has used its GPU already
            tf.config.experimental.set_memory_growth(gpu, True)
tf.get_logger().setLevel("ERROR")  # no advice about tracing: every attack is a function of its own
if _in_main:
    signal.signal(signal.SIGINT, _interrupt)

import Models


# Options

class _Parser(argparse.ArgumentParser):
    def error(self, message):
        first = " (before the options)" if "are required" in message and "--" not in message else ""
        raise Dataset.UserError(f"{message}{first}; see --help")


def _number(kind, low=-math.inf, high=math.inf, most=math.inf):
    """A parser of numbers in [low, high), none above `most`."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
        if kind is int and value >= 2**31:  # what TensorFlow counts with
            raise argparse.ArgumentTypeError(f"{text}: too large")
        if not (low <= value < high and value <= most):
            end = f"{most:g}]" if most < high else f"{high:g})"
            expected = f"{low:g} or more" if high == most == math.inf else f"a number in [{low:g}, {end}"
            raise argparse.ArgumentTypeError(f"{text}: expected {expected}")
        return value
    return parse


def parse(options, argv, description):
    """What the command line gives of the dataclass `options`, as a dict: only the options that it names.

    A field `name: Annotated[type, about] = default` becomes --name; `about` is a dict of help (text), choices,
    low and high (numbers in [low, high)) or most (in [low, most]), nargs, positional (True), flag (instead of --name).
    A type `kind | None` is parsed as kind, a tuple[kind, ...] with nargs as a list of it, which is added to where the
    option stands again.
    """
    parser = _Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    hints, positional = typing.get_type_hints(options, include_extras=True), set()
    for field in dataclasses.fields(options):
        kind, about = typing.get_args(hints[field.name])
        about = dict(about)
        if isinstance(kind, types.UnionType):
            kind = typing.get_args(kind)[0]
        if typing.get_origin(kind) is tuple:
            kind = typing.get_args(kind)[0]
        limits = {bound: about.pop(bound) for bound in ("low", "high", "most") if bound in about}
        if kind in (int, float):
            about |= {"type": _number(kind, **limits), "metavar": "N" if kind is int else "X"}
        elif kind is bool:
            about["action"] = argparse.BooleanOptionalAction
        elif "nargs" in about and not about.get("positional"):
            about["action"] = "extend"  # --train A B is --train A --train B
        if field.default not in (None, (), "", dataclasses.MISSING) and kind is not bool:
            default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
            about["help"] += f" (default: {default.replace('%', '%%')})"
        if about.pop("positional", False):
            parser.add_argument(field.name, **about)
            positional.add(field.name)
        else:
            flag = about.pop("flag", f"--{field.name.replace('_', '-')}")
            parser.add_argument(flag, dest=field.name, **about)
    given = vars(parser.parse_args(argv))
    for name in given.keys() - positional:
        for value in given[name] if isinstance(given[name], list) else [given[name]]:
            if isinstance(value, str):
                must_be_text(value)
    return given


def flag(name):
    """The option of a field of an options' dataclass."""
    return "--from" if name == "start" else f"--{name.replace('_', '-')}"


def quoted(word):
    """A word of a command, as the shell of this system reads it."""
    return subprocess.list2cmdline([str(word)]) if os.name == "nt" else shlex.quote(str(word))


def must_stand_together(given, needs):
    """Raise UserError for an option among `given` that does nothing without another: {its name: the other's}."""
    for name, needed in needs.items():
        if name in given and not given.get(needed):
            raise Dataset.UserError(f"{flag(name)} does nothing without {flag(needed)}; add that, or leave it out")


def must_be_text(name):
    """Raise UserError for the name of a file that TensorFlow cannot open."""
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise Dataset.UserError(f"{ascii(name)}: TensorFlow opens no file whose name is not UTF-8; choose another name")


def must_keep(read, written, options):
    """Raise UserError for a file that is read and would be written over; `options` would choose others."""
    for path, target in itertools.product(read, written):
        if os.path.exists(path) and os.path.exists(target) and os.path.samefile(path, target):
            raise Dataset.UserError(f"{path}: would be written over by the picture {target}; choose another {options}")


def parse_kernel(text):
    """A kernel's width of `5`, its [height, width] of `3x1`. Raises UserError for any other text."""
    numbers = text.split("x")
    if len(numbers) > 2 or not all(number.isdecimal() and 0 < int(number) <= Dataset.SIDE for number in numbers):
        raise Dataset.UserError(f"--filter-size {text}: expected a width such as 3, or height x width such as 3x1")
    return [int(number) for number in numbers] if len(numbers) == 2 else int(numbers[0])


def parse_box(text):
    """Four whole numbers of a text such as 12,12,24,24. Raises UserError for any other."""
    try:
        x, y, width, height = map(int, text.split(","))
    except ValueError:
        raise Dataset.UserError(f"--box {text}: expected X,Y,W,H, four whole numbers such as 12,12,24,24") from None
    return x, y, width, height


FULL = "the disk is full; make room, or choose another folder"
NO_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, *NO_ROOM, errno.ENAMETOOLONG, errno.ELOOP}  # of the system


def run(main, argv=None):
    """Run an entry script's `main(argv)`: its exit code; a user's mistake is one line on stderr and exit code 2."""
    script = Path(sys.argv[0]).name
    if isinstance(sys.stdout, io.TextIOWrapper):  # in a notebook it is none
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    try:
        with _saving_when_ended():
            code = main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # here, where a full disk is a line on stderr
        return code
    except Dataset.UserError as error:
        print(f"{script}: {' '.join(str(error).splitlines())}", file=sys.stderr)
    except tf.errors.ResourceExhaustedError as error:
        if any(os.strerror(number) in str(error) for number in NO_ROOM):
            print(f"{script}: {FULL}", file=sys.stderr)
        else:
            print(f"{script}: out of memory; choose a smaller --batch-size or a smaller net", file=sys.stderr)
    except tf.errors.PermissionDeniedError as error:
        print(f"{script}: {error.message}; choose another folder", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` closed the pipe
        _drop_stdout()
        return 141
    except OSError as error:
        if error.filename is not None and error.errno in REFUSALS:
            print(f"{script}: {error.filename}: {error.strerror}; choose another path", file=sys.stderr)
        elif error.errno in NO_ROOM:
            _drop_stdout()
            print(f"{script}: {FULL}", file=sys.stderr)
        else:
            raise
    return 2


@contextlib.contextmanager
def _saving_when_ended():
    """A batch system's end, or the terminal's, is Ctrl-C inside; what is ignored, as nohup does, stays ignored."""
    def end(_, frame):
        interrupt = signal.getsignal(signal.SIGINT)  # what trains has its own; in the background it may be ignored
        (interrupt if callable(interrupt) else signal.default_int_handler)(signal.SIGINT, frame)
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    taken = [number for number in numbers if threading.current_thread() is threading.main_thread()
             and signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _drop_stdout():
    """What is still to be written there goes nowhere, so that the interpreter's end does not fail on it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_last(folder):
    """Whether a folder is the last/ that a training keeps in its own, to be resumed from."""
    return folder.name == "last" and (folder.parent / Models.DESCRIPTION).is_file()


def is_of_main(folder):
    """Whether what trains in a folder is Main.py, whose options its network.json holds."""
    return '"training":' in (folder / Models.DESCRIPTION).read_text(encoding="utf-8", errors="replace")


def newest_training():
    """The folder under checkpoints/ whose training by Main.py saved last what it can be resumed from."""
    begun = [folder for folder in Path("checkpoints").rglob("last")
             if is_last(folder) and any(folder.glob("*.index")) and is_of_main(folder)]
    if not begun:
        raise Dataset.UserError("no training under checkpoints/ to go on with; name its folder with --out")
    return max(begun, key=lambda folder: folder.stat().st_mtime).parent


def logs_of(out, logs, resume):
    """The folder in `logs` of a training whose checkpoint is in `out`: the one that it began with, where it goes on,
    else one that holds no other training's."""
    if resume:
        began = json.loads((out / "last" / Models.DESCRIPTION).read_text(encoding="utf-8"))
        if "logs" in began or began["training"]["logs"] != "none":
            return Path(logs) / began.get("logs", out.name)  # earlier versions did not note it
    return next(folder for folder in _numbered(Path(logs) / out.resolve().name) if not folder.exists())


def _numbered(folder):
    """A folder, then the same with the numbers 2, 3, ... at its name's end."""
    yield folder
    for number in itertools.count(2):
        yield folder.with_name(f"{folder.name}-{number}")


def claim(folder):
    """Make a folder for TensorFlow to write to, with a number at its name's end where that one exists: its path."""
    must_be_text(str(folder))
    Dataset.make_folder(folder.parent)
    for claimed in _numbered(folder):
        try:
            claimed.mkdir()
            return claimed
        except FileExistsError:
            pass


def _written(path):
    """When a file was written last; 0 where a training has meanwhile replaced it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def default_checkpoint():
    """The best checkpoint of the newest training under checkpoints/, else pretrained/."""
    trained = [Path(folder, name) for folder, _, names in os.walk("checkpoints") for name in names
               if name.endswith(".index") and not folder.endswith("_temp") and not is_last(Path(folder))]
    if trained:
        return max(trained, key=_written)
    pretrained = Path(__file__).resolve().parent / "pretrained"
    if not pretrained.is_dir():
        raise Dataset.UserError("nothing learned yet: there is no checkpoint under checkpoints/; "
                                "learn with python Main.py, or name one with --checkpoint")
    return pretrained


def trained_with(checkpoint):
    """The options of Main.py that the net of a checkpoint was trained with, as its network.json tells; else {}."""
    description = Path(Models.find_checkpoint(checkpoint)).with_name(Models.DESCRIPTION)
    content = json.loads(description.read_text(encoding="utf-8")) if description.is_file() else {}
    shipped = {"train": content["learned_from"], "validation": 0.05, "seed": 0} if "learned_from" in content else {}
    return content.get("training", shipped)


def tell_known(checkpoint, train, validation, seed):
    """Say on stderr where a net may know faces that validate: the split hangs on the faces, the share and the seed."""
    def bases(names):
        return [Dataset.database_files(name)[0].name for name in names]
    before = trained_with(checkpoint)
    if before and (bases(before.get("train", ())), before.get("validation"), before.get("seed")) != (
            bases(train), validation, seed):
        print(f"{checkpoint} was trained with another --train, --validation or --seed: it may know faces that validate "
              "here, and validation figures then flatter", file=sys.stderr)


# Progress

def duration(seconds):
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _columns():
    """How wide the terminal is that stderr is; shutil would ask about stdout, which may be a file."""
    try:
        return int(os.environ.get("COLUMNS", 0)) or os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (ValueError, OSError):
        return 80


class Progress:
    """A bar with rate and remaining time on a terminal; in a log a line every minute, and those of `line`.

    `with progress:` clears the bar at the end, also where an error ends the work.

    total  units of work in all;  done  units that an earlier run did
    unit   what is counted, e.g. "images";  scale  how many of them are one unit of work
    """

    def __init__(self, total, done=0, unit="steps", scale=1):
        self.total, self.first, self.unit, self.scale = total, done, unit, scale
        self.start = time.monotonic()
        self.live = sys.stderr.isatty()
        if self.live and os.name == "nt":
            os.system("")  # from here on the console understands how a line is cleared
        self.drawn = 0.0 if self.live else self.start

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.clear()

    def rate(self, done):
        """Units a second since the start."""
        return self.scale * (done - self.first) / max(time.monotonic() - self.start, 1e-9)

    def _speed(self, done):
        """The rate as text, a minute's or an hour's where less than one is done in a second."""
        rate = self.rate(done)
        for period, seconds in ("s", 1), ("min", 60), ("h", 3600):
            if not rate or rate * seconds >= 1.0:
                break
        return f"{rate * seconds:.0f} {self.unit}/{period}"

    def left(self, done):
        """The remaining time as text; "-" before anything was done."""
        return duration(self.scale * (self.total - done) / self.rate(done)) if done > self.first else "-"

    def update(self, done, text=""):
        """Draw the bar, at most ten times a second; in a log write how far it is, once a minute."""
        now = time.monotonic()
        if now - self.drawn < (0.1 if self.live else 60.0) and not (self.live and done == self.total):
            return
        self.drawn = now
        tail = f" {int(100 * done / self.total):3d} %  {self._speed(done)}  {self.left(done)} left  {text}"
        if not self.live:
            print(tail.strip(), file=sys.stderr, flush=True)
            return
        columns = _columns()
        width = columns - 3 - len(tail)
        full = int(max(width, 0) * done / self.total)
        bar = f"[{'#' * full}{'.' * (width - full)}]" if width > 0 else ""
        sys.stderr.write(f"\r{(bar + tail)[:columns - 1]}\x1b[K")
        sys.stderr.flush()

    def clear(self):
        if self.live and self.drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def line(self, text, file=None):
        """Print a line, on stdout or what is given, above the bar."""
        self.clear()
        print(text, file=file, flush=True)


def tell_left_out(left_out, holders):
    """Say on stderr which faces Dataset.set_apart left out ({database: how many}), and what else holds them."""
    for name, count in left_out.items():
        print(f"{name}: {count:,} faces left out, which {holders}", file=sys.stderr)


def watched(losses, total):
    """The pairs (rate, loss) of `losses`, of at most `total` steps, with progress."""
    progress = Progress(total)
    with progress:
        for done, (rate, loss) in enumerate(losses, 1):
            progress.update(done, f"loss {loss:.3f}")
            yield rate, loss


def work(parts):
    """Run a Robustness.Parts to its end, with progress."""
    progress = Progress(parts.total, parts.done, "faces")
    with progress:
        for done, text in parts.run():
            progress.update(done, text)


def learn(trainer, text):
    """Run a Training.Trainer to its end, with progress, and a text beside the bar."""
    progress = Progress(trainer.total, int(trainer.step))
    with progress:
        for row in trainer.run():
            progress.update(row["step"], text)


# Answers

class Committee:
    """Several nets asked as one: the mean of their log-probabilities, over several views of each face.

    views  any of "flip" (and the mirror image) and "crops" (and its four corners of 46x46 pixels, enlarged)
    """

    def __init__(self, nets, views=()):
        self.nets, self.views = nets, views

    def __call__(self, x, log_summary=False, training=False):
        faces = [tf.reshape(x, [-1, Dataset.SIDE, Dataset.SIDE, 1])]
        if "flip" in self.views:
            faces += [face[:, :, ::-1] for face in faces]
        if "crops" in self.views:
            faces += [tf.cast(tf.image.resize(face[:, top:top + 46, left:left + 46], face.shape[1:3]), x.dtype)
                      for face in faces for top in (0, 2) for left in (0, 2)]
        faces = [tf.reshape(face, [-1, Dataset.DIM]) for face in faces]
        return tf.reduce_mean([tf.nn.log_softmax(net(face)) for net in self.nets for face in faces], 0)


def ask(net, face):
    """What a net says of one face ([48, 48] or [2304] uint8): {"label", "probability", "logits"}."""
    logits = Dataset.finite(net(tf.constant(Dataset.to_float(face).reshape(1, -1))))
    label, probability = int(tf.argmax(logits, axis=1)[0]), tf.nn.softmax(logits)[0].numpy()
    return {"label": Dataset.LABELS[label], "probability": float(probability[label]),
            "logits": logits[0].numpy().tolist()}


def verdict(answer):
    """`woman 97.3 %` of a dict with label and probability."""
    return f"{answer['label']} {100 * answer['probability']:.1f} %"


# Pictures

def strip(faces, captions, columns=6):
    """Faces side by side, four times enlarged, a caption under each: a PIL picture.

    faces     list of [48, 48] uint8, or of PIL pictures of at most 192x192 pixels, which are not enlarged
    captions  list of str;  columns  faces a row
    """
    side, foot, gap = 4 * Dataset.SIDE, 24, 8
    columns = min(columns, len(faces))
    rows = math.ceil(len(faces) / columns)
    sheet = Image.new("L", (columns * (side + gap) + gap, rows * (side + foot + gap) + gap), 255)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (face, caption) in enumerate(zip(faces, captions)):
        left = gap + number % columns * (side + gap)
        top = gap + number // columns * (side + foot + gap)
        if not isinstance(face, Image.Image):
            face = Image.fromarray(np.asarray(face, np.uint8).reshape(Dataset.SIDE, Dataset.SIDE))
            face = face.resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(face, (left + (side - face.width) // 2, top + (side - face.height) // 2))
        while font.getlength(caption) > side and len(caption) > 4:
            caption = caption[:-4] + "..."
        draw.text((left + side / 2, top + side + foot / 2), caption, fill=0, font=font, anchor="mm")
    return sheet


def present(sheet, path, show):
    """Save a picture as PNG and open it in a window where there is a display: the line that says which.

    sheet  PIL picture;  path  of the PNG;  show  False never opens a window
    """
    Dataset.write_whole(path, Dataset.to_png(sheet))
    display = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if show and display and ImageShow.show(sheet, title=str(path)):
        return f"picture shown, and saved as {path}"
    return f"picture saved as {path}"
