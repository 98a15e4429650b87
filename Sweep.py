"""Which trainings a grid of meta-parameters asks for, run one by one or side by side, and remembered.

The engine is Optuna (Akiba et al. 2019): a trial is one training by Main.py, in a process of its own, so that one that
is too big for the memory ends alone. The state lies in a file or a database that several machines may share.
"""
import concurrent.futures
import contextlib
import datetime
import itertools
import json
import os
import random
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
LONGEST_NAME = 255  # bytes that a folder's name may have
START_SECONDS = 20.0  # a training that was asked for has its process by then
NOT_LEARNED = 0.05  # a net that is not this much better than always giving the larger class's answer has not learned
TOO_BIG = (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV) if fcntl else ()  # what ends it without memory


def _lock(folder):
    """The open lock file of a training's folder; None where a process holds it. It is let go when that process ends."""
    file = open(folder / "running", "w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


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
        self.lock, self.children, self.stopped = threading.Lock(), set(), False
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

    def run(self):
        """Train what is missing; yields (trainings done, a line about the one that ended). Ctrl-C saves them all."""
        self._take_back()
        if self.options.search == "grid":
            asked = [self._parameters(trial) for trial in self._trials("RUNNING", "WAITING")]
            told = self._told()
            for cell in self.cells[:self.total]:
                if cell not in asked and not self._known(cell, told):
                    self.study.enqueue_trial(cell)
        with concurrent.futures.ThreadPoolExecutor(self.options.processes) as pool:
            running = {pool.submit(self._next) for _ in range(self.options.processes)}
            try:
                while running:
                    ended, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                    for line in filter(None, (future.result() for future in ended)):
                        yield len(self.results()), line
                        running.add(pool.submit(self._next))
            finally:
                self.stopped = True
                for child in list(self.children):
                    child.send_signal(signal.SIGINT)

    def _trials(self, *states):
        return self.study.get_trials(deepcopy=False, states=[self.states[state] for state in states])

    @staticmethod
    def _parameters(trial):
        return trial.params or trial.system_attrs.get("fixed_params")

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
        """What the shared state tells of the trainings that ended: a list of (parameters, result)."""
        return [(trial.params, trial.user_attrs[RESULT]) for trial in self._trials("COMPLETE")
                if RESULT in trial.user_attrs]

    def _known(self, parameters, told):
        """The result of a training that ended, here or, as `told`, where only the state is shared; else None."""
        saved = self._folder(parameters) / RESULT
        if saved.exists():
            return json.loads(saved.read_text(encoding="utf-8"))
        return next((result for asked, result in told if asked == parameters), None)

    def _take_back(self):
        """Ask again for the trainings whose process is gone."""
        for trial in self._trials("RUNNING"):
            folder = self._folder(trial.params)
            asked = (datetime.datetime.now() - trial.datetime_start).total_seconds()
            elsewhere = self.options.storage and not folder.is_dir()  # on a machine that shares the state alone
            if asked > START_SECONDS and not elsewhere:
                lock = _lock(folder) if folder.is_dir() else contextlib.nullcontext()
                if lock:
                    with lock:
                        self._give_back(trial)

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
            return self._trials("WAITING") or len(self._trials("COMPLETE", "RUNNING")) < self.total
        begun = [*(result["parameters"] for result in self.results()), *map(self._parameters, self._trials("RUNNING"))]
        return self._trials("WAITING") and len({json.dumps(cell, sort_keys=True) for cell in begun}) < self.total

    def _next(self):
        """Run one training: a line about it; None where there is nothing left to do."""
        with self.lock:
            while True:
                if self.stopped or not self._left():
                    return None
                trial = self.study.ask(self.distributions)
                folder = self._folder(trial.params)
                Dataset.make_folder(folder)
                twice = [other for other in self._trials("COMPLETE", "RUNNING")
                         if other.params == trial.params and other.number < trial.number]
                # Held by a process whose trial had no parameters yet here, or that was given this very one.
                lock = None if twice else _lock(folder)
                if not lock:
                    self._end(trial, state=self.states.FAIL)
                    if twice and self.options.search != "grid":
                        self._propose_another(trial)
                    continue
                known = self._known(trial.params, self._told())
                if not known:
                    break
                lock.close()
                self._end(trial, values=known["validation_accuracy"] or 0.0)
            with lock:
                child = self._start(trial.params, folder, lock)
        code = child.wait()
        self.children.discard(child)
        said = (folder / "log").read_text(encoding="utf-8").strip().rpartition("\n")[2]
        too_big = code in TOO_BIG or code == 2 and "out of memory" in said
        if code and not too_big and "diverged" not in said:
            self._give_back(self.study.trials[trial.number])
            if code in (130, -signal.SIGTERM):
                return None
            raise (Dataset.UserError if code == 2 else RuntimeError)(f"{folder / 'log'}: {said}")
        result = self._result(folder, code, too_big)
        Dataset.write_whole(folder / RESULT, json.dumps(result).encode())
        self._complete(trial, result)
        reached = "too big for the memory" if too_big else f"{100 * result['accuracy']:.2f} %"
        return f"{reached}  {' '.join(f'{name}={value}' for name, value in trial.params.items())}"

    def _propose_another(self, trial):
        """Put a cell that nobody has asked for in the place of one asked for twice: a sampler that thinks the best
        cell is one that was trained already would propose it for ever."""
        asked = [self._parameters(other) for other in self._trials("COMPLETE", "RUNNING", "WAITING")]
        if left := [cell for cell in self.cells if cell not in asked]:
            self.study.enqueue_trial(random.Random(trial.number).choice(left))

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

    def _start(self, parameters, folder, lock):
        """The process of a training, which holds the lock as long as it lives."""
        o = self.options
        if Training.can_resume(folder):
            given = ["--resume"]
        else:
            given = arguments(o, parameters)
            for rest in folder.glob("my_model-*"):  # of one killed before it had saved what it could be resumed from
                rest.unlink()
        threads = str(max(1, (os.cpu_count() or 1) // o.processes))
        with open(folder / "log", "w", encoding="utf-8") as log:
            child = subprocess.Popen([sys.executable, str(MAIN), *given, "--logs", o.logs, "--out", str(folder)],
                                     stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                     pass_fds=[lock.fileno()], env=os.environ | {"TF_NUM_INTRAOP_THREADS": threads})
        self.children.add(child)
        if self.stopped:  # since it was asked for
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
