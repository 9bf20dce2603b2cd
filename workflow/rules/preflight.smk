"""Whether the request is possible here, asked once in every run that measures anything.

In `onstart`, for there it is known whether anything is measured. A file that all measurements depend on would have to be made
anew for every run, and then Snakemake measures all cells again because one of them is missing, also if the file is ancient.
"""

import subprocess

from timmgate.supervisor import preflight

ANSWER, REQUEST = (
    Path(".cache", "preflight", SETTINGS.device, f"{BUILD.label}.{what}.json") for what in ("answer", "request")
)
PREFLIGHT_LOG = f"logs/{SETTINGS.device}/{BUILD.label}/preflight.log"


def refuse_what_is_not_possible():
    """End with a sentence for each reason if cells are to be measured that cannot be measured here."""
    if workflow.touch or not any(job.rule.name == "measure" for job in workflow.dag.needrun_jobs()):
        return
    threads = min(workflow.cores or 1, preflight.THREADS) if workflow.local_exec else preflight.THREADS
    preflight.request(SETTINGS, BUILD, typed_models(), threads, ANSWER, REQUEST)
    if workflow.local_exec:
        preflight.ask_here(REQUEST, Path(PREFLIGHT_LOG))
    else:  # a node has to answer: a run of Snakemake within this one, as it was started
        only = ["--until", "preflight", "--forcerun", "preflight", "--quiet", "all", "--nolock"]
        subprocess.run([sys.argv[0], *only, *sys.argv[1:], "--", ANSWER])
    problems = preflight.problems(ANSWER, Path(PREFLIGHT_LOG))
    if problems:
        outcome.write(outcome.Outcome.WRONG_REQUEST, problems, Path(OUTCOME))
        sys.exit("\n".join(problems))


rule preflight:
    input:
        REQUEST,
    output:
        ANSWER,
    log:
        PREFLIGHT_LOG,
    retries: 2  # of a job that was killed; without it no cell can start
    conda:
        "../envs/timmgate.yaml"
    threads: preflight.THREADS
    resources:
        runtime=runtime_min(1),
        gpu=int(SETTINGS.device == "cuda"),
    script:
        "../scripts/preflight.py"
