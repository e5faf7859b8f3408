"""The sections of a configuration beside its tasks: adapter, mixing, capture, training, study."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from ortholora.config.bounds import LONGEST_NAME, MOST_STEPS
from ortholora.config.strict import Seed, Strict, wrong

# What did best in the studies of benchmarks/gaps, and was nowhere surely worse than joint training.
RECOMMENDED_RULE = "gradnorm(alpha=2)"


class LoraSection(Strict):
    """The adapter."""

    r: int = Field(8, gt=0, le=16_384, description="Rank.")
    alpha: float = Field(16, gt=0, le=1e6, description="Scaling numerator: the update is multiplied by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the LoRA input.")
    target_modules: str | list[str] = Field(
        "all-linear", description="Modules to adapt: name endings, a regular expression, or `all-linear`."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(r) (rank-stabilised LoRA).")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments for `peft.LoraConfig`, passed on as they are."
    )


class MixingSection(Strict):
    """How a step's batch is put together."""

    quota: Literal["equal", "proportional", "temperature"] = Field(
        "equal",
        description="Rows per task and step: `equal`, `proportional` to the task's size, or size^(1/temperature).",
    )
    unit: Literal["rows", "tokens"] = Field(
        "rows",
        description="What `quota` divides. `tokens`: a task with long rows gets fewer of them, so that the tasks' "
        "tokens in a step are, on average, as `quota` says; for `temperature` the size of a task is then its tokens. "
        "The rows of a whole step are as many either way.",
    )
    rows_per_task: int = Field(
        8, gt=0, le=65_536, description="Mean number of rows per task in one optimizer step; times T is the whole step."
    )
    temperature: float = Field(2.0, ge=1, le=1000, description="Temperature of `quota: temperature`.")
    layout: Literal["auto", "mixed", "by-length", "by-task", "padding-free"] = Field(
        "auto",
        description="How a step's rows are cut into micro-batches: `by-length` puts rows of like length together and "
        "cuts where padding and launches cost least; `mixed` gives each micro-batch its share of every task; `by-task` "
        "puts one task in each; `padding-free` lays rows end to end (for backbones that keep them apart, which is "
        "tried out; fast with flash attention only). `auto` is `by-length`; `by-task` for adapters that cannot be "
        "split by row; `padding-free` with flash attention on an accelerator. Results are the same but for rounding "
        "and dropout.",
    )
    micro_batches: int | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Exactly so many micro-batches. Default: as many as cost least; one with `mixed`.",
    )
    max_tokens: int = Field(
        16384, gt=0, le=1_000_000_000, description="Most tokens of a micro-batch, padding included."
    )
    launch_tokens: float | None = Field(
        None,
        ge=0,
        le=1e9,
        description="What one more micro-batch costs, in tokens. Default: an estimate from the device and the size of "
        "the backbone.",
    )

    @model_validator(mode="after")
    def _check(self) -> MixingSection:
        if self.layout == "by-task" and self.micro_batches is not None:
            raise wrong(
                "`micro_batches` without `layout: by-task`, which decides their number itself",
                f"`micro_batches: {self.micro_batches}`",
                "remove one of the two",
            )
        return self


class CaptureSection(Strict):
    """How task gradients are computed and kept."""

    fused: bool = Field(
        True,
        description="Run LoRA layers over plain linear layers in one fused step, which is faster. With a bfloat16 "
        "backbone it computes LoRA products in bfloat16, as autocast does.",
    )
    buffer_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Precision in which task gradients are kept; bfloat16 halves their memory."
    )


#: Experiment trackers that are started and ended run by run, and tested; each is an extra of its own name.
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


def _one_or_several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


#: What a task counts in a mean.
Weight = Annotated[float, Field(ge=0, le=1e6)]


class TrainingSection(Strict):
    """The optimisation; the same for every method of a study."""

    steps: int = Field(600, gt=0, le=MOST_STEPS, description="Optimizer steps.")
    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate of AdamW.")
    head_learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of the task heads. Default: `learning_rate`."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    warmup_steps: int = Field(0, ge=0, description="Linear warm-up steps.")
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        "linear", description="Learning-rate schedule after the warm-up."
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping after the rule; 0 turns it off.")
    eval_every: int = Field(0, ge=0, le=MOST_STEPS, description="Evaluate every so many steps; 0: only at the end.")
    selection: Literal["last", "best"] = Field(
        "last",
        description="Checkpoint to keep: the last, or the best by mean metric on dev "
        "(needs `eval_every`). It is chosen on the rows it is scored on, which flatters `single` most: that chooses "
        "for each task by itself.",
    )
    selection_by: Literal["mean", "worst"] = Field(
        "mean",
        description="With `selection: best`: the best checkpoint is the one with the best mean over tasks, or the one "
        "whose worst task is best. `patience` goes by the same.",
    )
    selection_weights: dict[str, Weight] = Field(
        default_factory=dict,
        description="With `selection: best`: task → its weight in that mean, 0 for a task that is not to count. "
        "Default: 1 for all.",
    )
    patience: int = Field(
        0,
        ge=0,
        le=MOST_STEPS,
        description="With `selection: best`: stop after so many evaluations without a better one; 0: never.",
    )
    patience_per_task: int = Field(
        0,
        ge=0,
        le=MOST_STEPS,
        description="A task whose metric on dev has not got better for so many evaluations stops: its rows leave the "
        "batch, and the others go on (needs `eval_every`); 0: never.",
    )
    save_every: int = Field(
        200, ge=0, le=MOST_STEPS, description="Checkpoint every so many steps; 0: only the final result."
    )
    log_every: int = Field(10, gt=0, le=MOST_STEPS, description="Log losses and conflict figures every so many steps.")
    report_to: Annotated[list[Tracker], BeforeValidator(_one_or_several)] = Field(
        default_factory=list,
        description="Experiment trackers that get the logs, one or a list: TensorBoard, Weights & Biases, MLflow, "
        "trackio; each needs the extra of its name. See docs/training.md.",
    )
    tensorboard: bool = Field(False, description="Deprecated: write `report_to: tensorboard`.")
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="Further `transformers.TrainingArguments`, passed on as they are; they win over the keys above.",
    )

    #: What the user should know of keys that are read as newer ones.
    _notes: list[str] = PrivateAttr(default_factory=list)

    @model_validator(mode="after")
    def _read_old_keys(self) -> TrainingSection:
        self.report_to = list(dict.fromkeys(self.report_to))
        if self.tensorboard:
            self.tensorboard = False  # so that there is one place to look
            self.report_to = list(dict.fromkeys([*self.report_to, "tensorboard"]))
            self._notes = ["`training.tensorboard` is deprecated: write `training.report_to: tensorboard`."]
        return self

    @property
    def notes(self) -> list[str]:
        """Sentences about keys that are deprecated, for whoever wrote them."""
        return self._notes

    @model_validator(mode="after")
    def _check(self) -> TrainingSection:
        if self.warmup_steps >= self.steps:
            raise wrong(
                f"fewer `warmup_steps` than the {self.steps} `steps`",
                f"`warmup_steps: {self.warmup_steps}`",
                "lower it, or train longer",
            )
        if self.selection == "best" and not self.eval_every:
            raise wrong(
                "`eval_every` greater than 0 with `selection: best`",
                "`eval_every: 0`",
                "set `eval_every`, for example to 100",
            )
        if self.selection_by != "mean" and self.selection_weights:
            raise wrong(
                "no `selection_weights` with `selection_by: worst`, which compares the tasks as they are",
                "both",
                "remove one of the two",
            )
        if (self.selection_by != "mean" or self.selection_weights) and self.selection != "best":
            raise wrong(
                "`selection: best` with `selection_by` and `selection_weights`",
                f"`selection: {self.selection}`",
                "set `selection: best`, or remove them",
            )
        if self.patience_per_task and not self.eval_every:
            raise wrong(
                "`eval_every` greater than 0 with `patience_per_task`",
                "`eval_every: 0`",
                "set `eval_every`, for example to 100",
            )
        if self.patience and self.selection != "best":
            raise wrong(
                "`selection: best` with `patience`", "`selection: last`", "set `selection: best` or remove `patience`"
            )
        return self


class MethodConfig(Strict):
    """A method of a study beyond the plain names: a rule with a block, or with settings of its own."""

    name: str = Field(
        description="Name in the table, for example `ortho-layer`.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        max_length=LONGEST_NAME,
    )
    rule: str = Field("ortho", description="Rule: a registered name, or `module:attribute` of your own.")
    block: Literal["matrix", "layer", "all"] | None = Field(
        None, description="What conflict is judged on. Default: the configuration's `block`."
    )
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of this method alone, by dotted key. The report says that it had them.",
    )
    groups: list[list[str]] | None = Field(
        None,
        description="An adapter for each group of tasks, for example `[[cola, sst2], [stsb]]`: every task in one "
        "group. `ortholora diagnose --groups K` proposes some. Default: one adapter for all tasks.",
    )


def _default_methods() -> list[str | MethodConfig]:
    return ["single", "joint", RECOMMENDED_RULE, "ortho"]


class SweepSection(Strict):
    """Values that are tried out for every method before the study, and rows to choose on."""

    values: dict[str, list[Any]] = Field(
        min_length=1,
        description="Dotted key → the values to try, for example `training.learning_rate: [1e-3, 3e-3]`; of several "
        "keys, every combination. Keys that move together have commas between them, and lists as values: "
        "`mixing.rows_per_task, training.steps: [[8, 100], [2, 400]]`.",
    )
    rows: int = Field(
        200,
        ge=10,
        le=1_000_000_000,
        description="Training rows of each task to choose on: drawn with `data_seed`, class by class, at most a fifth "
        "of the task's. No run of the study trains on them or is scored on them.",
    )
    seeds: list[Seed] = Field(
        default_factory=lambda: [100], min_length=1, description="Seeds of the runs that choose; none of `seeds`."
    )

    @model_validator(mode="after")
    def _check(self) -> SweepSection:
        trials = math.prod(map(len, self.values.values()))
        if trials > _MOST_COMBINATIONS:
            raise wrong(f"at most {_MOST_COMBINATIONS} combinations", f"{trials:,}", "try fewer values, or fewer keys")
        return self


#: Every combination is trained by every method.
_MOST_COMBINATIONS = 1000


class MergeSection(Strict):
    """What the methods `merge-linear`, `merge-ties` and `merge-dare` do with the single adapters."""

    scale: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="What the merged update is multiplied by. Default: 0.4 (`merge-linear`, `merge-dare`: of the sum "
        "over tasks), 1 (`merge-ties`: of the mean over the tasks that agree).",
    )
    density: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Share of each task's values that is kept: the largest (`merge-ties`), or drawn (`merge-dare`).",
    )
    rank: int | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Rank that the result of `merge-ties` and `merge-dare` is cut to. Default: the sum of the single "
        "adapters' ranks, at which `merge-linear` is exact.",
    )
    weights: dict[str, float] = Field(
        default_factory=dict, description="Task → what its update is multiplied by before. Default: 1 for all."
    )


class StudySection(Strict):
    """What `compare` compares."""

    methods: list[str | MethodConfig] = Field(
        default_factory=_default_methods,
        description="`single` (one adapter per task), `joint`, rules by name, mappings of `name`, `rule`, `block`, "
        "`set`, `groups`, or a baseline: `joint-wide` (joint training with T times the rank), `merge-linear`, "
        "`merge-ties`, `merge-dare` (one adapter merged out of the single ones, without training). `single` and "
        "`joint` are always run; the first rule is what the headline of the report is about.",
    )
    seeds: list[Seed] = Field(
        default_factory=lambda: [0, 1], min_length=1, max_length=1000, description="One run per seed and method."
    )
    merge: MergeSection = Field(
        default_factory=MergeSection, description="How single adapters are merged; see docs/compare.md."
    )
    bootstrap: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples for the intervals.")
    sweep: SweepSection | None = Field(
        None,
        description="Choose settings for every method, `single` and `joint` included, before it is compared; see "
        "docs/compare.md.",
    )

    @model_validator(mode="after")
    def _check(self) -> StudySection:
        if len(set(self.seeds)) < len(self.seeds):
            raise wrong("different `seeds`", f"{self.seeds[:20]}", "remove the one that is there twice")
        return self
