"""Which trainings a grid of meta-parameters asks for, run one by one or side by side, and remembered.

The engine is Optuna (Akiba et al. 2019): a trial is one training by Main.py, in a process of its own, so that one that
is too big for the memory ends alone. The state lies in a file or a database that several machines may share.
"""
import concurrent.futures
import contextlib
import datetime
import errno
import itertools
import json
import os
import platform
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

import Dataset
import Training

MAIN = Path(__file__).resolve().parent / "Main.py"
RESULT = "result.json"
LOCK = "running"
PLACE = "place"  # where a trial is trained: host, folder, and what no other trial has
HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}  # what the system says of a lock that another process has
HELD_SECONDS = 10.0  # until cells that other searches train are looked at again
LONGEST_NAME = 255  # bytes that a folder's name may have
START_SECONDS = 20.0  # a training that was asked for has its process by then
NOT_LEARNED = 0.05  # a net that is not this much better than always giving the larger class's answer has not learned
TOO_BIG = (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV) if fcntl else ()  # what ends it without memory


def _lock(folder):
    """The open lock file of a training's folder; None where a process holds it. It is let go when that process ends.
    Raises UserError where the disk has no locks."""
    file = open(folder / LOCK, "a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in HELD:
            raise Dataset.UserError(f"{folder / LOCK}: cannot be locked ({error.strerror}); choose an --out on a disk "
                                    "whose files can") from None
        return None
    return file


def _key(parameters):
    """What stands for a cell in sets."""
    return json.dumps(parameters, sort_keys=True)


def arguments(options, parameters):
    """What Main.py is given for one training; a parameter that is None is left to its default."""
    given = ["--net", options.net, "--epochs", str(options.epochs), "--seed", str(options.seed)]
    given += ["--train", *options.train] if options.train else []
    given += ["--test", options.test] if options.test else []
    for name, value in parameters.items():
        flag = name.replace("_", "-")
        if value is not None:
            given += {"yes": [f"--{flag}"], "no": [f"--no-{flag}"]}.get(value, [f"--{flag}", str(value)])
    return given


class Sweep:
    """The trainings of one net over one grid.

    options  net, train, test, epochs, seed, search, trials, processes, out, storage, logs: as Main_meta.py's options
    grid     {option of Main.py: list of values}
    """

    def __init__(self, options, grid):
        if not fcntl:
            raise Dataset.UserError("a sweep's processes share their work as Linux and macOS do; on Windows, use WSL")
        try:
            import optuna
        except ImportError:
            raise Dataset.UserError('a sweep needs Optuna: pip install ".[sweep]"') from None
        self.options, self.grid, self.states = options, grid, optuna.trial.TrialState
        self.distributions = {name: optuna.distributions.CategoricalDistribution(values)
                              for name, values in grid.items()}
        self.cells = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
        every = len(self.cells) if options.search == "grid" else 20
        self.total = min(options.trials or every, len(self.cells))
        self.databases = [[Dataset.open_database(name).checksum() for name in names]
                          for names in (options.train, filter(None, [options.test]))]
        self.lock, self.children, self.stopped = threading.Lock(), set(), threading.Event()
        self.held = set()  # keys of cells that other searches were found to train
        Dataset.make_folder(options.out)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler if options.search == "tpe" else optuna.samplers.RandomSampler
        for attempt in range(3):
            try:
                storage = options.storage or optuna.storages.JournalStorage(
                    optuna.storages.journal.JournalFileBackend(f"{options.out}/journal.log"))
                self.study = optuna.create_study(
                    storage=storage, study_name=self._name(grid | {"search": options.search}), direction="maximize",
                    load_if_exists=True, sampler=sampler(seed=options.seed))
                break
            except Exception as error:  # of whatever database it is
                if attempt == 2:
                    raise Dataset.UserError(f"{options.storage or options.out}: no state can be kept there "
                                            f"({error!r:.90}); choose another --out or --storage") from None
                time.sleep(1.0)  # another process may be making its tables

    def results(self):
        """The trainings of this grid that ended: dicts of parameters, accuracy (None: too big for the memory; else of
        the test base, or validation where there is none), validation_accuracy, learned."""
        told = self._told()
        found = [(cell, self._known(cell, told)) for cell in self.cells]
        return [{"parameters": cell} | result for cell, result in found if result]

    def done(self):
        """How many of the `total` trainings ended; a grid counts those that another sweep ran too."""
        ended = self.results() if self.options.search == "grid" else self._trials("COMPLETE")
        return min(len(ended), self.total)

    def run(self):
        """Train what is missing; yields (trainings done, a line about the one that ended). Ctrl-C saves them all."""
        self._take_back()
        if self.options.search == "grid":
            asked, told = self._asked("RUNNING", "WAITING"), self._told()
            for cell in self.cells[:self.total]:
                if _key(cell) not in asked and not self._known(cell, told):
                    self.study.enqueue_trial(cell)
        with concurrent.futures.ThreadPoolExecutor(self.options.processes) as pool:
            running = {pool.submit(self._next) for _ in range(self.options.processes)}
            try:
                while running:
                    ended, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                    for line in filter(None, (future.result() for future in ended)):
                        yield self.done(), line
                        running.add(pool.submit(self._next))
            finally:
                self.stopped.set()
                for child in list(self.children):
                    child.send_signal(signal.SIGINT)

    def _trials(self, *states):
        return self.study.get_trials(deepcopy=False, states=[self.states[state] for state in states])

    @staticmethod
    def _parameters(trial):
        return trial.params or trial.system_attrs.get("fixed_params")

    def _asked(self, *states):
        """The keys of the cells of the trials in these states."""
        return {_key(self._parameters(trial)) for trial in self._trials(*states)}

    def _name(self, parameters):
        """The name of the study, or of the folder of a training: tells apart what differs in anything."""
        o = self.options
        whole = json.dumps([o.net, self.databases, o.epochs, o.seed, parameters])
        values = [f"{name}={value}" for name, value in parameters.items() if not isinstance(value, list)]
        readable, checksum = "-".join([o.net, *values]), f"{zlib.crc32(whole.encode()):08x}"
        name = f"{readable}-{checksum}"
        return name if len(name.encode()) <= LONGEST_NAME else f"{readable[:150]}-{checksum}"

    def _folder(self, parameters):
        return Path(self.options.out) / self._name(dict(sorted(parameters.items())))

    def _told(self):
        """What the shared state tells of the trainings that ended: {key of the cell: result}."""
        return {_key(trial.params): trial.user_attrs[RESULT] for trial in self._trials("COMPLETE")
                if RESULT in trial.user_attrs}

    def _known(self, parameters, told):
        """The result of a training that ended, here or, as `told`, where only the state is shared; else None."""
        saved = self._folder(parameters) / RESULT
        if saved.exists():
            return json.loads(saved.read_text(encoding="utf-8"))
        return told.get(_key(parameters))

    def _take_back(self):
        """Ask again for the trainings whose process is gone, or never was."""
        for trial in self._trials("RUNNING"):
            folder = self._folder(trial.params)
            asked = (datetime.datetime.now() - trial.datetime_start).total_seconds()
            if asked > START_SECONDS and not self._is_elsewhere(trial, folder):
                lock = _lock(folder) if folder.is_dir() else contextlib.nullcontext()
                if lock:
                    with lock:
                        self._give_back(trial)

    def _is_elsewhere(self, trial, folder):
        """Whether the process of a trial is, or was, of another --out, on a machine that shares the state alone."""
        if not self.options.storage or PLACE not in trial.user_attrs:
            return False
        lock = folder / LOCK
        return not lock.is_file() or trial.user_attrs[PLACE] not in lock.read_text(encoding="utf-8").splitlines()

    def _end(self, trial, **outcome):
        """Tell of a trial how it ended; SQLite may give one to two processes, and the other may have told already."""
        self.study.tell(trial.number, skip_if_finished=True, **outcome)

    def _give_back(self, trial):
        self._end(trial, state=self.states.FAIL)
        if parameters := self._parameters(trial):
            self.study.enqueue_trial(parameters)

    def _left(self):
        """Whether there is a training to ask for. A grid has all of its cells waiting, also where fewer are wanted."""
        if self.options.search != "grid":
            return len(self._trials("COMPLETE", "RUNNING")) < self.total
        begun = self._asked("RUNNING") | {_key(result["parameters"]) for result in self.results()}
        return self._trials("WAITING") and len(begun) < self.total

    def _next(self):
        """Run one training: a line about it; None where there is nothing left to do."""
        child, pause = None, 0.0
        while not child:
            self.stopped.wait(pause)
            with self.lock:
                if self.stopped.is_set() or not self._left():
                    return None
                trial = self.study.ask(self.distributions)
                child, pause = self._begin(trial)
        return self._follow(trial, child)

    def _begin(self, trial):
        """(the process of a trial, or None where it needs none; seconds until another may be asked for)."""
        ahead = self._ahead(trial)
        if self.options.search != "grid" and len(ahead) >= self.total:  # several processes asked for the last
            self._give_back(trial)
            return None, 0.0
        parameters = trial.params
        if any(other.params == parameters for other in ahead):
            return None, self._pass_over(trial)
        folder = self._folder(parameters)
        Dataset.make_folder(folder)
        lock = _lock(folder)
        if not lock:  # by another search, by a trial that had no parameters yet here, or by one given this very trial
            self.held.add(_key(parameters))
            return None, self._pass_over(trial)
        with lock:
            if known := self._known(parameters, self._told()):
                self._complete(trial, known)
                return None, 0.0
            return self._start(trial, folder, lock), 0.0

    def _ahead(self, trial):
        """The trials that ended or run, and go before this one. One that waited may have a lower number than what was
        begun meanwhile."""
        return [other for other in self._trials("COMPLETE", "RUNNING") if other.number < trial.number
                or other.number > trial.number and (other.state == self.states.COMPLETE or PLACE in other.user_attrs)]

    def _pass_over(self, trial):
        """End a trial whose cell another has, and put one that nobody has in its place: a sampler that thinks the best
        cell is one that was trained already would propose it for ever. Seconds until another may be asked for."""
        self._end(trial, state=self.states.FAIL)
        if self.options.search == "grid":
            return 0.0
        taken = self._asked("COMPLETE", "RUNNING", "WAITING") | self.held
        cells = random.Random(trial.number).sample(self.cells, len(self.cells))
        if free := next((cell for cell in cells if _key(cell) not in taken), None):
            self.study.enqueue_trial(free)
            return 0.0
        self.held.clear()
        return HELD_SECONDS

    def _follow(self, trial, child):
        """Wait for the process of a trial, and tell its result: a line about it; None where it was interrupted."""
        folder, code = self._folder(trial.params), child.wait()
        self.children.discard(child)
        said = (folder / "log").read_text(encoding="utf-8").strip().rpartition("\n")[2]
        too_big = code in TOO_BIG or code == 2 and "out of memory" in said
        if code and not too_big and "diverged" not in said:
            self._give_back(trial)
            if code in (130, -signal.SIGTERM):
                return None
            raise (Dataset.UserError if code == 2 else RuntimeError)(f"{folder / 'log'}: {said}")
        result = self._result(folder, code, too_big)
        Dataset.write_whole(folder / RESULT, json.dumps(result).encode())
        self._complete(trial, result)
        reached = "too big for the memory" if too_big else f"{100 * result['accuracy']:.2f} %"
        return f"{reached}  {' '.join(f'{name}={value}' for name, value in trial.params.items())}"

    def _complete(self, trial, result):
        """Tell the result of a trial; as one of its own where the process that was given the same one has ended it."""
        import optuna
        value = result["validation_accuracy"] or 0.0
        try:
            trial.set_user_attr(RESULT, result)
            self._end(trial, values=value)
        except optuna.exceptions.UpdateFinishedTrialError:
            self.study.add_trial(optuna.create_trial(params=trial.params, distributions=self.distributions, value=value,
                                                     user_attrs={RESULT: result}))

    def _note_place(self, trial, folder, lock):
        """Note in a trial, and in the lock file, where it is trained: only who sees both takes it back."""
        import optuna
        place = f"{platform.node()} {folder.resolve()} {secrets.token_hex(8)}"
        lock.write(f"{place}\n")
        lock.flush()
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # ended by one that was given it too
            trial.set_user_attr(PLACE, place)

    def _start(self, trial, folder, lock):
        """The process of a trial, which holds the lock as long as it lives."""
        self._note_place(trial, folder, lock)
        o = self.options
        if Training.can_resume(folder):
            given = ["--resume"]
        else:
            given = arguments(o, trial.params)
            for rest in folder.glob("my_model-*"):  # of one killed before it had saved what it could be resumed from
                rest.unlink()
        threads = str(max(1, (os.cpu_count() or 1) // o.processes))
        with open(folder / "log", "w", encoding="utf-8") as log:
            child = subprocess.Popen([sys.executable, str(MAIN), *given, "--logs", o.logs, "--out", str(folder)],
                                     stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                     pass_fds=[lock.fileno()], env=os.environ | {"TF_NUM_INTRAOP_THREADS": threads})
        self.children.add(child)
        if self.stopped.is_set():  # since it was asked for
            child.send_signal(signal.SIGINT)
        return child

    def _result(self, folder, code, too_big):
        """What metrics.json says; a training that diverged has learned nothing."""
        if code:
            chance = None if too_big else 0.5
            return {"accuracy": chance, "validation_accuracy": chance, "learned": False}
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        shown = metrics.get("test", metrics["validation"])["accuracy"]
        measured = [self.options.test] if self.options.test else self.options.train
        labels = Dataset.DataSet.join([*Dataset.open_databases(measured).values()]).label
        larger = labels.mean(0).max()
        return {"accuracy": shown, "validation_accuracy": metrics["validation"]["accuracy"],
                "learned": bool(shown > larger + NOT_LEARNED)}
