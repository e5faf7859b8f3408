"""Worker processes: what they do together, and what happens to the others when one fails."""

from __future__ import annotations

import multiprocessing
import signal
import time

import pytest
from toy_work import Toy

from ortholora.errors import UserError
from ortholora.study.jobs.pool import work_off
from ortholora.study.jobs.processes import Processes
from ortholora.study.jobs.sharing import divide, how_shared, visible_devices

LABELS = {number: f"run {number}" for number in range(4)}
TWO = [{"OMP_NUM_THREADS": "1"}] * 2


class Heard:
    """A progress that keeps what it is told, line by line."""

    def __init__(self):
        self.stop_requested = False
        self.lines = []

    def line(self):
        self.lines.append([])
        return Line(self.lines[-1])


class Line:
    def __init__(self, said):
        self.start = lambda label, steps, done: said.append(("start", label))
        self.step = lambda done: said.append(("step", done))
        self.finish = lambda label, metrics: said.append(("finish", label, metrics))


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    assert not multiprocessing.active_children()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_item_is_done_once_and_told_whole(tmp_path):
    heard = Heard()
    environments = [{"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": str(device)} for device in (5, 7)]
    assert work_off(LABELS, Toy(tmp_path), Processes(environments), heard) == []
    assert names(tmp_path) == [f"done-{item}" for item in LABELS]
    seen = [path.read_text().split(" ", 1) for path in tmp_path.iterdir()]
    assert {share for _, share in seen} <= {"3 5", "3 7"}
    assert len({process for process, _ in seen}) == len({share for _, share in seen})
    told = [said[start : start + 4] for said in heard.lines for start in range(0, len(said), 4)]
    assert sorted(told) == [
        [("start", f"item {n}"), ("step", 1), ("step", 2), ("finish", f"item {n}", {"task": 0.5})] for n in LABELS
    ]


@pytest.mark.parametrize(
    ("told", "parts"),
    [
        ("fail", ["run 1: a wrong setting", "correct it", "stopped with a checkpoint"]),
        ("no_room", ["run 1: some/file could not be", "No space left on device", "stopped with a checkpoint"]),
        ("die", ["run 1: its process ended", "signal 9 (SIGKILL)", "fewer --jobs", "stopped with a checkpoint"]),
    ],
)
def test_a_failure_names_its_run_and_stops_the_other(tmp_path, told, parts):
    toy = Toy(tmp_path, told={1: told}, endless=(0,))
    with pytest.raises(UserError) as caught:
        work_off(LABELS, toy, Processes(TWO), Heard())
    for part in parts:
        assert part in str(caught.value)
    assert names(tmp_path) == ["begun-0", "stopped-0"]


def test_a_mistake_of_ours_keeps_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)run 0 failed in its process.*in crash.*ZeroDivisionError: our own"):
        work_off(LABELS, Toy(tmp_path, told={0: "crash"}), Processes(TWO[:1]), Heard())
    assert names(tmp_path) == []


def test_what_is_finished_before_a_failure_is_kept(tmp_path):
    with pytest.raises(UserError, match="run 2"):
        work_off(LABELS, Toy(tmp_path, told={2: "die"}), Processes(TWO[:1]), Heard())
    assert names(tmp_path) == ["done-0", "done-1"]


def test_a_request_to_stop_reaches_every_worker(tmp_path, monkeypatch):
    heard = Heard()
    before = signal.signal(signal.SIGINT, lambda number, frame: setattr(heard, "stop_requested", True))
    try:
        left = work_off(LABELS, Toy(tmp_path, told={1: "stop"}, endless=(0, 1)), Processes(TWO), heard)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(left) == list(LABELS.values())
    assert sorted(left[:2]) == ["run 0", "run 1"]  # those that had begun come first
    assert [name for name in names(tmp_path) if "begun" not in name] == ["stopped-0", "stopped-1"]


def test_a_worker_that_is_still_loading_is_not_waited_for(tmp_path):
    class Impatient(Heard):
        stop_requested = property(lambda self: (tmp_path / "loading").exists(), lambda self, value: None)

    began = time.monotonic()
    assert work_off(LABELS, Toy(tmp_path, loading=100.0), Processes(TWO), Impatient()) == list(LABELS.values())
    assert time.monotonic() - began < 50


def test_a_second_interrupt_ends_them_at_once(tmp_path):
    def impatient(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, impatient)
    try:
        with pytest.raises(KeyboardInterrupt):
            work_off(LABELS, Toy(tmp_path, told={1: "stop"}, endless=(0, 1)), Processes(TWO), Heard())
    finally:
        signal.signal(signal.SIGINT, before)
    assert names(tmp_path) == ["begun-0", "begun-1"]


def test_a_worker_that_is_terminated_saves_first(tmp_path):
    left = work_off({0: "run 0"}, Toy(tmp_path, told={0: "terminate"}, endless=(0,)), Processes(TWO[:1]), Heard())
    assert left == ["run 0"]
    assert names(tmp_path) == ["begun-0", "stopped-0"]


def test_how_a_machine_is_divided():
    assert divide(3, 8, None, []) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert divide(4, 2, None, []) == [{"OMP_NUM_THREADS": "1"}] * 4
    assert divide(2, 8, 8, []) == [{"OMP_NUM_THREADS": "8"}] * 2
    assert [share["CUDA_VISIBLE_DEVICES"] for share in divide(3, 8, None, ["4", "6"])] == ["4", "6", "4"]


def test_the_devices_that_the_user_chose_are_shared():
    assert visible_devices({}, 2) == ["0", "1"]
    assert visible_devices({}, 0) == []
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "4, GPU-b5"}, 2) == ["4", "GPU-b5"]
    assert visible_devices({"CUDA_VISIBLE_DEVICES": ""}, 0) == []


def test_how_sharing_is_said():
    assert how_shared(divide(2, 2, None, [])).startswith("2 runs at once, 1 thread each: ")
    assert how_shared(divide(3, 12, None, ["0", "1"])).startswith("3 runs at once, 4 threads each, on 2 devices: ")
