"""What is said to a Ray cluster and heard of it, with a Ray that is none; `tests/cli/test_on_ray.py` has a real one."""

from __future__ import annotations

import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_ray import FakeRay

from ortholora.errors import LockedError, MissingExtraError, UserError
from ortholora.study.jobs import ray_actor, ray_cluster, ray_workers
from ortholora.study.jobs.pool import work_off
from ortholora.study.jobs.ray_cluster import check_on, room_for
from ortholora.study.jobs.ray_workers import Resources

LABELS = {number: f"run {number}" for number in range(4)}
CPU, GPU = {"CPU": 2.0, "memory": 1e9}, {"CPU": 8.0, "GPU": 4.0}


class Heard:
    """A progress that keeps what it is told."""

    stop_requested = False

    def __init__(self):
        self.told = []
        self.start = lambda label, steps, done: self.told.append(("start", label))
        self.step = lambda done: self.told.append(("step", done))
        self.finish = lambda label, metrics: self.told.append(("finish", label))

    def note(self, text):
        self.told.append(("note", text))

    def line(self):
        return self


@dataclass
class Toy:
    """Items that note that they were done, or do what they are told the first so many times.

    Attributes:
        odd: Item → what to do instead, and how often.
        done: What was done, in this order.
    """

    odd: dict = field(default_factory=dict)
    done: list = field(default_factory=list)

    def __call__(self):
        return self.do

    def do(self, item, progress):
        progress.start(f"item {item}", 2, 0)
        what, times = self.odd.get(item, (None, 0))
        if times:
            self.odd[item] = (what, times - 1)
            what(progress)
            return False
        progress.step(1)
        progress.step(2)
        self.done.append(item)
        progress.finish(f"item {item}", {})
        return True


def raising(error):
    def fail(progress):
        raise error

    return fail


def until_asked(progress):
    while not progress.stop_requested:
        progress.step(1)
        time.sleep(0.01)


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay([CPU])
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return fake


def study(toy, out, heard=None, **options):
    with ray_cluster.ray_workers("ray", out, **options) as workers:
        return work_off(LABELS, toy, workers, heard or Heard())


def test_every_item_is_done_once_and_told_whole(ray, tmp_path):
    toy, heard = Toy(), Heard()
    assert study(toy, tmp_path / "out", heard, each=Resources(cpus=2)) == []
    assert toy.done == list(LABELS)  # two cores, two for a run: one worker
    whole = [line for n in LABELS for line in [("start", f"item {n}"), ("step", 2), ("finish", f"item {n}")]]
    assert [line for line in heard.told if line != ("step", 1)] == whole  # the newest step says it all
    assert (ray.joined, ray.left) == (["auto"], 1)
    (options,) = ray.options
    assert (options["num_cpus"], options["num_gpus"]) == (2, 0)
    assert all(actor.dead for actor in ray.actors)  # their room is given back
    assert list((tmp_path / "out").iterdir()) == []


def test_of_steps_the_newest_is_kept():
    kept = ray_actor._Kept()
    for message in [
        ("step", 1),
        ("show", 1),
        ("step", 2),
        ("show", 2),
        ("finish",),
        ("start",),
        ("step", 1),
        ("step", 2),
    ]:
        kept._tell(*message)
    assert kept.take() == [("step", 2), ("show", 2), ("finish",), ("start",), ("step", 2)]
    assert kept.take() == []


def test_a_worker_that_outlives_its_node_leaves_its_run_to_another(ray, tmp_path, monkeypatch):
    def orphaned(progress):
        monkeypatch.setattr(ray_actor.os, "getppid", lambda: -1)  # no process: 1 is that of whoever was orphaned
        progress.step(1)
        assert progress.stop_requested

    toy, heard = Toy({0: (orphaned, 1)}), Heard()
    assert study(toy, tmp_path, heard, jobs=1) == []
    assert toy.done == list(LABELS)
    assert ("note", "run 0: its worker was lost, another one goes on. (its node is gone)") in heard.told


def test_there_are_as_many_workers_as_there_is_room_for_or_as_were_asked_for(ray, tmp_path):
    study(Toy(), tmp_path)
    assert len(ray.actors) == 2
    study(Toy(), tmp_path, jobs=1)
    assert len(ray.actors) == 3


def test_what_a_lost_worker_did_is_done_by_another(ray, tmp_path):
    def die(progress):
        next(actor for actor in ray.actors if actor.actor._relay is progress).die()

    toy, heard = Toy({1: (die, 3)}), Heard()
    assert study(toy, tmp_path, heard) == []
    assert sorted(toy.done) == list(LABELS)
    notes = [text for kind, text, *_ in heard.told if kind == "note"]
    assert notes == ["run 1: its worker was lost, another one goes on. (The actor died.)"] * 3
    with pytest.raises(UserError, match=r"(?s)run 1: its worker .* lost again and again.*The actor died\."):
        study(Toy({1: (die, 4)}), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (UserError("bad", expected="right", found="wrong", todo="correct it"), UserError, "run 0: bad"),
        (OSError(28, "No space left", "a/file"), UserError, "run 0: a/file could not be"),
        (ZeroDivisionError("our own"), RuntimeError, r"(?s)run 0 failed.*ZeroDivisionError: our own"),
    ],
)
def test_a_failure_names_its_run_and_stops_the_other(ray, tmp_path, error, kind, told):
    def fail(progress):
        while toy.odd[1][1]:  # until the other has begun
            time.sleep(0.01)
        raise error

    toy = Toy({0: (fail, 1), 1: (until_asked, 1)})
    with pytest.raises(kind, match=told):
        study(toy, tmp_path)
    assert toy.odd[1] == (until_asked, 0)
    assert toy.done == []


def test_a_request_to_stop_reaches_every_worker(ray, tmp_path):
    class Stopping(Heard):
        stop_requested = property(lambda self: self.told.count(("step", 1)) > 3)

    toy = Toy({0: (until_asked, 1), 1: (until_asked, 1)})
    assert sorted(study(toy, tmp_path, Stopping())) == list(LABELS.values())
    assert toy.done == []


def test_the_lock_of_a_lost_worker_is_waited_for(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_actor.time, "sleep", lambda seconds: None)
    locked = LockedError("held", expected="one", found="another", todo="wait")
    toy = Toy({0: (raising(locked), 2)})
    assert study(toy, tmp_path) == []
    monkeypatch.setattr(ray_actor, "_LOCKED", 0.0)
    with pytest.raises(LockedError, match="run 0: held"):
        study(Toy({0: (raising(locked), 9)}), tmp_path)


def test_a_node_that_does_not_see_the_folder_or_has_another_version(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_actor, "_SEEN", 0.0)
    monkeypatch.setattr(ray_workers, "write_text", lambda path, text: None)
    with pytest.raises(UserError, match="does not see the folder of the study"):
        study(Toy(), tmp_path)
    monkeypatch.setattr(ray_actor, "VERSION", "0.0.1")
    with pytest.raises(UserError, match=r"(?s)another version of ortholora.*found: +0\.0\.1"):
        study(Toy(), tmp_path)


def test_what_fits_on_the_nodes():
    assert room_for(Resources(1, 0.0), [CPU, GPU]) == 10
    assert room_for(Resources(1, 1.0), [CPU, GPU]) == 4
    assert room_for(Resources(3, 0.0), [CPU, GPU]) == 2
    assert room_for(Resources(1, 0.5), [CPU, GPU]) == 8
    with pytest.raises(UserError, match=r"(?s)2 CPUs and 8 GPUs.*2 CPUs, 0 GPUs; 8 CPUs, 4 GPUs"):
        room_for(Resources(2, 8.0), [CPU, GPU])
    with pytest.raises(UserError, match="no node that is alive"):
        room_for(Resources(), [])


def test_a_run_takes_one_gpu_where_there_are_any(ray, tmp_path):
    ray._nodes = [CPU, GPU]
    with ray_cluster.ray_workers("ray", tmp_path) as workers:
        assert str(workers).startswith("On a Ray cluster of 2 nodes: 4 at once, 1 CPU and 1 GPU each: ")
    with ray_cluster.ray_workers("ray", tmp_path, each=Resources(4, 0.0)) as workers:
        assert str(workers).startswith("On a Ray cluster of 2 nodes: 2 at once, 4 CPUs each: ")


@pytest.mark.parametrize("where", ["", "Ray", "ray://", "ray://a b", "ray://host:port", "http://host:1", "host:6379"])
def test_what_is_no_address(where):
    with pytest.raises(UserError, match="--on cannot be read"):
        check_on(where)


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "ortholora\[ray\]"'):
        check_on("ray")


def test_no_cluster_and_none_that_answers(ray, tmp_path, monkeypatch):
    def nobody(address, **options):
        raise ConnectionError("More.\nCould not find any running Ray instance.")

    ray.init = nobody
    with (
        pytest.raises(UserError, match=r"(?s)in no Ray cluster.*any running Ray instance\.\n.*ray start --head"),
        ray_cluster.ray_workers("ray", tmp_path),
    ):
        pass
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        ray.init = lambda address, **options: time.sleep(5)
        monkeypatch.setattr(ray_cluster, "_ENTER", 0.1)
        with (
            pytest.raises(UserError, match=rf"(?s)ray://127\.0\.0\.1:{port} does not answer.*no answer in"),
            ray_cluster.ray_workers(f"ray://127.0.0.1:{port}", tmp_path),
        ):
            pass
    ray.init = lambda address, **options: pytest.fail("the port is closed")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with (
        pytest.raises(UserError, match=rf"(?s)at 127\.0\.0\.1:{port} does not answer.*refused"),
        ray_cluster.ray_workers("ray", tmp_path),
    ):
        pass
    assert ray.left == 3
    assert list(Path(tmp_path).iterdir()) == []
