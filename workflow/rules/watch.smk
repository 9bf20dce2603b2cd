"""What happens beside the jobs while cells are measured: a live board, and the tables of what there is already."""

from contextlib import ExitStack, suppress

from timmgate import module_environment
from timmgate.core.schemas import KEY
from timmgate.supervisor import stages
from timmgate.tables import renewal

RESULTS = Path("results", SETTINGS.device)
WATCHING = ExitStack()
WHEN_INCOMPLETE = ExitStack()


def watch():
    """Remember what is asked for, and watch over the run until `WATCHING` is closed."""
    todo = [job for job in workflow.dag.needrun_jobs() if job.rule.name in ("measure", "merge", "flag")]
    if workflow.touch or not todo:
        return
    cells = [(SETTINGS.device, *cell) for cell in CELLS]
    request.Request(cells, SETTINGS.checks, SETTINGS.thresholds, SETTINGS.run.accuracy_rule, config, FACTS).save(RESULTS)
    if is_needed("merge"):
        WHEN_INCOMPLETE.callback(say_partial_if_not_merged)
    measured = {tuple(job.wildcards_dict[name] for name in KEY) for job in todo if job.rule.name == "measure"}
    if not measured:
        return
    for job in todo:  # Snakemake wonders about tables that have come to be before their job
        if job.rule.name != "measure":
            workflow.dag.reason(job).missing_output.clear()
    stages.forget(SETTINGS.device)
    if is_needed("record"):
        WHEN_INCOMPLETE.callback(record_what_is_there)
    WHEN_INCOMPLETE.callback(make_tables_of_what_is_there)  # before that: the last one is called first
    WATCHING.callback(renewal.Renewal(RESULTS).stop)
    for handler in workflow.logger_manager.get_log_handlers():
        if hasattr(handler, "board"):  # of `--logger timmgate`
            WATCHING.enter_context(handler.board(plan(cells, measured)))


def plan(cells, measured):
    """What the board shows."""
    from timmgate.report.progress import Plan

    return Plan(SETTINGS.device, SETTINGS.checks, cells, measured, SUITE.cost, SETTINGS.run.accuracy_rule)


def say_partial_if_not_merged():
    """Have a later run make the tables that this one did not."""
    if not any(job.rule.name == "merge" for job in workflow.dag.finished_jobs):
        with suppress(OSError):  # a disk that is full: then nothing was put back either
            request.say_partial(RESULTS)


def make_tables_of_what_is_there():
    """Make the tables of a run that did not come to its end, and say how far it came."""
    subprocess.run(renewal.command(RESULTS), env=module_environment())
    print("the same command measures the rest", file=sys.stderr)


def record_what_is_there():
    """Add what a run has measured that did not come to its end to the history."""
    if not (RESULTS / "cells.parquet").is_file():
        return
    from timmgate.tables.history import store

    try:
        store.record_tables(RESULTS, Path(SETTINGS.history_path))
    except (OSError, ValueError) as error:
        print(f"the history lacks what this run measured ({error}); the next run adds what is left of it", file=sys.stderr)
