"""`compare --on ray`: two real nodes give what one process gives, also when one of them is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from command_line import Cli
from worked_study import left_over, results, write_study

from ortholora.runs.record import read_record
from ortholora.study.jobs import ray_cluster

#: At its fourth call a rule kills the node it is on, if that is the second; on the first it waits until that was done.
RULES = """
import os, signal, time
from pathlib import Path
import torch

STEPS = []

def rule(gram, context):
    STEPS.append(0)
    if Path("raylet").exists() and len(STEPS) >= 4:
        node = os.getppid()
        if node == int(Path("raylet").read_text()):
            Path("raylet").rename("killed")
            os.kill(node, signal.SIGKILL)
            while os.getppid() == node:
                time.sleep(0.01)
            return torch.ones(gram.shape[:2])  # this worker outlives its node: it must leave the run to another
        for _ in range(1200):
            if Path("killed").exists():
                break
            time.sleep(0.1)
    if Path("endless").exists() and len(STEPS) >= 3:
        Path("there").touch()
        time.sleep(5)  # until the stop is here
    return torch.ones(gram.shape[:2])

def other(gram, context):
    return rule(gram, context)
"""
RUNS = ["single/seed-0/topic", "single/seed-0/score", "joint/seed-0", "rule/seed-0", "other/seed-0"]


def study(folder: Path) -> list[str]:
    """Write the study into a folder; return the command but for `--out`."""
    (folder / "killing.py").write_text(RULES, encoding="utf-8")
    return write_study(folder, "cluster", ["killing:rule", "killing:other"])


@pytest.fixture(scope="module")
def one_by_one(home_of_all):
    """The folder of the study, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home_of_all)
        patch.setattr(sys, "path", list(sys.path))
        Cli(home_of_all).ok(*study(home_of_all), "by-one")
    return home_of_all / "by-one"


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes with a core each; their processes inherit this one's PYTHONPATH."""
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = {"num_cpus": 1, "object_store_memory": 100 * 1024**2}
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, agent = one.getsockname()[1], two.getsockname()[1]
    head = {**small, "include_dashboard": False, "ray_client_server_port": port, "runtime_env_agent_port": agent}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.client = f"ray://127.0.0.1:{port}"
    cluster.second = cluster.add_node(**small)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()


class NoRay:
    """Where Ray is installed, too, it is not found."""

    def find_spec(self, name, *rest):
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name=name)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--on", "nowhere"], "--on cannot be read"),
        (["--on", "ray"], 'pip install "ortholora[ray]"'),
        (["--gpus-per-run", "1"], "no --on"),
        (["--on", "ray", "--gpus-per-run", "nan"], "--gpus-per-run cannot be"),
        (["--on", "ray", "--gpus-per-run", "1.5"], "--gpus-per-run cannot be"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_read(cli, monkeypatch, words, told):
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoRay(), *sys.meta_path])
    assert told in cli.complaint("compare", "no-such-file.yaml", *words)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_with_a_node_killed_in_the_middle_it_gives_what_one_process_gives(cli, home, cluster, one_by_one):
    command = [*study(home), "out", "--on", "ray"]
    ((raylet,),) = (cluster.second.all_processes["raylet"],)
    (home / "raylet").write_text(str(raylet.process.pid))
    result = cli(*command, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["folder"] == "out"
    shown = result.stderr
    assert "On a Ray cluster of 2 nodes: 2 at once, 1 CPU each" in shown
    assert (home / "killed").exists()
    assert "its worker was lost, another one goes on." in shown
    assert "going on from the checkpoint of step" in shown
    assert results(home / "out", RUNS) == results(one_by_one, RUNS)
    assert [read_record(home / "out/runs" / run).provenance["jobs"] for run in RUNS] == [2] * len(RUNS)
    shutil.rmtree(home / "out/runs/joint/seed-0")
    again = cli(*command, "--json", "--quiet")
    assert (again.exit_code, again.stderr) == (0, ""), again.output
    assert json.loads(again.stdout)["folder"] == "out"
    assert not left_over(home / "out")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_reaches_the_cluster_and_the_same_study_goes_on(cli, home, cluster, one_by_one, number, monkeypatch):
    monkeypatch.setattr(ray_cluster, "_ENTER", 300.0)  # a busy machine
    where = "ray" if number == signal.SIGINT else cluster.client
    command = [*study(home), "out"]
    (home / "endless").touch()

    def interrupt() -> None:
        while not (home / "there").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    stopped = cli(*command, "--on", where, "--quiet")
    assert (stopped.exit_code, stopped.stdout) == (130, ""), stopped.output
    assert "Start the same command again" in stopped.stderr
    finished = {path: path.stat().st_mtime_ns for path in (home / "out").rglob("result.json")}
    # Of two workers one was in a rule's run: of the three runs before it the other was in one at most.
    assert 2 <= len(finished) < len(RUNS)
    (home / "endless").unlink()
    assert "going on from the checkpoint of step" in cli.ok(*command)
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    assert results(home / "out", RUNS) == results(one_by_one, RUNS)
    assert not left_over(home / "out")
