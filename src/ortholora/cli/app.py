"""The command line: thin, and the only place that prints.

Nothing here imports torch before a command runs, so that `--help` and configuration errors are instant.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ortholora.errors import UserError, did_you_mean, file_error

if TYPE_CHECKING:
    from ortholora.config.schema import Config
    from ortholora.data.task import TaskData

app = typer.Typer(
    name="ortholora",
    help="Train one LoRA adapter on many tasks, and see what projecting conflicting gradients bought.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML configuration; `demo` is the embedded one (extra `[demo]`).")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder for the results; default `runs/CONFIG-NAME`.")]
DataOption = Annotated[Path | None, typer.Option("--data-dir", help="Folder that the tasks' files are relative to.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. `tasks.cola.weight=2`.")
]
SeedsOption = Annotated[str | None, typer.Option("--seeds", metavar="0,1,2", help="Seeds, separated by commas.")]
TasksOption = Annotated[
    str | None, typer.Option("--tasks", metavar="A,B", help="Only these tasks of the file, separated by commas.")
]
JobsOption = Annotated[
    int,
    typer.Option(
        "--jobs",
        min=1,
        help="Runs at once, each in a process of its own: on GPUs one after the other of them, on the CPU with its "
        "share of the cores. Steps that were timed so are no measure of cost.",
    ),
]
StepsOption = Annotated[int | None, typer.Option("--max-steps", min=1, help="Optimizer steps, instead of the file's.")]


@app.command()
def train(
    config: ConfigArgument,
    out: OutOption = None,
    data_dir: DataOption = None,
    set_: SetOption = None,
    seeds: SeedsOption = None,
    max_steps: StepsOption = None,
    only: TasksOption = None,
) -> None:
    """Train one adapter on all tasks of CONFIG with its rule; start again to resume."""
    with _user_errors():
        settings, base = _load(config, set_, seeds, max_steps)
        settings = _chosen(_split(_local(settings, data_dir), base, data_dir), only)
        chosen = _seeds(seeds) or [settings.seed]
        folder = out or _default_out(config)
        from ortholora.study.train import train_seeds

        tasks = _read(settings, base, data_dir)
        with _progress() as progress:
            results = train_seeds(settings, tasks, folder, chosen, progress, data_dir or base)
        console.print(_metrics_table({path.name: result for path, result in results.items()}))
        path = next(iter(results))
        _say_how(results[path])
        saved = ", ".join(str(where) for where in results)
        heads = "" if settings.is_language else ", with the task heads beside it"
        _say(f"Saved in {saved}: a plain PEFT adapter{heads}.")
        _suggest_predict(path)


def _say_how(record: Any) -> None:
    """How the steps of a run were computed."""
    padding = f"{100 * record.padding:.0f} % padding"
    _say(f"{record.micro_batches:.1f} micro-batches a step, {padding}, {1000 * record.step_seconds:.0f} ms a step.")
    for line in record.provenance.get("capture", []):
        _say(f"Capture: {line}.")


@app.command()
def compare(
    config: ConfigArgument,
    out: OutOption = None,
    data_dir: DataOption = None,
    set_: SetOption = None,
    seeds: SeedsOption = None,
    max_steps: StepsOption = None,
    only: TasksOption = None,
    jobs: JobsOption = 1,
) -> None:
    """Train each task alone, all jointly, and with each rule; print and save the comparison."""
    with _user_errors():
        settings, base = _load(config, set_, seeds, max_steps)
        settings = _chosen(_split(_local(settings, data_dir), base, data_dir), only)
        folder = out or _default_out(config)
        from ortholora.study.compare import compare as run_study
        from ortholora.study.jobs.sharing import describe, divide_this_machine
        from ortholora.study.report.markdown import to_table

        tasks = _read(settings, base, data_dir)
        if jobs > 1:
            _say(describe(divide_this_machine(jobs)))
        with _progress() as progress:
            summary = run_study(settings, tasks, folder, progress, data_dir or base, jobs, _quiet)
        console.print(to_table(summary))
        for sentence in summary["verdict"]:
            console.print(f"• {sentence}", highlight=False)
        for note in summary.get("notes", []):
            console.print(f"[dim]• {note}[/dim]", highlight=False)
        _say(f"Wrote {folder / 'summary.md'}, summary.json and summary.png")
        _suggest_predict(_adapter_to_try(folder, summary))


@app.command()
def evaluate(
    run: RunArgument,
    data_dir: DataOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate a finished run on its tasks' dev data."""
    with _user_errors():
        from ortholora.models.loading import load_card
        from ortholora.models.predictor import load

        load_card(run)
        settings, base = _run_config(run)
        tasks = _read(settings, base, data_dir, show=not as_json)
        from ortholora.runs.evaluate import evaluate as evaluate_run

        _quiet()
        scores = evaluate_run(load(run), tasks)
        if as_json:
            print(json.dumps(scores, indent=2))
        else:
            console.print(_scores_table(scores, {task.name: str(task.spec.metric) for task in tasks}))


@app.command()
def predict(
    run: RunArgument,
    task: Annotated[str, typer.Option("--task", help="Name of the task.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...",
            help="Texts (a chat: also messages in JSON); for a pair task two after two. Without: standard input.",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            help="One text a line; a pair is separated by a tab. For a language model also JSON: a text, or messages.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Answer one task for texts given as arguments, in a file, or on standard input."""
    with _user_errors():
        from ortholora.models.loading import load_card
        from ortholora.models.predictor import load

        card = load_card(run)
        spec = card.tasks[card.index_of(task)]
        rows = _rows(texts, file, spec.num_texts)
        if spec.reads_json:
            rows = [_question(row[0], quoted=not texts) for row in rows]
        _quiet()
        for row, answer in zip(rows, load(run).predict(task, rows), strict=True):
            print(_answer(row, answer, as_json))


# ---- loading ---------------------------------------------------------------------------------------------


def _load(name: str, overrides: list[str] | None, seeds: str | None, max_steps: int | None) -> tuple[Config, Path]:
    from ortholora.config.file import load_config

    # A script has its own folder on the path, not the one the user stands in with a rule of their own.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    path = _config_path(name)
    extra = list(overrides or [])
    if max_steps is not None:
        section = load_config(path, extra).training
        # The warm-up keeps its share, or a short trial would never leave it.
        warmup = section.warmup_steps * max_steps // section.steps
        extra += [f"training.warmup_steps={warmup}", f"training.steps={max_steps}"]
    if seeds is not None:
        extra.append(f"study.seeds={_seeds(seeds)}")
    return load_config(path, extra), path.parent


def _local(settings: Config, data_dir: Path | None) -> Config:
    """With --data-dir the files are meant, now and when the finished run is evaluated: forget the hub."""
    if data_dir is None:
        return settings
    tasks = [task.model_copy(update={"hub": None}) if task.train else task for task in settings.tasks]
    return settings.model_copy(update={"tasks": tasks})


def _split(settings: Config, base: Path, data_dir: Path | None) -> Config:
    """Make the tasks of a file whose `split_by` column names them."""
    if all(task.split_by is None for task in settings.tasks):
        return settings
    from ortholora.data.read import split_config

    return split_config(settings, base=base, data_dir=data_dir)


def _chosen(settings: Config, only: str | None) -> Config:
    """The tasks of --tasks."""
    if only is None:
        return settings
    wanted = [name.strip() for name in only.split(",")]
    # The name of an entry with `split_by` stands for all of its tasks.
    chosen = {w: [n for n in settings.task_names if n == w or (w and n.startswith(f"{w}."))] for w in wanted}
    unknown = [name for name, tasks in chosen.items() if not tasks]
    if unknown:
        raise UserError(
            f"--tasks: unknown task {unknown[0]!r}",
            expected="some of " + ", ".join(settings.task_names),
            found=", ".join(unknown) if only.strip() else "nothing",
            todo=did_you_mean(unknown[0], settings.task_names, "correct the option"),
        )
    names = {name for tasks in chosen.values() for name in tasks}
    return settings.model_copy(update={"tasks": [task for task in settings.tasks if task.name in names]})


def _config_path(name: str) -> Path:
    if name == "demo" and not Path(name).exists():
        return Path(__file__).parents[1] / "study" / "demo.yaml"
    return Path(name)


def _default_out(config: str) -> Path:
    return Path("runs") / Path(config).stem


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(
            "--seeds cannot be read",
            expected="different whole numbers from 0 on, separated by commas, such as 0,1,2",
            found=text or "nothing",
            todo="correct the option",
        )
    return seeds


def _read(settings: Config, base: Path, data_dir: Path | None, show: bool = True) -> list[TaskData]:
    from ortholora.data.read import read_tasks

    with errors.status("Reading the tasks"):
        tasks = read_tasks(settings, base=base, data_dir=data_dir)
    for task in tasks if show else ():
        rows = f"{len(task.train):,} training and {len(task.dev):,} dev rows"
        console.print(f"[bold]{task.name}[/bold]: {rows}, {task.spec.metric}", highlight=False)
    return tasks


def _run_config(run: Path) -> tuple[Config, Path]:
    from ortholora.config.file import load_config
    from ortholora.runs.folder import CONFIG_FILE, data_base

    return load_config(run / CONFIG_FILE), data_base(run)


def _rows(texts: list[str] | None, file: Path | None, num_texts: int) -> list[Any]:
    if texts and file:
        raise UserError(
            "Texts come from two sources",
            expected="texts as arguments, or --file, or standard input",
            found=f"{len(texts)} arguments and --file {file}",
            todo="use one of them",
        )
    if texts:
        if len(texts) % num_texts:
            raise UserError(
                "A pair is incomplete",
                expected="two texts for every pair",
                found=f"{len(texts)} text{'s' if len(texts) > 1 else ''}",
                todo="give first and second text one after the other, each in quotes",
            )
        return [tuple(texts[i : i + num_texts]) for i in range(0, len(texts), num_texts)]
    rows = [_row(number, line, num_texts) for number, line in enumerate(_lines(file), 1) if line.strip()]
    if not rows:
        raise UserError(
            "There is no text to predict",
            expected="texts as arguments, in --file, or on standard input, one a line",
            found="nothing",
            todo='for example: ortholora predict RUN --task NAME "some text"',
        )
    return rows


def _row(number: int, line: str, num_texts: int) -> tuple[str, ...]:
    if num_texts == 1:
        return (line,)
    row = tuple(line.split("\t"))
    if len(row) != 2 or not all(part.strip() for part in row):
        raise UserError(
            f"Line {number} is no pair",
            expected="two texts separated by one tab",
            found=repr(line),
            todo="correct or remove the line",
        )
    return row


def _question(line: str, quoted: bool) -> Any:
    """A question to a language model: a text as it is, or the messages of a chat in JSON.

    In a file, where a line is a question, a text may be in JSON too (`quoted`), to hold line breaks.
    """
    if not line.lstrip().startswith(('"', "[")):
        return line
    try:
        content = json.loads(line)
    except json.JSONDecodeError:
        return line  # a text that starts like this
    is_chat = isinstance(content, list) and bool(content) and all(isinstance(part, dict) for part in content)
    return content if is_chat or (quoted and isinstance(content, str)) else line


def _lines(file: Path | None) -> list[str]:
    if file is None:
        if sys.stdin.isatty():
            errors.print("[dim]Reading texts from standard input, one a line; end with Ctrl-D.[/dim]")
        return sys.stdin.read().splitlines()
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        found = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(
            f"--file {file} cannot be read", expected="a text file in UTF-8", found=found, todo="correct the option"
        ) from error


# ---- showing ---------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    """Print a line that is not wrapped: a path in it can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _answer(row: Any, answer: Any, as_json: bool) -> str:
    if as_json:
        content = {
            "text": row[0] if isinstance(row, tuple) and len(row) == 1 else row,
            "label": answer.label,
            "value": answer.value,
        }
        content |= {"scores": answer.scores, "answer": answer.text}
        return json.dumps({k: v for k, v in content.items() if v is not None}, ensure_ascii=False)
    text = " | ".join(row) if isinstance(row, tuple) else row if isinstance(row, str) else json.dumps(row)
    if answer.text is not None:
        shown = answer.text
    elif answer.value is not None:
        shown = f"{answer.value:.3f}"
    else:
        shown = f"{answer.label} ({answer.scores[answer.label]:.0%})"
    return f"{shown}\t{text}".replace("\r", "\\r").replace("\n", "\\n")  # one line an answer


def _metrics_table(results: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("run", "task", "metric", "value", title="Dev results")
    for name, result in results.items():
        for task, value in result.metrics.items():
            table.add_row(name, task, result.metric_names[task], f"{100 * value:.2f}")
        table.add_row(name, "average", "", f"{100 * sum(result.metrics.values()) / len(result.metrics):.2f}")
    return table


def _scores_table(scores: dict[str, dict[str, float]], metrics: dict[str, str]) -> Any:
    """Every score of every task, the task's own metric first and bold."""
    from rich.table import Table

    table = Table("task", "metric", "value", title="Dev results, in points; bold: the task's metric")
    for task, values in scores.items():
        main = metrics[task]
        table.add_row(task, f"[bold]{main}[/bold]", f"[bold]{100 * values['main']:.2f}[/bold]")
        for name, value in values.items():
            if name == "loss":
                table.add_row(task, "loss, nats a token", f"{value:.4f}")
            elif name not in ("main", main):
                table.add_row(task, name, f"{100 * value:.2f}")
    return table


def _adapter_to_try(folder: Path, summary: dict[str, Any]) -> Path:
    name = summary["recovered_method"] or "joint"
    return folder / "runs" / name / f"seed-{summary['seeds'][0]}"


def _suggest_predict(folder: Path) -> None:
    from ortholora.models.loading import load_card

    task = load_card(folder).tasks[0]
    texts = '"a text of your own"' if task.num_texts == 1 else '"a first text" "a second text"'
    console.print("Try it:", style="bold")
    print(f"  {_command()} predict {shlex.quote(str(folder))} --task {task.name} {texts}")


def _command() -> str:
    """How this command was called, so that the suggested one can be pasted."""
    called = sys.argv[0]
    return called if Path(called).name == "ortholora" and os.sep in called and not _on_path(called) else "ortholora"


def _on_path(called: str) -> bool:
    return str(Path(called).resolve().parent) in os.environ.get("PATH", "").split(os.pathsep)


@contextmanager
def _progress() -> Iterator[Any]:
    from ortholora.cli.progress import show_progress

    _quiet()
    with show_progress(console) as progress:
        yield progress


def _quiet() -> None:
    """Turn off the chatter of the libraries; what matters is said here or raised."""
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for library in ("accelerate", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextmanager
def _user_errors() -> Iterator[None]:
    """Show a user's mistake as one message and exit with 2; a wanted stop exits with 130."""
    # PEFT imports it where it is installed, and on a CPU it complains of a kernel that is not needed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        yield
    except UserError as error:
        raise _refused(error) from None
    except OSError as error:
        raise _refused(file_error(error)) from None
    except KeyboardInterrupt:
        errors.print("Stopped. Start the same command again to go on from the last checkpoint.")
        raise typer.Exit(130) from None


def _refused(error: UserError) -> typer.Exit:
    errors.print(f"[bold red]Error:[/bold red] {_escape(str(error))}", highlight=False, soft_wrap=True)
    return typer.Exit(2)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
