"""What options leave of a configuration: fewer steps, local files, some of the tasks."""

from __future__ import annotations

import pytest

from ortholora.config.choose import with_steps, with_tasks, without_hub
from ortholora.config.schema import Config
from ortholora.errors import UserError


def config_of(*names: str, **sections: object) -> Config:
    tasks = [{"name": name, "train": "a.tsv", "dev": "b.tsv"} for name in names]
    return Config.model_validate({"backbone": "x", "tasks": tasks, **sections})


@pytest.mark.parametrize(
    ("steps", "warmup", "chosen", "expected"),
    [(600, 60, 100, 10), (600, 60, 9, 0), (600, 60, 1200, 120), (600, 0, 5, 0), (10, 9, 1, 0), (10, 9, 10, 9)],
)
def test_the_warm_up_keeps_its_share(steps, warmup, chosen, expected):
    config = config_of("cola", training={"steps": steps, "warmup_steps": warmup, "learning_rate": 0.5})
    short = with_steps(config, chosen)
    assert (short.training.steps, short.training.warmup_steps) == (chosen, expected)
    assert short.training.learning_rate == 0.5
    assert (config.training.steps, config.training.warmup_steps) == (steps, warmup)
    assert Config.model_validate(short.model_dump()) == short


def test_a_task_with_files_forgets_the_hub_and_another_keeps_it():
    hub = {"path": "owner/data"}
    tasks = [{"name": "both", "train": "a.tsv", "dev": "b.tsv", "hub": hub}, {"name": "online", "hub": hub}]
    config = Config.model_validate({"backbone": "x", "tasks": tasks})
    local = without_hub(config)
    assert [task.hub is None for task in local.tasks] == [True, False]
    assert all(task.hub is not None for task in config.tasks)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["sst2", "cola"], ["cola", "sst2"]),  # in the configuration's order
        (["cola", "cola"], ["cola"]),
        (["qa"], ["qa.colour", "qa.sound"]),
        (["qa.sound", "cola"], ["cola", "qa.sound"]),
        (["v1.1"], ["v1.1"]),
    ],
)
def test_tasks_are_chosen_by_name_or_by_their_entrys(names, expected):
    config = config_of("cola", "sst2", "qa.colour", "qa.sound", "qas", "v1.1")
    assert with_tasks(config, names).task_names == expected
    assert len(config.tasks) == 6


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["cola", "sst"], ["unknown task 'sst'", "some of cola, sst2, qa.sound", "found:    sst", "`sst2`"]),
        (["q", ".sound"], ["unknown task 'q'", "found:    q, .sound"]),
        ([""], ["unknown task ''", "found:    nothing", "correct the option"]),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused(names, parts):
    with pytest.raises(UserError) as caught:
        with_tasks(config_of("cola", "sst2", "qa.sound"), names)
    assert all(part in str(caught.value) for part in parts), caught.value
