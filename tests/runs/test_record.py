"""A run's record on disk: comes back whole, or is refused in words."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

import ortholora.files as module
from ortholora.errors import UserError
from ortholora.runs.record import read_record, write_record
from synthetic_study import record


@pytest.fixture
def whole():
    targets = {"cola": np.array([0, 1, 1]), "stsb": np.array([0, 1, 0])}
    predictions = {"cola": np.array([0, 1, 0]), "stsb": np.array([1, 1, 0])}
    return record(
        "ortho",
        3,
        targets,
        predictions,
        conflict={"share": np.float32(0.5), "pairs": np.array([1, 2]), "cosine": math.nan},
    )


def test_round_trip(tmp_path, whole):
    write_record(tmp_path / "deep" / "run", whole)
    back = read_record(tmp_path / "deep" / "run")
    for name in ("method", "rule", "block", "seed", "tasks", "metrics", "metric_names", "num_labels"):
        assert getattr(back, name) == getattr(whole, name)
    assert (back.step_seconds, back.peak_memory_bytes) == (whole.step_seconds, whole.peak_memory_bytes)
    assert back.provenance == whole.provenance
    assert back.conflict == {"share": 0.5, "pairs": [1, 2], "cosine": None}
    for task in whole.tasks:
        for ours, theirs in ((whole.targets, back.targets), (whole.predictions, back.predictions)):
            assert theirs[task].dtype == ours[task].dtype
            np.testing.assert_array_equal(ours[task], theirs[task])
    assert sorted(path.name for path in (tmp_path / "deep" / "run").iterdir()) == [
        "predictions.npz",
        "result.json",
    ]


def test_files_are_plain(tmp_path, whole):
    write_record(tmp_path, dataclasses.replace(whole, step_seconds=math.nan))

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert content["step_seconds"] is None
    assert math.isnan(read_record(tmp_path).step_seconds)
    with np.load(tmp_path / "predictions.npz") as arrays:
        assert set(arrays.files) == {f"{t}/{w}" for t in ("cola", "stsb") for w in ("target", "prediction")}


def test_a_crash_while_writing_leaves_no_finished_run(tmp_path, whole, monkeypatch):
    write_record(tmp_path, whole)

    def crash(content):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "to_json", crash)
    with pytest.raises(KeyboardInterrupt):
        write_record(tmp_path, dataclasses.replace(whole, seed=4))
    # Neither the old result beside new predictions, nor a temporary file.
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.npz"]
    with pytest.raises(UserError, match=r"result\.json"):
        read_record(tmp_path)


@pytest.mark.parametrize("name", ["result.json", "predictions.npz"])
@pytest.mark.parametrize("keep", [0, 0.3, 0.9, None])
def test_truncated_or_missing(tmp_path, whole, name, keep):
    write_record(tmp_path, whole)
    path = tmp_path / name
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match=name):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 99),
        ("method", None),
        ("seed", True),
        ("tasks", [1]),
        ("metrics", {"cola": 0.5}),
        ("num_labels", {"cola": "two", "stsb": 2}),
        ("tasks", ["cola", "rte"]),
    ],
)
def test_wrong_content(tmp_path, whole, key, value):
    write_record(tmp_path, whole)
    content = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps({**content, key: value}))
    with pytest.raises(UserError, match="cannot read"):
        read_record(tmp_path)


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "\x00", "{"])
def test_not_an_object(tmp_path, whole, content):
    write_record(tmp_path, whole)
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match="cannot read"):
        read_record(tmp_path)


def test_arrays_that_do_not_fit(tmp_path, whole):
    write_record(tmp_path, whole)
    with np.load(tmp_path / "predictions.npz") as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "predictions.npz", **{**arrays, "cola/prediction": np.array([1])})
    with pytest.raises(UserError, match="one prediction per row of `cola`"):
        read_record(tmp_path)
    del arrays["stsb/target"]
    np.savez(tmp_path / "predictions.npz", **arrays)
    with pytest.raises(UserError, match="stsb/target"):
        read_record(tmp_path)
    # A pickle could run code: refused, not loaded.
    np.savez(tmp_path / "predictions.npz", **{"cola/target": np.array([{}], dtype=object)})
    with pytest.raises(UserError, match=r"predictions\.npz"):
        read_record(tmp_path)
