"""What tasks of all kinds share: where the data lie, the metric, the weight."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ortholora.config.bounds import LONGEST_NAME
from ortholora.config.strict import Revision, Strict, wrong
from ortholora.metrics import table

if TYPE_CHECKING:
    MetricName = str
else:
    # The names of the table, as pydantic and the generated page want them; a type checker cannot read a table.
    MetricName = Literal[tuple(table.METRICS)]

#: Names of the text columns and of the label column.
Columns = tuple[tuple[str, ...], str]
#: What `test` says for a half of the dev rows of a packaged data set.
OF_PACKAGE = "package"
#: What the data of a task hold: texts with a class or a number, prompts with completions, chats.
Form = Literal["classes", "values", "completions", "chats"]
#: Packaged data sets whose rows are chats; those of the others are texts with a label.
CHAT_PACKAGES = frozenset({"bbc-headline-writing"})


class HubSource(Strict):
    """Where a task's data lives on the Hugging Face hub."""

    path: str = Field(description="Data set id on the hub, for example `nyu-mll/glue`.")
    name: str | None = Field(None, description="Configuration (subset) of the data set, for example `cola`.")
    revision: Revision | None = Field(None, description="Commit or tag of the data set; pin it for repeatable results.")
    train_split: str = Field("train", description="Name of the training split.")
    dev_split: str = Field("validation", description="Name of the split to evaluate on.")
    test_split: str | None = Field(
        None, description="Name of the split to score on, with labels; as the task's `test`."
    )
    text: str | list[str] | None = Field(
        None,
        description="Text column, or two for a pair, where the hub's names differ from the task's `text` "
        "(`prompt`, `messages`).",
    )
    label: str | None = Field(
        None, description="Label column, where the hub's name differs from the task's `label` (`completion`)."
    )


class Task(Strict):
    """One task: a named data set, its loss and its metric."""

    #: What learns the task; the tasks of a configuration have one in common.
    learner: ClassVar[str]
    #: What its data hold.
    form: ClassVar[Form]

    name: str = Field(
        description="Name of the task, unique; used in tables, logs and `predict --task`.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        max_length=LONGEST_NAME,
    )
    kind: str
    train: str | None = Field(
        None,
        description="Training file (.tsv, .csv, .jsonl, .parquet), relative to `--data-dir` or to the configuration.",
    )
    dev: str | None = Field(None, description="File to evaluate on; same formats.")
    test: str | None = Field(
        None,
        description="File to score on, with labels; same formats and columns. `dev` is then there to choose on. "
        "`package` stands for a half of a packaged set's dev rows. Default: `dev` serves for both.",
    )
    hub: HubSource | None = Field(
        None, description="Data set on the hub; used when no `--data-dir` is given (or no local file is named)."
    )
    package: Literal["bbc-topic", "bbc-headline", "tweet-sentiment", "bbc-headline-writing"] | None = Field(
        None,
        description="A data set that is made from an installed package (extra `[demo]`); "
        "it brings its own columns, `text`, `label` and `messages` have no effect on it. `bbc-headline-writing` is a "
        "chat.",
    )
    split_by: str | None = Field(
        None,
        description="Column that names the task, such as `task` or `channel`: the entry becomes one task for every "
        "value in it.",
    )
    only: str | None = Field(None, description="Only the rows with this value in the `split_by` column; one task.")
    metric: MetricName | None = Field(
        None,
        description="Metric of the task. Default: `accuracy` (classification, or a closed set of answers), "
        "`pearson_spearman` (regression), `inverse_perplexity` (open answers). "
        "`accuracy_f1` and `pearson_spearman` are the means of the two, as GLUE reports them. "
        "`inverse_perplexity` is exp(−evaluation loss), the mean probability of a target token; `exact_match` and "
        "`rouge_l` compare generated answers (extra `[lm]`).",
    )
    weight: float = Field(1.0, gt=0, description="Weight of the task's mean loss in the sum over tasks.")
    max_train_rows: int | None = Field(
        None, gt=0, le=10**12, description="Keep only this many training rows (seeded draw)."
    )
    max_dev_rows: int | None = Field(
        None, gt=0, le=10**12, description="Keep only this many evaluation rows (seeded draw)."
    )
    max_test_rows: int | None = Field(None, gt=0, le=10**12, description="Keep only this many test rows (seeded draw).")
    bad_rows: Literal["error", "drop"] = Field(
        "error",
        description="What to do with rows that cannot be used: another number of fields than the first line, no JSON, "
        "an empty text or label, no number, no chat. `error` refuses the data. `drop` leaves them out, counts them, "
        "and lists them in `dropped_rows.json` of every run. A chat that the backbone's template refuses is none of "
        "them: it is refused.",
    )
    max_bad_rows: float = Field(
        0.05, gt=0, lt=1, description="Share of a file's rows that `bad_rows: drop` may leave out; more are refused."
    )
    tsv_quotes: bool = Field(
        False, description="Treat double quotes in a .tsv file as CSV quotes (default: as plain characters)."
    )

    @property
    @abstractmethod
    def columns(self) -> Columns:
        """The columns that the rows are read from."""

    @property
    def more_columns(self) -> tuple[str, ...]:
        """Columns that are read besides, as far as they are there."""
        return () if self.split_by is None else (self.split_by,)

    @property
    @abstractmethod
    def compares(self) -> tuple[table.Compares, ...]:
        """What the metrics that fit the task compare; the task's default metric is that of the first."""

    @property
    def has_targets(self) -> bool:
        """Whether rows have a class or a number; open answers have neither."""
        return self.compares[0] != "answers"

    @property
    def measure(self) -> table.Metric:
        """What the rest of the program has to know of the task's metric."""
        assert self.metric is not None  # the default is filled in
        return table.METRICS[self.metric]

    @property
    def fitting_metrics(self) -> list[str]:
        """Names of the metrics that fit the task."""
        return table.fitting(*self.compares)

    @property
    def metrics_of_many_labels(self) -> list[str]:
        """Those of them that do not need exactly two labels."""
        return [name for name in self.fitting_metrics if not table.METRICS[name].two_labels]

    @property
    def shown(self) -> str:
        """The task in a message about its metric."""
        return self.kind

    @classmethod
    def check_settings(cls, settings: Any) -> None:
        """Refuse settings of the whole configuration (a `Config`) that have no effect on such tasks."""

    @model_validator(mode="after")
    def _check_source(self) -> Task:
        if (self.train is None) != (self.dev is None):
            raise wrong(
                "both `train` and `dev`, or neither", f"only `{'train' if self.train else 'dev'}`", "add the other file"
            )
        if self.train is None and self.hub is None and self.package is None:
            raise wrong(
                "the task's data", "neither files nor `hub` nor `package`", "add `train:` and `dev:` (files), or `hub:`"
            )
        if self.package is not None and (self.package in CHAT_PACKAGES) != (self.form == "chats"):
            fits = "chat" if self.package in CHAT_PACKAGES else "classification"
            raise wrong(f"`kind: {fits}` with `package: {self.package}`", f"`kind: {self.kind}`", "correct `kind`")
        if self.only is not None and self.split_by is None:
            raise wrong("`split_by`, the column that holds it", f"only `only: {self.only}`", "add `split_by`")
        return self

    @model_validator(mode="after")
    def _check_test(self) -> Task:
        if self.test == OF_PACKAGE and (self.package is None or self.train is not None):
            raise wrong("a file in `test`", f"`test: {OF_PACKAGE}` without `package` alone", "name a file with labels")
        split = None if self.hub is None else self.hub.test_split
        if self.hub is not None and self.train is not None and (self.test is None) != (split is None):
            raise wrong(
                "both `test` and `hub.test_split`, or neither, since the task names files and the hub",
                f"only `{'test' if split is None else 'hub.test_split'}`",
                "add the other one",
            )
        if self.train is None and self.test is not None and split is not None:
            raise wrong("one test part", f"`test: {self.test}` and `hub.test_split: {split}`", "remove one of them")
        if self.max_test_rows is not None and self.test is None and split is None:
            raise wrong("`test` with `max_test_rows`", "no test part", "add `test`, or remove `max_test_rows`")
        return self

    @model_validator(mode="after")
    def _check_metric(self) -> Task:
        if self.metric is None:
            self.metric = table.default(self.compares[0])
        if self.metric not in self.fitting_metrics:
            known = ", ".join(self.fitting_metrics)
            raise wrong(f"a metric for {self.shown}", f"`metric: {self.metric}`", f"use one of {known}")
        return self
