"""The tables of all that was measured, and what of it needs a look."""


rule merge:
    input:
        unpack(cell_rows),
        repeats=repeats,
    output:
        # Of all that was measured in this folder, also what was not requested this time: never removed, only renewed.
        **{check.details: update(f"results/{{device}}/{check.details}.parquet") for check in CHECKS.values()},
        cells=update("results/{device}/cells.parquet"),
        attempts=update("results/{device}/attempts.parquet"),
        repeats=update("results/{device}/repeats.parquet"),
    log:
        "logs/{device}/merge.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        checks=list(SETTINGS.checks),
        partial=lambda wildcards: request.partial(Path("results", wildcards.device)),
        facts=FACTS,
        accuracy_rule=SETTINGS.run.accuracy_rule,
    script:
        "../scripts/merge.py"


rule flag:
    input:
        cells="results/{device}/cells.parquet",
    output:
        failures="results/{device}/failures.parquet",
        failures_tsv=report(
            "results/{device}/failures.tsv",
            caption="../report/failures.rst",
            category="Tables",
            labels={"shows": "what needs a look"},
        ),
        summary=report(
            "results/{device}/summary.tsv",
            caption="../report/summary.rst",
            category="Tables",
            labels={"shows": "figures of each mode"},
        ),
    log:
        "logs/{device}/flag.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        checks=list(SETTINGS.checks),
        thresholds=asdict(SETTINGS.thresholds),
        accuracy_rule=SETTINGS.run.accuracy_rule,
    script:
        "../scripts/flag.py"
