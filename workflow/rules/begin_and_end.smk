"""What is checked and said when a run begins, and what is said at its end."""

import subprocess
import time
from importlib.util import find_spec

from timmgate.config import command_line
from timmgate.core import files, packages
from timmgate.core.conditions import condition_words
from timmgate.system import cpu_topology

BEGAN_NS = time.time_ns()
# Rules after which the outcome of an earlier gate is not of what is there.
OUTDATING = {"measure", "repeat", "time_again", "merge", "gate"}


def is_needed(rule):
    """Whether a job of a rule is to run."""
    return any(job.rule.name == rule for job in workflow.dag.needrun_jobs())


def forget_outcome():
    """Remove the outcome and the tables of an earlier gate if this run measures, makes tables or judges."""
    if any(job.rule.name in OUTDATING for job in workflow.dag.needrun_jobs()):
        for path in (OUTCOME, *(f"results/{SETTINGS.device}/gate.{form}" for form in ("tsv", "xml"))):
            Path(path).unlink(missing_ok=True)


def refuse(*reasons):
    """End with the reasons why what was requested is not possible, which are the outcome then."""
    outcome.write(outcome.ExitCode.WRONG_REQUEST, reasons, Path(OUTCOME))
    sys.exit("\n".join(reasons))


def refuse_folders_that_cannot_be_written():
    """Raise WorkflowError where no result could be written."""
    month = time.strftime("%Y-%m")
    history = [history_path.folder(Path(SETTINGS.history_path), month)] if is_needed("record") else []
    folder = files.not_writable([Path("results", SETTINGS.device), Path("logs"), Path(".cache"), *history])
    if folder:
        raise WorkflowError(
            f"{folder.absolute()} cannot be written to; make it writable, or name another folder with --directory, for the "
            "history with history_path"
        )


def measuring_builds(job):
    """The builds that a job measures with; of one after which it is known what else is measured, all."""
    if job.rule.name in ("failed_cells", "suspects", "candidates"):
        return set(SETTINGS.builds)
    if job.rule.name not in (*MEASURING, "repro_script", "trace"):
        return set()
    return {job.wildcards[name] for name in ("build", "before", "after") if name in job.wildcards.keys()} or {FIRST_BUILD}


def refuse_what_is_not_possible():
    """End with a sentence for each reason if cells are to be measured that cannot be measured here.

    No job that measurements depend on: it would be done in every run that measures anything, and Snakemake then measures all
    cells again although one is missing, also where what they depend on is `ancient`.
    """
    needed = set().union(*map(measuring_builds, workflow.dag.needrun_jobs()))
    if workflow.touch or not needed:
        return
    threads = min(workflow.cores or 1, preflight.THREADS) if workflow.local_exec else preflight.THREADS
    logs = {label: Path(PREFLIGHT_LOG.format(build=label)) for label in SETTINGS.builds if label in needed}
    for label, log in logs.items():
        ASKED.append(label)
        print(f"asking {SETTINGS.device} whether it can do that; {log} has what it prints", file=sys.stderr)
        request = Path(REQUEST.format(build=label))
        preflight.request(SETTINGS, BUILDS[label], typed_models(), threads, request)
        if workflow.local_exec:
            preflight.ask_here(request, log)
    if not workflow.local_exec:  # a node has to answer: a run within this one, with the same options
        only = ["--until", "preflight", "--forcerun", "preflight", "--quiet", "all", "--nolock", "--no-hooks"]
        answers = [preflight.answer_file(SETTINGS.device, label) for label in logs]
        given = command_line.options_alone(sys.argv[1:])  # before ours, as of an option the last one counts
        subprocess.run([sys.executable, "-m", "snakemake", *given, *only, "--", *answers])
    problems = packages.weights_problems(MODELS) if SETTINGS.weights == "packaged" else []
    problems += preflight.problems(SETTINGS.device, logs, SETTINGS.builds)
    if problems:
        refuse(*problems)


def refuse_report_without_its_libraries():
    """End with a sentence if the report is asked for and cannot be drawn, before anything is measured for it."""
    if is_needed("report"):
        missing = [name for name in ("altair", "vl_convert", "itables") if find_spec(name) is None]
        if missing:
            refuse(f"The report needs {', '.join(missing)}: pip install -c requirements.lock -e '.[report]'")


def lift_default_rate_limit():
    """Let jobs start at any rate, unless somebody asked for a limit of their own (`--max-jobs-per-timespan`).

    With Snakemake 9's default, 100 in a second, the end of every job makes the scheduler look at all that is ready once more
    each second for the rest of the run: after some hundred jobs it takes a whole core, and never gives it back.
    """
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


def announce_conditions():
    """Say what figures depend on beside the programs, and refuse what would not be what they say.

    On a cluster nobody knows the cores of the node that a job will get.
    """
    on_cpu, threads = SETTINGS.device == "cpu", SETTINGS.run.threads
    if config["threads"] == "all" and not workflow.local_exec:
        refuse("threads is all, but the nodes of a cluster may differ in their cores; it must be a number or auto")
    lane = len(cpu_topology.lanes(SETTINGS.run.timing_lanes)[0])
    jobs = {job.rule.name: job for job in workflow.dag.needrun_jobs()}  # one of each rule tells
    given = {jobs[name].threads for name in jobs if name in MEASURING}
    others = given - {threads}
    if on_cpu and others and not workflow.touch:
        number = min(others)
        refuse(f"threads is {threads}, but Snakemake's own options, as --cores, give a cell {number}; set threads={number}")
    if on_cpu and workflow.local_exec and given and threads > lane:
        refuse(f"threads is {threads}, but a cell is timed on {lane} cores here (timing_lanes: {SETTINGS.run.timing_lanes})")
    told = condition_words(threads, *((SETTINGS.allocator, SETTINGS.relocate) if on_cpu else ()))
    print(f"each cell with {told}", file=sys.stderr)


def announce():
    """Say what was asked for, with everything that was `auto` resolved."""
    checks, modes = " and ".join(SETTINGS.checks), ", ".join(SETTINGS.modes)
    models = f"{len(MODELS)} model{'s' * (len(MODELS) > 1)} of the suite {SUITE.name}"
    labels = [f"{label} (torch {BUILDS[label].facts['torch']})" for label in SETTINGS.builds]
    what = f"{models}, weights {SETTINGS.weights}, modes {modes}, builds {', '.join(labels)}"
    print(f"{checks} on {SETTINGS.device}: {what}", file=sys.stderr)


def show_tables():
    """Print the tables in the terminal, once the workflow is done, unless it did not make them."""
    from rich.console import Console
    from timmgate.report.terminal import show

    if any(job.rule.name == "flag" for job in workflow.dag.finished_jobs):
        show(Path("results", SETTINGS.device), Console())


def say_what_changed():
    """Say which of the builds that were asked whether they can measure are not any more what they were then."""
    for label in ASKED:
        try:
            now = builds.find(Path(".cache/builds"), label, NEEDED[label])
        except ConfigError as error:
            print(f"warning: whether the build has changed since the run began is not known: {error}", file=sys.stderr)
            continue
        if now.software == BUILDS[label].software:
            continue
        print(
            f"warning: the build {label} has changed since the run began. What it was is recorded of all its cells, and what it is "
            "now may have measured some; measure them again with --forcerun measure",
            file=sys.stderr,
        )


def say_why():
    """Repeat at the very end why what was requested is not possible, if that is the reason."""
    ended = outcome.read(Path(OUTCOME))
    if ended and Path(OUTCOME).stat().st_mtime_ns >= BEGAN_NS and ended[0] == outcome.ExitCode.WRONG_REQUEST:
        print(*ended[1], sep="\n", file=sys.stderr)
