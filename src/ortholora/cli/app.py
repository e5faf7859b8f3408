"""The commands. Each one reads, calls the library, and shows.

Nothing here imports torch before a command runs, so that `--help` and configuration errors are instant.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import typer

from ortholora.cli import documents, showing
from ortholora.cli.command import Outcome, command
from ortholora.cli.console import people, say
from ortholora.cli.options import (
    AnswersOption,
    BackboneOption,
    Choices,
    ConfigArgument,
    CpusOption,
    DataOption,
    DemoJobsOption,
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
    LabelledOption,
    LabelOption,
    MeasureOption,
    MessageOption,
    NewConfigOption,
    OneTaskOption,
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
    VersionOption,
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
    words_of,
)
from ortholora.cli.voice import hush_libraries, voice, worker_voice
from ortholora.cli.where import Where, jobs_for_small_runs

app: typer.Typer = typer.Typer(
    name="ortholora",
    help="Train one LoRA adapter on many tasks, see whether they fight, and prove what fixing it bought.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback()
def about(version: VersionOption = False) -> None:
    """What holds for every command."""


@command(app)
def init(
    files: FilesArgument,
    backbone: BackboneOption = None,
    out: NewConfigOption = Path("tasks.yaml"),
    yes: YesOption = False,
    force: ForceOption = False,
) -> Outcome:
    """Look at data files, ask what they leave open, and write a configuration for them."""
    from ortholora.cli.asking import asker
    from ortholora.data.guess.make import make_configuration

    check_words({"files": files, "backbone": backbone, "out": out})
    made = make_configuration(files, out, backbone, asker(yes), force)
    return Outcome(partial(showing.show_made, made), [str(made.path)], partial(documents.of_made, made))


@command(app)
@takes_choices
def check(choices: Choices, measure: MeasureOption = True, strict: StrictOption = False) -> Outcome:
    """Say what can be known of CONFIG without training: data, plan, capture, memory, time. Exit code 2: errors."""
    from ortholora.cli.checking import complain, run_check, show_check

    found = run_check(choices, measure)
    if voice.quiet and not voice.as_json:
        complain(found, strict)
    return Outcome(partial(show_check, found), [], partial(found.to_json, strict), found.exit_code(strict))


@command(app, processes="several")
@takes_choices
def train(choices: Choices) -> Outcome:
    """Train one adapter on all tasks of CONFIG with its rule; start again to resume."""
    start = prepare(choices)
    from ortholora.cli.progress import show_progress
    from ortholora.study.train import train_seeds

    hush_libraries()
    seeds = start.seeds or [start.config.seed]
    with show_progress(people()) as progress:
        results = train_seeds(start.config, start.tasks, start.out, seeds, progress, start.data)
    folders = [str(folder) for folder in results]
    return Outcome(partial(showing.show_trained, results), folders, partial(documents.of_trained, results))


@command(app)
@takes_choices
def compare(
    choices: Choices,
    jobs: JobsOption = None,
    on: OnOption = None,
    gpus_per_run: GpusOption = None,
    cpus_per_run: CpusOption = 1,
) -> Outcome:
    """Train each task alone, all jointly, and with each rule; print and save the comparison."""
    return run_comparison(choices, Where(jobs, on, gpus_per_run, cpus_per_run))


def run_comparison(choices: Choices, where: Where) -> Outcome:
    """Do a study, and tell what came out."""
    where.check()
    start = prepare(choices)
    from ortholora.cli.progress import show_progress
    from ortholora.study.compare import compare as run_study

    with where.workers(start.out) as workers:
        hush_libraries()
        with show_progress(people()) as progress:
            jobs, speak = where.jobs or 1, worker_voice()
            summary = run_study(start.config, start.tasks, start.out, progress, start.data, jobs, speak, workers)
    show, document = showing.show_study, documents.of_study
    return Outcome(partial(show, start.out, summary), [str(start.out)], partial(document, start.out, summary))


@command(app)
def demo(out: DemoOption = Path("demo-run"), max_steps: StepsOption = None, jobs: DemoJobsOption = None) -> Outcome:
    """Compare on three real tasks that come as packages (extra `[demo]`): no data, no hub, about 5 minutes."""
    check_demo()
    return run_comparison(Choices(DEMO, out, max_steps=max_steps), Where(jobs or jobs_for_small_runs()))


@command(app)
def diagnose(
    config: ConfigArgument,
    steps: FewStepsOption = None,
    rows: RowsOption = 192,
    groups: GroupsOption = None,
    out: DiagnosisOption = None,
    data_dir: DataOption = None,
    set_: SetOption = None,
    only: TasksOption = None,
) -> Outcome:
    """Say which tasks help and which hurt each other, how surely, and what to compare; before training."""
    choices = Choices(config, out or diagnosis_folder(config), data_dir, set_, only=only)
    start = prepare(choices)
    from ortholora.cli.progress import show_progress
    from ortholora.study.diagnose.diagnose import diagnose as run_diagnosis

    hush_libraries()
    with show_progress(people(), "Stopping after this step; finished points are kept.") as progress:
        words = ["ortholora", "compare", *words_of(choices)]
        found = run_diagnosis(start.config, start.tasks, start.out, steps, rows, progress, words, groups)
    show, document = showing.show_diagnosis, documents.of_diagnosis
    return Outcome(partial(show, start.out, found), [str(start.out)], partial(document, start.out, found))


@command(app)
def report(folders: StudiesArgument, out: ReportOption = None) -> Outcome:
    """Write what a study, or a diagnosis, found as one page of HTML. Of several studies: a page with all of them."""
    from ortholora.study.report.door import report_on

    path = report_on(folders, out)
    show = partial(say, f"Wrote {path}: open it in a browser.")
    return Outcome(show, [str(path)], lambda: {"report": path})


@command(app)
def evaluate(
    run: RunArgument,
    data_dir: DataOption = None,
    data: LabelledOption = None,
    task: OneTaskOption = None,
    text: TextColumnsOption = None,
    label: LabelOption = None,
) -> Outcome:
    """Evaluate a finished run on its tasks' test data, or dev data where they have none; or on another file."""
    from ortholora.cli.evaluating import Wanted, run_evaluation

    check_words({"run": run, "data_dir": data_dir, "data": data, "task": task, "text": text, "label": label})
    return run_evaluation(Wanted(run, data_dir, task, data, text, label))


@command(app, json_help="Print one JSON object a line: of each text, or with --out of the whole file.")
def predict(
    run: RunArgument,
    task: TaskOption,
    texts: TextsArgument = None,
    file: FileOption = None,
    data: RowsFileOption = None,
    out: AnswersOption = None,
    text: TextColumnsOption = None,
) -> Outcome:
    """Answer one task for texts given as arguments, in a file, or on standard input; or for a large file."""
    from ortholora.models.loading import load_card
    from ortholora.models.predictor import load

    check_words({"run": run, "task": task, "texts": texts, "file": file, "data": data, "out": out, "text": text})
    card = load_card(run)
    if data is not None or out is not None or text is not None:
        return predict_rows(run, task, *check_both(data, out, texts, file), text)
    spec = card.tasks[card.index_of(task)]
    questions = read_questions(texts, file, spec.num_texts, dialogues=spec.reads_json)
    hush_libraries()
    answers = load(run).predict(task, questions)
    lines = list(map(showing.to_line, questions, answers))
    objects = partial(map, documents.of_answer, questions, answers)
    return Outcome(partial(print, *lines, sep="\n"), lines, objects, one_a_line=True)


def predict_rows(run: Path, task: str, data: Path, out: Path, text: str | None) -> Outcome:
    """Answer the rows of a file of any size."""
    questions = questions_of(run, task, data, text)
    from ortholora.cli.row_progress import show_rows
    from ortholora.runs.predict import predict_file

    hush_libraries()
    with show_rows(people(), "Stopping after these rows; what is answered is kept.") as progress:
        answered = predict_file(run, questions, out, progress)
    without = f"; {answered.problems:,} of them have a `problem` in place of an answer" if answered.problems else ""
    show = partial(say, f"Wrote {out}: {answered.rows:,} rows{without}.")
    return Outcome(show, [str(out)], lambda: [{"out": out, **answered._asdict()}], one_a_line=True)


@command(app)
def export(run: RunArgument, out: ExportOption) -> Outcome:
    """Merge the adapter of a finished run into its backbone: a folder for plain transformers, without PEFT."""
    check_words({"run": run, "out": out})
    from ortholora.models.export import export as write_export

    hush_libraries()
    card = write_export(run, out)
    return Outcome(partial(showing.show_export, out, card), [str(out)], partial(documents.of_export, out, card))


@command(app)
def push(
    run: PushedArgument,
    hub_id: HubIdArgument,
    private: PrivateOption = False,
    revision: RevisionOption = None,
    commit_message: MessageOption = None,
) -> Outcome:
    """Push the adapter of a finished run, or an exported model, to the Hugging Face hub, with its model card."""
    check_words({"run": run, "hub_id": hub_id, "revision": revision, "commit_message": commit_message})
    hush_libraries()
    from ortholora.cli.pushing import run_push
    from ortholora.runs.push import Target

    names, pushed = run_push(run, Target(hub_id, revision, private, commit_message))
    show = partial(say, f"Pushed {', '.join(names)} to {pushed.repo}: {pushed.url}")
    return Outcome(show, [pushed.url], lambda: {"repository": pushed.repo, "url": pushed.url, "files": names})
