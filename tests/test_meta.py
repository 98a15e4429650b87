"""The meta-parameter analysis: which trainings run, what survives an interruption, and the tables."""
import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

optuna = pytest.importorskip("optuna")

import Console
import Dataset
import Main_meta
import Models
import Sweep
from conftest import write_database
from DataBases import synthesise

ROOT = Path(__file__).resolve().parents[1]

STAND_IN = '''
import json, os, pathlib, signal, sys, time
arguments = sys.argv[1:]
out = pathlib.Path(arguments[arguments.index("--out") + 1])
with open("ran", "a") as ran:
    ran.write(" ".join(arguments) + "\\n")
convolutions = int(arguments[arguments.index("--nb-conv") + 1]) if "--nb-conv" in arguments else 1
normalised = "--batchnorm" in arguments
if convolutions == 40:
    os.kill(os.getpid(), int(os.environ.get("END", signal.SIGKILL)))
if convolutions == 39:
    print("Main.py: out of memory; choose a smaller --batch-size or a smaller net")
    sys.exit(2)
if convolutions == 30:
    print("Main.py: the loss is nan at step 10: the training diverged")
    sys.exit(2)
if convolutions == 33:
    print("Main.py: no such thing")
    sys.exit(2)
if convolutions == 13 and not pathlib.Path("go").exists():
    pathlib.Path("waiting.part").write_text(str(os.getpid()))
    os.rename("waiting.part", "waiting")
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    time.sleep(60)
pathlib.Path("threads").write_text(os.environ["TF_NUM_INTRAOP_THREADS"])
accuracy = 0.52 if convolutions > 6 and not normalised else 0.8 + convolutions / 100
(out / "metrics.json").write_text(json.dumps({"validation": {"accuracy": accuracy + 0.01},
                                              "test": {"accuracy": accuracy}}))
'''


@pytest.fixture
def stand_in(in_folder, monkeypatch):
    """Main.py's place is taken by a script that learns nothing, quickly, and of few faces."""
    (in_folder / "Main.py").write_text(STAND_IN)
    monkeypatch.setattr(Sweep, "MAIN", in_folder / "Main.py")
    (in_folder / "few").mkdir()
    for seed, name in enumerate(("10k", "test10k")):
        write_database(in_folder / "few", name, 10, seed)
    monkeypatch.setattr(Dataset, "DATABASES", in_folder / "few")
    monkeypatch.setattr(Dataset.default_databases, "__defaults__", (in_folder / "few",))
    return in_folder


@pytest.fixture
def made(monkeypatch):
    """The studies that sweeps make."""
    studies, create = [], optuna.create_study
    monkeypatch.setattr(optuna, "create_study", lambda **options: studies.append(create(**options)) or studies[-1])
    return studies


def ran(folder):
    return (folder / "ran").read_text().splitlines() if (folder / "ran").exists() else []


def sweep(capsys, *arguments):
    code = Console.run(Main_meta.main, ["--logs", "none", *arguments])
    return code, *capsys.readouterr()


def search(folder, convolutions, **more):
    """A sweep by random search over `nb_conv`, in the place of the stand-in."""
    few = [str(folder / "few" / f"data_{name}.bin") for name in ("10k", "test10k")]
    options = {"search": "random", "logs": "none", "train": (few[0],), "test": few[1]} | more
    return Sweep.Sweep(Main_meta.Options(**options), {"nb_conv": convolutions})


def trials(searched, *states):
    return [trial.params["nb_conv"] for trial in searched.study.trials if trial.state.name in states]


def test_every_cell_is_trained_once_and_the_table_is_the_courses(stand_in, database, capsys):
    grid = ["--net", "convnet", "--test", str(database.parent / "data_test.bin"), "--batchnorm", "no", "yes",
            "--nb-filter", "4", "16", "--nb-conv", "1", "7", "30", "40"]
    code, out, err = sweep(capsys, *grid, "--processes", "3")
    assert (code, err) == (0, "")
    assert "\n".join(out.splitlines()[-8:]) == """\
convnet, 5 epochs, accuracy in % on test; (in brackets) did not learn; KO too big for the memory; - not run
  batchnorm      no             yes
  nb_filter       4      16       4      16
    nb_conv
          1    81.0    81.0    81.0    81.0
          7  (52.0)  (52.0)    87.0    87.0
         30  (50.0)  (50.0)  (50.0)  (50.0)
         40      KO      KO      KO      KO"""
    assert len(ran(stand_in)) == 16
    assert sum("--no-batchnorm --nb-filter 16 --nb-conv 7" in line for line in ran(stand_in)) == 1
    assert sweep(capsys, *grid)[0] == 0
    assert len(ran(stand_in)) == 16


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_what_ends_without_memory_is_too_big(stand_in, capsys, monkeypatch, end):
    monkeypatch.setenv("END", str(int(end)))
    code, out, _ = sweep(capsys, "--nb-conv", "1", "40")
    assert code == 0 and [line.split() for line in out.splitlines()[-2:]] == [["1", "81.0"], ["40", "KO"]]


def test_a_training_that_is_terminated_is_left_for_the_next_time(stand_in, capsys, monkeypatch):
    monkeypatch.setenv("END", str(int(signal.SIGTERM)))
    code, out, err = sweep(capsys, "--nb-conv", "40")
    assert (code, err) == (0, "") and out.splitlines()[-1].split() == ["40", "-"]


def test_trainings_at_once_share_the_cores(stand_in, capsys, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    sweep(capsys, "--nb-conv", "1", "--processes", "3")
    assert (stand_in / "threads").read_text() == "4"


def test_a_table_of_one_parameter_names_it(stand_in, capsys):
    _, out, _ = sweep(capsys, "--net", "convnet", "--dropout", "0", "0.3", "--no-run")
    assert [line.split() for line in out.splitlines()[-2:]] == [["dropout", "0.0", "0.3"], ["-", "-"]]


def test_rows_named_twice_are_rows_once(stand_in, capsys):
    _, out, _ = sweep(capsys, "--nb-conv", "1", "2", "--rows", "nb_conv", "nb_conv", "--no-run")
    assert [line.split() for line in out.splitlines()[-3:]] == [["nb_conv"], ["1", "-"], ["2", "-"]]


def test_without_databases_named_the_table_names_those_that_main_takes(stand_in, database, capsys, monkeypatch):
    monkeypatch.setattr(Dataset, "default_databases", lambda: (database, database.with_name("data_test.bin")))
    _, out, _ = sweep(capsys, "--nb-conv", "1")
    assert "accuracy in % on test;" in out
    assert f"--train {database} --test {database.with_name('data_test.bin')}" in ran(stand_in)[0]


def test_markdown_and_csv(stand_in, database, capsys):
    grid = ["--net", "convnet", "--batch-size", "64", "256", "--nb-conv", "1", "39"]
    _, out, err = sweep(capsys, *grid, "--format", "csv")
    assert out.startswith("net,epochs,seed,") and len(out.splitlines()) == 5  # the table alone
    assert "4 trainings, in checkpoints/meta" in err
    _, out, _ = sweep(capsys, *grid, "--no-run", "--format", "markdown")
    assert out.splitlines()[2:] == ["| nb_conv | batch_size 64 | batch_size 256 |", "| ---: | ---: | ---: |",
                                    "| 1 | 81.0 | 81.0 |", "| 39 | KO | KO |"]
    _, out, _ = sweep(capsys, *grid, "--no-run", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert {(row["batch_size"], row["nb_conv"], row["mark"]) for row in rows} == {
        ("64", "1", "81.0"), ("64", "39", "KO"), ("256", "1", "81.0"), ("256", "39", "KO")}
    assert [row["accuracy"] for row in rows if row["nb_conv"] == "1"] == ["0.81", "0.81"]


def test_another_grid_shares_the_cells_and_shows_what_was_not_run(stand_in, capsys):
    sweep(capsys, "--nb-conv", "1", "2")
    sweep(capsys, "--nb-conv", "2", "3", "4", "--trials", "2")
    assert sorted(line.split("--nb-conv ")[1][0] for line in ran(stand_in)) == ["1", "2", "3"]
    _, out, _ = sweep(capsys, "--nb-conv", "2", "3", "4", "--no-run")
    assert [line.split() for line in out.splitlines()[-3:]] == [["2", "82.0"], ["3", "83.0"], ["4", "-"]]
    _, out, _ = sweep(capsys, "--nb-conv", "2", "3", "--epochs", "6", "--no-run")
    assert [line.split() for line in out.splitlines()[-2:]] == [["2", "-"], ["3", "-"]]


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_search_stops_at_its_budget_and_repeats_nothing(stand_in, search, capsys):
    grid = ["--nb-conv", *map(str, range(1, 6)), "--nb-filter", "4", "8", "--search", search]
    assert sweep(capsys, *grid, "--trials", "4")[0] == 0
    assert len(set(ran(stand_in))) == len(ran(stand_in)) == 4
    assert sweep(capsys, *grid)[0] == 0  # 20 by default, but the grid has 10 cells
    assert len(set(ran(stand_in))) == len(ran(stand_in)) == 10


def test_tpe_ends_where_the_best_cell_is_trained_already(stand_in, capsys):
    """Told that a cell was asked for twice, TPE proposes it again: its model has learned nothing new."""
    grid = ["--batch-size", "32", "64", "--nb-filter", "4", "8", "--nb-conv", "1", "2", "3", "4", "5", "6"]
    assert sweep(capsys, *grid, "--search", "tpe", "--trials", "24")[0] == 0
    assert len(set(ran(stand_in))) == len(ran(stand_in)) == 24
    assert Path("checkpoints/meta/journal.log").stat().st_size < 200_000


def test_a_search_looks_for_the_best(stand_in, capsys, made):
    sweep(capsys, "--nb-conv", "1", "2", "3", "--search", "tpe")
    assert made[-1].best_params == {"nb_conv": 3}


def test_a_search_does_not_see_the_test_base_in_what_a_grid_has_trained(stand_in, database, capsys, made):
    grid = ["--nb-conv", "2", "--test", str(database.with_name("data_test.bin"))]
    for search in "grid", "tpe":
        sweep(capsys, *grid, "--search", search)
    assert len(ran(stand_in)) == 1 and made[-1].best_value == pytest.approx(0.83)  # the test base's is 0.82


def test_what_learned_is_judged_by_the_test_base(stand_in, capsys):
    men, even = (write_database(stand_in, name, 10, seed) for seed, name in enumerate(("men", "even")))
    np.eye(2, dtype="<f4")[[0] * 8 + [1] * 2].tofile(stand_in / "gender_men.bin")
    _, out, _ = sweep(capsys, "--nb-conv", "2", "--train", str(even), "--test", str(men))
    assert out.splitlines()[-1].split() == ["2", "(82.0)"]  # men alone are 80 %


@pytest.mark.parametrize("given, grid, said", [
    (["--net", "nn4", "--nb-conv", "1"], None, "net nn4 has no option nb_conv"),
    (["--net", "nn4"], {"nb_conv": [1, None]}, "net nn4 has no option nb_conv"),
    ([], {"freeze": [0, 2]}, "freeze is no option"),
    ([], {"adversarial": [0, 50], "adversarial_steps": [1, 2]}, "--adversarial-steps does nothing without"),
    ([], {"dropout": [0.1, 2]}, "--dropout: 2: expected a number in"),
    ([], {"balance": ["sex", "size"]}, "--balance: invalid choice: 'size'")])
def test_a_grid_that_main_would_refuse_is_refused_before_anything_is_written(stand_in, capsys, given, grid, said):
    (stand_in / "grid.json").write_text(json.dumps(grid))
    code, _, err = sweep(capsys, *given, *(["--grid", "grid.json"] if grid else []))
    assert code == 2 and said in err and err.count("\n") == 1
    assert not Path("checkpoints").exists() and not ran(stand_in)


def test_each_value_of_a_grid_is_looked_at_once(monkeypatch):
    looked, parse = [], Console.parse
    monkeypatch.setattr(Console, "parse", lambda *given: looked.append(given) or parse(*given))
    grid = dict.fromkeys(("learning_rate", "l1", "weight_decay", "clip_norm", "averaging", "warm_up", "dropout",
                          "label_smoothing", "validation", "traits"), [0.01, 0.02, 0.03])
    Main_meta.must_be_trainable(Main_meta.Options(), grid)  # 59,049 cells
    assert len(looked) == 30


@pytest.mark.parametrize("grid, words", [
    ({"adversarial": [0, 50], "adversarial_rise": [None, 0.5]}, "--adversarial-rise does nothing without"),
    ({"adversarial": [50, None], "adversarial_rise": [0.5]}, "--adversarial-rise does nothing without"),
    ({"adversarial": ["0"], "adversarial_steps": [1]}, "--adversarial-steps does nothing without"),
    ({"output_dim": [None, 32], "adversarial": [0, 50]}, "net convnet has no option output_dim")])
def test_a_rule_across_options_holds_for_every_cell(grid, words):
    with pytest.raises(Dataset.UserError, match=words):
        Main_meta.must_be_trainable(Main_meta.Options(net="convnet"), grid)
    Main_meta.must_be_trainable(Main_meta.Options(), {"adversarial": [50, 90], "adversarial_steps": [None, 1]})
    Main_meta.must_be_trainable(Main_meta.Options(), {"adversarial": [0, None], "adversarial_steps": [None]})


def test_null_leaves_an_option_out_and_each_net_has_a_grid(stand_in, capsys):
    (stand_in / "grid.json").write_text('{"balance": [null, "sex"]}')
    code, out, err = sweep(capsys, "--grid", "grid.json")
    assert (code, err) == (0, "") and ["--balance sex" in line for line in ran(stand_in)].count(True) == 1
    assert len(ran(stand_in)) == 2
    for net in Models.NETWORKS:
        assert sweep(capsys, "--net", net, "--no-run")[0] == 0


def test_a_grid_from_a_file_and_from_flags(stand_in, capsys):
    (stand_in / "grid.json").write_text('{"optimizer": ["sgd", "adam"], "nb_conv": [1, 2], "batchnorm": [true]}')
    sweep(capsys, "--grid", "grid.json", "--nb-conv", "3")
    assert len(ran(stand_in)) == 2
    assert all("--nb-conv 3" in line and "--batchnorm" in line for line in ran(stand_in))
    assert {line.split("--optimizer ")[1].split()[0] for line in ran(stand_in)} == {"sgd", "adam"}


def wait_for(path):
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} never appeared")


def start(folder, *arguments):
    """Main_meta.py in a process of its own, with the stand-in."""
    few = str(folder / "few")
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); import Console, Dataset, Main_meta, Sweep; "
            f"Sweep.MAIN = {str(folder / 'Main.py')!r}; "
            f"Dataset.DATABASES = {few!r}; Dataset.default_databases.__defaults__ = ({few!r},); "
            f"sys.exit(Console.run(Main_meta.main, {['--logs', 'none', *arguments]!r}))")
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_an_interrupted_sweep_goes_on(stand_in, how, monkeypatch, capsys):
    monkeypatch.setattr(Sweep, "START_SECONDS", 0.0)
    grid = ["--nb-conv", "1", "13", "2"]
    process = start(stand_in, *grid)
    wait_for(stand_in / "waiting")
    if how == "interrupt":
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert out.splitlines()[-1] == "interrupted, and saved; the same command goes on"
    else:
        process.kill()
        process.communicate()
        os.kill(int((stand_in / "waiting").read_text()), signal.SIGKILL)
    (stand_in / "go").touch()
    code, out, _ = sweep(capsys, *grid)
    assert code == 0
    assert [line.split() for line in out.splitlines()[-3:]] == [["1", "81.0"], ["13", "(52.0)"], ["2", "82.0"]]
    assert sorted(line.split("--nb-conv ")[1].split()[0] for line in ran(stand_in)) == ["1", "13", "13", "2"]


def test_an_interrupted_grid_keeps_to_fewer_trials(stand_in, capsys):
    grid = ["--nb-conv", "1", "13", "2", "3", "4"]
    process = start(stand_in, *grid)
    wait_for(stand_in / "waiting")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    (stand_in / "go").touch()
    assert sweep(capsys, *grid, "--trials", "3")[0] == 0
    assert len({line.split("--nb-conv ")[1].split()[0] for line in ran(stand_in)} - {"13"}) == 3
    assert sweep(capsys, *grid)[0] == 0
    assert {line.split("--nb-conv ")[1].split()[0] for line in ran(stand_in)} == {"1", "13", "2", "3", "4"}


def test_the_faces_tell_trainings_apart_not_where_they_lie(stand_in, capsys, monkeypatch):
    (stand_in / "a").mkdir()
    path = write_database(stand_in / "a", "faces", 10)
    monkeypatch.chdir(stand_in / "a")
    where = ["--out", str(stand_in / "meta"), "--nb-conv", "1"]
    sweep(capsys, *where, "--train", path.name)
    (stand_in / "a").rename(stand_in / "b")
    monkeypatch.chdir(stand_in)
    sweep(capsys, *where, "--train", "b/data_faces.bin")
    assert len(ran(stand_in / "b")) == 1 and not ran(stand_in)
    write_database(stand_in / "b", "faces", 10, seed=1)
    sweep(capsys, *where, "--train", "b/data_faces.bin")
    assert len(ran(stand_in)) == 1


def killed_training(capsys):
    """The folder of a training that had saved its best weights when it was killed with its sweep."""
    sweep(capsys, "--nb-conv", "1")
    (folder,) = Path("checkpoints/meta").glob("densenet-*")
    for file in (*folder.glob("*.json"), *Path("checkpoints/meta").glob("journal*")):
        file.unlink()
    (folder / "my_model-5.index").touch()
    return folder


def test_a_training_killed_before_it_saved_what_it_could_be_resumed_from_begins_again(stand_in, capsys):
    folder = killed_training(capsys)
    assert sweep(capsys, "--nb-conv", "1")[0] == 0
    assert len(ran(stand_in)) == 2 and not [*folder.glob("my_model-*")]


def test_where_processes_cannot_share_a_line_says_so(stand_in, capsys, monkeypatch):
    monkeypatch.setattr(Sweep, "fcntl", None)
    code, _, err = sweep(capsys, "--nb-conv", "1")
    assert code == 2 and err.count("\n") == 1 and "on Windows, use WSL" in err


def test_two_processes_share_the_work(stand_in, capsys):
    (stand_in / "go").touch()
    grid = ["--nb-conv", *map(str, range(1, 9)), "--storage", f"sqlite:///{stand_in}/meta.db"]
    processes = [start(stand_in, *grid) for _ in range(2)]
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
    assert sorted(line.split("--nb-conv ")[1][0] for line in ran(stand_in)) == list("12345678")


def test_a_trial_that_sqlite_gave_to_two_processes_ends_well(stand_in, monkeypatch, capsys):
    grid = ["--nb-conv", "1", "2", "--storage", f"sqlite:///{stand_in}/meta.db"]
    result = Sweep.Sweep._result

    def ended_elsewhere(self, *arguments):  # by the process that finds the folder locked
        for trial in self._trials("RUNNING"):
            self.study.tell(trial.number, state=self.states.FAIL)
        return result(self, *arguments)

    monkeypatch.setattr(Sweep.Sweep, "_result", ended_elsewhere)
    for out in "here", "elsewhere":  # the second shares the state alone
        code, said, _ = sweep(capsys, *grid, "--out", out)
        assert code == 0
        assert [line.split() for line in said.splitlines()[-2:]] == [["1", "81.0"], ["2", "82.0"]]
        assert len(ran(stand_in)) == 2


def test_machines_that_share_the_state_alone_share_results_and_take_nothing_back(stand_in, monkeypatch, capsys):
    monkeypatch.setattr(Sweep, "START_SECONDS", 0.0)
    grid = ["--nb-conv", "1", "13", "2", "--storage", f"sqlite:///{stand_in}/meta.db"]
    process = start(stand_in, *grid, "--out", "one")
    wait_for(stand_in / "waiting")
    (trained,) = Path("one").glob("*nb_conv=13*")
    earlier = Path("other") / trained.name
    earlier.mkdir(parents=True)
    (earlier / "running").touch()
    code, out, _ = sweep(capsys, *grid, "--out", "other")
    assert code == 0
    assert [line.split() for line in out.splitlines()[-3:]] == [["1", "81.0"], ["13", "-"], ["2", "82.0"]]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    (stand_in / "go").touch()
    assert sweep(capsys, *grid, "--out", "one")[0] == 0
    _, out, _ = sweep(capsys, *grid, "--out", "other", "--no-run")
    assert [line.split() for line in out.splitlines()[-3:]] == [["1", "81.0"], ["13", "(52.0)"], ["2", "82.0"]]


def test_a_cell_asked_for_twice_makes_no_folder(stand_in):
    searched = search(stand_in, [1, 2, 3], trials=2)
    elsewhere = searched.study.ask(searched.distributions)  # the seed is the same, and so is the first cell
    assert [done for done, _ in search(stand_in, [1, 2, 3], trials=2).run()] == [1]
    assert not searched._folder(elsewhere.params).exists()


@pytest.mark.parametrize("begun", [False, True])
def test_a_trial_is_asked_for_again_where_its_process_was(stand_in, monkeypatch, begun):
    monkeypatch.setattr(Sweep, "START_SECONDS", 0.0)
    storage = f"sqlite:///{stand_in}/meta.db"
    searched = search(stand_in, [1], storage=storage)
    trial, folder = searched.study.ask(searched.distributions), searched._folder({"nb_conv": 1})
    Dataset.make_folder(folder)
    if begun:
        with Sweep._lock(folder) as lock:
            searched._note_place(trial, folder, lock)
    assert len([*search(stand_in, [1], storage=storage, out="other").run()]) == (0 if begun else 1)
    assert len([*search(stand_in, [1], storage=storage).run()]) == (1 if begun else 0)


def test_a_search_leaves_what_others_train_and_waits_for_the_last(stand_in, monkeypatch):
    searched, lock, asked = search(stand_in, [1, 2, 3]), Sweep._lock, []

    def few_times(folder):
        asked.append(folder)
        assert len(asked) < 20, "asked without a pause"
        return lock(folder)

    class Stopped(threading.Event):
        def wait(self, pause):
            if pause:  # the process of another search ends
                assert pause == Sweep.HELD_SECONDS and sorted(trials(searched, "COMPLETE", "RUNNING")) == [1, 3]
                held.close()
            return super().wait(0.0)

    monkeypatch.setattr(Sweep, "_lock", few_times)
    folder = Dataset.make_folder(searched._folder({"nb_conv": 2})) or searched._folder({"nb_conv": 2})
    held, searched.stopped = lock(folder), Stopped()
    assert len([*searched.run()]) == 3
    assert held.closed and sorted(trials(searched, "COMPLETE")) == [1, 2, 3]


@pytest.mark.parametrize("number, words", [(errno.ENOLCK, "running: cannot be locked (No locks available)"),
                                           (errno.EWOULDBLOCK, ""), (errno.EACCES, "")])
def test_a_disk_without_locks_is_told_from_a_lock_that_is_held(stand_in, monkeypatch, capsys, number, words):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Sweep.fcntl, "flock", refuse)
    code, out, err = sweep(capsys, "--nb-conv", "1")
    assert (code, err.count("\n")) == ((2, 1) if words else (0, 0)) and words in err
    assert words or out.splitlines()[-1].split() == ["1", "-"]


@pytest.mark.parametrize("waiting", [False, True])
def test_two_searches_at_once_keep_to_the_budget(stand_in, waiting):
    """One has seen that there is room when the other's training begins and ends."""
    searched = search(stand_in, [1, 2, 3], trials=1)
    ask = searched.study.ask
    if waiting:
        searched.study.enqueue_trial({"nb_conv": 3})

    def ask_late(distributions):
        searched.study.add_trial(optuna.create_trial(params={"nb_conv": 1}, distributions=distributions, value=0.5))
        return ask(distributions)

    searched.study.ask = ask_late
    assert not [*searched.run()] and trials(searched, "COMPLETE", "RUNNING") == [1]


def test_what_waits_keeps_to_the_budget(stand_in):
    searched = search(stand_in, [1, 2, 3], trials=2)
    assert len([*searched.run()]) == 2
    searched.study.enqueue_trial({"nb_conv": ({1, 2, 3} - {*trials(searched, "COMPLETE")}).pop()})
    assert not [*search(stand_in, [1, 2, 3], trials=2).run()] and len(ran(stand_in)) == 2
    assert len([*search(stand_in, [1, 2, 3], trials=3).run()]) == 1


def test_what_a_grid_has_trained_is_told_to_machines_that_share_the_state_alone(stand_in):
    storage = f"sqlite:///{stand_in}/meta.db"
    assert len([*search(stand_in, [1, 2], search="grid").run()]) == 2
    assert not [*search(stand_in, [1, 2], storage=storage).run()]
    results = search(stand_in, [1, 2], storage=storage, out="other").results()
    assert [result["accuracy"] for result in results] == pytest.approx([0.81, 0.82])


def test_the_progress_of_a_search_is_of_its_own_trainings(stand_in):
    assert len([*search(stand_in, [1, 2, 3], search="grid").run()]) == 3
    searched = search(stand_in, [*range(1, 9)], trials=4)
    told = [done for done, _ in searched.run()]
    assert told and max(told) <= 4 == searched.done() < len(searched.results())


def test_the_folder_of_many_options_has_a_name_that_a_disk_takes(stand_in, capsys):
    (stand_in / "grid.json").write_text(json.dumps(
        {"adversarial": [50], "adversarial_rise": [0.25], "adversarial_steps": [2], "averaging": [0.99], "l1": [1e-5],
         "batch_size": [128], "batchnorm": ["yes"], "clip_norm": [1.5], "dropout": [0.1, 0.2], "nb_conv": [1],
         "label_smoothing": [0.1], "learning_rate": [0.001], "loss": ["cross-entropy"], "optimizer": ["nesterov"],
         "precision": ["float32"], "schedule": ["constant"], "validation": [0.05], "warm_up": [0.1],
         "weight_decay": [0.05]}))
    code, _, err = sweep(capsys, "--grid", "grid.json")
    assert (code, err) == (0, "") and len(ran(stand_in)) == 2
    names = [path.name for path in Path("checkpoints/meta").glob("densenet-*")]
    assert len(names) == 2 and {len(name) for name in names} == {159}


def test_a_folder_is_named_as_ever(stand_in):
    searched = search(stand_in, [1, 2])
    searched.databases = [["1"], ["2"]]
    assert searched._folder({"nb_conv": 2, "dropout": 0.3}).name == "densenet-dropout=0.3-nb_conv=2-ad854f64"


def test_without_a_test_base_the_larger_class_is_that_of_the_faces_to_learn(stand_in, capsys):
    faces = write_database(stand_in, "men", 10)
    np.eye(2, dtype="<f4")[[0] * 8 + [1] * 2].tofile(stand_in / "gender_men.bin")
    _, out, _ = sweep(capsys, "--nb-conv", "2", "--train", str(faces))
    assert out.splitlines()[-1].split() == ["2", "(82.0)"]


def test_without_any_database_those_are_made_first(stand_in, monkeypatch, capsys):
    folder = stand_in / "DataBases"
    monkeypatch.setattr(Dataset, "DATABASES", folder)
    monkeypatch.setattr(Dataset.default_databases, "__defaults__", (folder,))
    monkeypatch.setattr(synthesise, "make", lambda names, out: [
        f"{write_database(Dataset.make_folder(out) or folder, name, 4)} made" for name in names])
    _, out, _ = sweep(capsys, "--nb-conv", "1")
    assert "accuracy in % on test10k;" in out
    assert len(ran(stand_in)) == 1 and "data_test10k.bin" in ran(stand_in)[0]
    sweep(capsys, "--nb-conv", "1")
    assert len(ran(stand_in)) == 1


def test_what_another_process_trains_is_left_to_it(stand_in, monkeypatch, capsys):
    """Its trial may show no parameters yet when a second one is asked for the same cell."""
    (stand_in / "go").touch()
    held, lock = [], Sweep._lock

    def taken(folder):
        if "nb_conv=2" in folder.name and not held:
            held.append(lock(folder))
        return lock(folder)

    monkeypatch.setattr(Sweep, "_lock", taken)
    code, out, _ = sweep(capsys, "--nb-conv", "1", "2", "3")
    assert code == 0
    assert [line.split() for line in out.splitlines()[-3:]] == [["1", "81.0"], ["2", "-"], ["3", "83.0"]]
    held[0].close()
    assert sweep(capsys, "--nb-conv", "1", "2", "3")[0] == 0
    assert sorted(line.split("--nb-conv ")[1][0] for line in ran(stand_in)) == list("123")


def test_mistakes(stand_in, capsys):
    (stand_in / "grid.json").write_text('{"depth": [1]}')
    (stand_in / "folder.json").write_text('{"out": ["a"]}')
    (stand_in / "broken.json").write_text('{"nb_conv": 3}')
    for arguments, words in (
            (["--grid", "none.json"], "none.json: no such file"), (["--grid", "broken.json"], "expected JSON such as"),
            (["--grid", "grid.json"], "depth is no option of Main.py"), (["--grid", "folder.json"], "out is no option"),
            (["--nb-conv", "0"], "expected 1 or more"),
            (["--batchnorm", "maybe"], "invalid choice"), (["--train", "none"], "no such file"),
            (["--rows", "depth"], "--rows depth: not in the grid"), (["--nb-conv", "33"], "no such thing"),
            (["--storage", "nonsense"], "no state can be kept there")):
        code, _, err = sweep(capsys, *arguments)
        assert code == 2 and err.count("\n") == 1 and words in err, err


def test_real_trainings_write_hparams_and_can_be_used(database, in_folder, capsys):
    code, out, _ = sweep(capsys, "--net", "convnet", "--train", str(database), "--test",
                         str(database.parent / "data_test.bin"), "--nb-filter", "4", "--nb-block", "2",
                         "--dropout", "0", "0.2", "--epochs", "1", "--logs", "logs/meta", "--processes", "2")
    assert code == 0
    folders = sorted(Path("checkpoints/meta").glob("convnet-*"))
    assert len(folders) == 2 and [Models.load(folder)[0].list[1].dropout_rate for folder in folders] == [0.0, 0.2]
    written = [path.read_bytes() for path in Path("logs/meta").glob("*/validation/*")]
    assert len(written) == 2 and all(b"nb_filter" in events and b"find_lr" not in events for events in written)
    assert all(json.loads((folder / "metrics.json").read_text())["test"]["faces"] == 60 for folder in folders)


def test_another_seed_is_another_training(stand_in, database, capsys):
    for more in [], ["--seed", "3", "--epochs", "7"], ["--epochs", "7"]:
        sweep(capsys, "--nb-conv", "1", "--train", str(database), *more)
    assert ["--epochs 5 --seed 0", "--epochs 7 --seed 3", "--epochs 7 --seed 0"] == [
        line[line.index("--epochs"):][:19].strip() for line in ran(stand_in)]


def test_another_test_base_is_another_training(stand_in, database, capsys):
    sweep(capsys, "--nb-conv", "1", "--train", str(database))
    sweep(capsys, "--nb-conv", "1", "--train", str(database), "--test", str(database.with_name("data_test.bin")))
    assert len(ran(stand_in)) == 2


def test_the_order_of_a_grid_does_not_matter(stand_in, capsys):
    for order in {"optimizer": ["adam"], "dropout": [0.1]}, {"dropout": [0.1], "optimizer": ["adam"]}:
        (stand_in / "grid.json").write_text(json.dumps(order))
        sweep(capsys, "--grid", "grid.json")
    assert len(ran(stand_in)) == 1


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_search_looks_at_the_validation_part_alone(stand_in, database, capsys, search, made):
    sweep(capsys, "--nb-conv", "2", "--test", str(database.with_name("data_test.bin")), "--search", search)
    assert made[-1].best_value == pytest.approx(0.83)  # the test base's is 0.82
    assert isinstance(made[-1].sampler, optuna.samplers.TPESampler) is (search == "tpe")
    (saved,) = Path("checkpoints/meta").glob("*/result.json")
    result = {"accuracy": 0.82, "validation_accuracy": 0.83, "learned": True}
    assert json.loads(saved.read_text()) == pytest.approx(result)


def test_a_training_that_can_be_resumed_is(stand_in, capsys):
    folder = killed_training(capsys)
    (folder / "last").mkdir()
    (folder / "last" / "network.json").touch()
    (folder / "last" / "my_model-5.index").touch()
    sweep(capsys, "--nb-conv", "1")
    assert ran(stand_in)[-1].startswith("--resume ") and (folder / "my_model-5.index").exists()


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_search_of_one_seed_asks_for_the_same_cells(stand_in, capsys, search):
    for out in "one", "other":
        sweep(capsys, "--nb-conv", *map(str, range(1, 7)), "--nb-filter", "4", "8", "--search", search, "--trials", "4",
              "--out", out)
    cells = [line.partition(" --logs")[0] for line in ran(stand_in)]
    assert len(cells) == 8 and cells[:4] == cells[4:]
