rule gate:
    input:
        unpack(all_results),
        timed_again=timed_again,
        cells=f"results/{SETTINGS.device}/cells.parquet",
    # The table is not an output: Snakemake removes those of a job that fails, and this one fails when it has most to say.
    log:
        f"logs/{SETTINGS.device}/gate.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        checks=list(SETTINGS.checks),
        expectations=lambda wildcards: expectations(),
        measured=lambda wildcards: measured_baseline(),
        quarantine=lambda wildcards: quarantined(),
        thresholds=asdict(SETTINGS.thresholds),
        models={mode: list(MODELS) for mode in SETTINGS.modes},
        place=SETTINGS.baseline or "config/expected",
        times=SETTINGS.run.retimings,
        outcome=OUTCOME,
        facts=FACTS,
        table=f"results/{SETTINGS.device}/gate.tsv",
    script:
        "../scripts/gate.py"


checkpoint suspects:
    input:
        unpack(cell_rows),
        tables(),
        cells="results/{device}/cells.parquet",
    output:
        "results/{device}/confirm/suspects.json",
    log:
        "logs/{device}/confirm/suspects.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        checks=list(SETTINGS.checks),
        facts=FACTS,
        measured=lambda wildcards: measured_baseline(),
        thresholds=asdict(SETTINGS.thresholds),
        times=SETTINGS.run.retimings,
        contents=lambda wildcards: contents_of(measured_baseline()),
    script:
        "../scripts/suspects.py"


rule time_again:
    input:
        rows_of_cell,  # what is measured anew is timed anew
        weights=WEIGHTS,
        suspects=ancient("results/{device}/confirm/suspects.json"),
    output:
        "results/{device}/confirm/timed/{build}/{mode}/{model}.parquet",
    log:
        "logs/{device}/confirm/timed/{build}/{mode}/{model}.log",
    retries: 2  # of a job that was killed
    conda:
        "../envs/timmgate.yaml"
    threads: SETTINGS.run.threads
    resources:
        **WORKER_RESOURCES,
        runtime=runtime_min(SETTINGS.run.retimings),
    params:
        cell=identity,
        times=SETTINGS.run.retimings,
        suspect=suspect,  # what has another limit now, as of another baseline, is timed anew
    script:
        "../scripts/time_again.py"


rule update_expected:
    input:
        unpack(all_results),
        cells=f"results/{SETTINGS.device}/cells.parquet",
    # The files are not outputs: Snakemake removes those before the job, and they may be what it starts from.
    log:
        f"logs/{SETTINGS.device}/update_expected.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        checks=list(SETTINGS.checks),
        # Never over config/expected itself: a person compares, and moves the files.
        files=expand("expected/{device}/{mode}.csv", device=SETTINGS.device, mode=SETTINGS.modes),
        everything=lambda wildcards: all_expectations(),
        expectations=lambda wildcards: measured_expectations(),
    script:
        "../scripts/update_expected.py"
