"""The examples of other people's loops: they run offline, and they train what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ortholora import OrthoLora

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str, launcher: tuple[str, ...]) -> str:
    """What the example prints, started by a launcher as its docstring says."""
    done = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d\.\d+", text)]


@pytest.mark.slow
def test_the_accelerate_loop_in_one_process_and_in_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same steps: losses, weights, heads and visit orders."""
    arguments = ("--steps", "20", "--save")
    monkeypatch.setattr(sys, "argv", ["accelerate_loop.py", *arguments, str(tmp_path / "one")])
    module("accelerate_loop").main()
    alone = capsys.readouterr().out
    assert "20 steps of 16 rows a task with rule ortho" in alone
    launcher = ("-m", "accelerate.commands.launch", f"--config_file={EXAMPLES / 'accelerate/ddp.yaml'}")
    launcher += ("--num_processes=2",)
    both = run("accelerate_loop.py", *arguments, str(tmp_path / "two"), launcher=launcher)
    assert both.count("20 steps of 16 rows") == 1
    assert numbers(both) == pytest.approx(numbers(alone), abs=2e-3)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert largest_difference(one, two) < 1e-4
    states = [torch.load(tmp_path / name / "custom_checkpoint_0.pkl") for name in ("one", "two")]
    assert states[0]["step"] == states[1]["step"] == 20
    assert torch.equal(states[0]["generator"], states[1]["generator"])


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


# ---- Lightning -------------------------------------------------------------------------------------------------

CLIP = 0.05
#: Lightning's own business.
for_lightning = pytest.mark.filterwarnings(
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",
    "ignore:.*does not have many workers:UserWarning",
    "ignore:You're resuming from a checkpoint:UserWarning",
)


@pytest.fixture(scope="module")
def example() -> Any:
    pytest.importorskip("lightning")
    return module("lightning_module")


def fit(example: ModuleType, model: Any, steps: int, checkpoint: Path | None = None) -> Any:
    """Steps of two micro-batches; an epoch is two steps."""
    trainer = example.lightning.Trainer(
        max_steps=steps,
        accumulate_grad_batches=2,
        gradient_clip_val=CLIP,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(model, example.make_loader(4), ckpt_path=checkpoint)
    return trainer


def fresh(example: ModuleType, **arguments: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return example.ManyTasks(**arguments)


def trained(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@for_lightning
def test_lightning_clips_what_was_resolved(example: ModuleType) -> None:
    """A plain loop that resolves, then clips, trains the same; and the clipping is felt in every step."""
    model = fresh(example)
    fit(example, model, steps=4)
    model.ortho.detach()

    plain = fresh(example).train()
    ortho = OrthoLora(plain, example.TASKS)
    optimizer = plain.configure_optimizers()
    parameters = [p for p in plain.parameters() if p.requires_grad]
    for index, batch in enumerate([*example.make_loader(4), *example.make_loader(4)]):
        with ortho.batch(batch[2]):
            (plain.task_losses(batch).sum() / 2).backward()
        if index % 2:
            before = [p.grad.clone() for p in parameters]
            ortho.resolve()
            if index > 1:  # in the first step B = 0 hides every gradient of A
                assert any(not torch.equal(b, p.grad) for b, p in zip(before, parameters, strict=True))
            assert torch.nn.utils.clip_grad_norm_(parameters, CLIP) > 2 * CLIP
            optimizer.step()
            optimizer.zero_grad()
    assert largest_difference(trained(model), trained(plain)) < 1e-6


@for_lightning
def test_lightning_goes_on_where_it_stopped(example: ModuleType, tmp_path: Path) -> None:
    """Visit orders; Lightning's own loop takes other batches after a checkpoint that it did not write in an epoch."""
    whole = fresh(example)
    fit(example, whole, steps=4)
    fit(example, fresh(example), steps=2).save_checkpoint(tmp_path / "part.ckpt")
    resumed = fresh(example)
    fit(example, resumed, steps=4, checkpoint=tmp_path / "part.ckpt")
    states = [model.ortho.state_dict() for model in (whole, resumed)]
    assert states[0]["step"] == states[1]["step"] == 4
    assert torch.equal(states[0]["generator"], states[1]["generator"])
    assert not torch.equal(states[0]["generator"], fresh_generator(example))


def fresh_generator(example: ModuleType) -> Tensor:
    return OrthoLora(fresh(example), example.TASKS).state_dict()["generator"]


@for_lightning
@pytest.mark.filterwarnings("ignore:.training_step. returned .None.:UserWarning")
def test_lightning_may_skip_a_batch_and_fit_twice(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh(example)
    real = model.training_step
    monkeypatch.setattr(model, "training_step", lambda batch, batch_idx: None if batch_idx == 1 else real(batch, 0))
    fit(example, model, steps=2)
    fit(example, model, steps=2)
    assert model.ortho.state_dict()["step"] == 2
    model.ortho.detach()


def test_lightning_in_half_precision_is_refused(example: ModuleType) -> None:
    model = fresh(example)
    model._trainer = type("Trainer", (), {"precision": "16-mixed"})()
    with pytest.raises(ValueError, match="bf16-mixed"):
        model.attach(example.TASKS, "ortho")


@for_lightning
def test_the_lightning_example_says_what_it_does(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning_module.py", "--steps", "10"])
    example.main()
    printed = capsys.readouterr().out
    assert "10 steps with rule ortho" in printed
    assert "micro-batch 20: has_5" in printed


# ---- images and speech -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image_classifier", "speech"])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_model_of_images_or_of_speech_learns_its_tasks(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what it prints are losses of its two tasks."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--steps", "80"])
    made = module(name)
    made.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == made.TASKS
    for line in lines:
        first, last = numbers(line)
        assert last < 0.5 * first
