"""The commands. Each one reads, calls the library, and shows.

Nothing here imports torch before a command runs, so that `--help` and configuration errors are instant.
"""

from __future__ import annotations

import json
from pathlib import Path

import typer

from ortholora.cli import showing
from ortholora.cli.console import console, quiet, say, user_errors
from ortholora.cli.options import (
    AnswersOption,
    BackboneOption,
    Choices,
    ConfigArgument,
    CpusOption,
    DataOption,
    DemoOption,
    DiagnosisOption,
    ExportOption,
    FewStepsOption,
    FileOption,
    FilesArgument,
    ForceOption,
    GpusOption,
    GroupsOption,
    HubIdArgument,
    JobsOption,
    JsonLinesOption,
    JsonOption,
    MeasureOption,
    MessageOption,
    NewConfigOption,
    OnOption,
    PrivateOption,
    PushedArgument,
    ReportOption,
    RevisionOption,
    RowsFileOption,
    RowsOption,
    RunArgument,
    SetOption,
    StepsOption,
    StrictOption,
    StudiesArgument,
    TaskOption,
    TasksOption,
    TextColumnsOption,
    TextsArgument,
    YesOption,
    check_words,
    takes_choices,
)
from ortholora.cli.questions import check_both, read_questions
from ortholora.cli.reading import (
    DEMO,
    check_demo,
    diagnosis_folder,
    prepare,
    questions_of,
    read,
    settings_of,
    words_of,
)
from ortholora.cli.where import Where
from ortholora.ranks.launch import index

app = typer.Typer(
    name="ortholora",
    help="Train one LoRA adapter on many tasks, and see what projecting conflicting gradients bought.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.command()
@user_errors()
def init(
    files: FilesArgument,
    backbone: BackboneOption = None,
    out: NewConfigOption = Path("tasks.yaml"),
    yes: YesOption = False,
    force: ForceOption = False,
) -> None:
    """Look at data files, ask what they leave open, and write a configuration for them."""
    from ortholora.cli.asking import asker
    from ortholora.data.guess.make import make_configuration

    check_words({"files": files, "backbone": backbone, "out": out})
    showing.show_made(make_configuration(files, out, backbone, asker(yes), force))


@app.command()
@takes_choices
@user_errors()
def check(
    choices: Choices, measure: MeasureOption = True, strict: StrictOption = False, as_json: JsonOption = False
) -> None:
    """Say what can be known of CONFIG without training: data, plan, capture, memory, time. Exit code 2: errors."""
    from ortholora.cli.checking import run_check, show_check

    found = run_check(choices, measure)
    if as_json:
        print(json.dumps(found.to_json(strict), indent=2, ensure_ascii=False))
    else:
        show_check(found)
    if code := found.exit_code(strict):
        raise typer.Exit(code)


@app.command()
@takes_choices
@user_errors(processes="several")
def train(choices: Choices) -> None:
    """Train one adapter on all tasks of CONFIG with its rule; start again to resume."""
    start = prepare(choices)
    from ortholora.cli.progress import show_progress
    from ortholora.study.train import train_seeds

    quiet()
    seeds = start.seeds or [start.config.seed]
    with show_progress(console) as progress:
        results = train_seeds(start.config, start.tasks, start.out, seeds, progress, start.data)
    if index() == 0:
        showing.show_trained(results)


@app.command()
@takes_choices
@user_errors()
def compare(
    choices: Choices,
    jobs: JobsOption = None,
    on: OnOption = None,
    gpus_per_run: GpusOption = None,
    cpus_per_run: CpusOption = 1,
) -> None:
    """Train each task alone, all jointly, and with each rule; print and save the comparison."""
    run_comparison(choices, Where(jobs, on, gpus_per_run, cpus_per_run))


def run_comparison(choices: Choices, where: Where) -> None:
    """Do a study, and show what came out."""
    where.check()
    start = prepare(choices)
    from ortholora.cli.progress import show_progress
    from ortholora.study.compare import compare as run_study

    with where.workers(start.out) as workers:
        quiet()
        with show_progress(console) as progress:
            jobs = where.jobs or 1
            summary = run_study(start.config, start.tasks, start.out, progress, start.data, jobs, quiet, workers)
    showing.show_study(start.out, summary)


@app.command()
@user_errors()
def demo(out: DemoOption = Path("demo-run"), max_steps: StepsOption = None, jobs: JobsOption = None) -> None:
    """Compare on three real tasks that come as packages (extra `[demo]`): no data, no hub, about 10 minutes."""
    check_demo()
    run_comparison(Choices(DEMO, out, max_steps=max_steps), Where(jobs))


@app.command()
@user_errors()
def diagnose(
    config: ConfigArgument,
    steps: FewStepsOption = None,
    rows: RowsOption = 192,
    groups: GroupsOption = None,
    out: DiagnosisOption = None,
    data_dir: DataOption = None,
    set_: SetOption = None,
    only: TasksOption = None,
) -> None:
    """Say which tasks help and which hurt each other, how surely, and what to compare; before training."""
    choices = Choices(config, out or diagnosis_folder(config), data_dir, set_, only=only)
    start = prepare(choices)
    from ortholora.cli.progress import show_progress
    from ortholora.study.diagnose.diagnose import diagnose as run_diagnosis

    quiet()
    with show_progress(console) as progress:
        words = ["ortholora", "compare", *words_of(choices)]
        found = run_diagnosis(start.config, start.tasks, start.out, steps, rows, progress, words, groups)
    showing.show_diagnosis(start.out, found)


@app.command()
@user_errors()
def report(folders: StudiesArgument, out: ReportOption = None) -> None:
    """Write what a study found as one page of HTML. Of several studies: a page with all of them."""
    from ortholora.study.report.door import report_on

    path = report_on(folders, out)
    say(f"Wrote {path}: open it in a browser.")


@app.command()
@user_errors()
def evaluate(run: RunArgument, data_dir: DataOption = None, as_json: JsonOption = False) -> None:
    """Evaluate a finished run on its tasks' dev data, or on their test data where they have some."""
    from ortholora.models.loading import load_card
    from ortholora.models.predictor import load

    check_words({"run": run, "data_dir": data_dir})
    load_card(run)
    config, base = settings_of(run)
    tasks = read(config, base, data_dir, show=not as_json)
    from ortholora.runs.evaluate import evaluate_run

    quiet()
    scores = evaluate_run(load(run), tasks)
    if as_json:
        print(json.dumps(scores, indent=2))
    else:
        parts = {task.name: task.scored_on for task in tasks}
        console.print(showing.scores_table(scores, {task.name: str(task.spec.metric) for task in tasks}, parts))


@app.command()
@user_errors()
def predict(
    run: RunArgument,
    task: TaskOption,
    texts: TextsArgument = None,
    file: FileOption = None,
    as_json: JsonLinesOption = False,
    data: RowsFileOption = None,
    out: AnswersOption = None,
    text: TextColumnsOption = None,
) -> None:
    """Answer one task for texts given as arguments, in a file, or on standard input; or for a large file."""
    from ortholora.models.loading import load_card
    from ortholora.models.predictor import load

    check_words({"run": run, "task": task, "texts": texts, "file": file, "data": data, "out": out, "text": text})
    card = load_card(run)
    if data is not None or out is not None or text is not None:
        predict_rows(run, task, *check_both(data, out, texts, file), text)
        return
    spec = card.tasks[card.index_of(task)]
    questions = read_questions(texts, file, spec.num_texts, dialogues=spec.reads_json)
    quiet()
    for question, answer in zip(questions, load(run).predict(task, questions), strict=True):
        print(showing.to_json_line(question, answer) if as_json else showing.to_line(question, answer))


def predict_rows(run: Path, task: str, data: Path, out: Path, text: str | None) -> None:
    """Answer the rows of a file of any size."""
    questions = questions_of(run, task, data, text)
    from ortholora.cli.row_progress import show_rows
    from ortholora.runs.predict import predict_file

    quiet()
    with show_rows(console) as progress:
        answered = predict_file(run, questions, out, progress)
    without = f"; {answered.problems:,} of them have a `problem` in place of an answer" if answered.problems else ""
    say(f"Wrote {out}: {answered.rows:,} rows{without}.")


@app.command()
@user_errors()
def export(run: RunArgument, out: ExportOption) -> None:
    """Merge the adapter of a finished run into its backbone: a folder for plain transformers, without PEFT."""
    check_words({"run": run, "out": out})
    from ortholora.models.export import export as write_export

    quiet()
    showing.show_export(out, write_export(run, out))


@app.command()
@user_errors()
def push(
    run: PushedArgument,
    hub_id: HubIdArgument,
    private: PrivateOption = False,
    revision: RevisionOption = None,
    commit_message: MessageOption = None,
) -> None:
    """Push the adapter of a finished run, or an exported model, to the Hugging Face hub, with its model card."""
    check_words({"run": run, "hub_id": hub_id, "revision": revision, "commit_message": commit_message})
    quiet()
    from ortholora.cli.pushing import run_push
    from ortholora.runs.push import Target

    run_push(run, Target(hub_id, revision, private, commit_message))
