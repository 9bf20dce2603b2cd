"""Failed cells again, in fresh processes: does it come back? Asked for with the key `confirm`."""


checkpoint failed_cells:
    input:
        unpack(cell_rows),
    output:
        "results/{device}/confirm/failed.json",
    log:
        "logs/{device}/confirm/failed.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        checks=list(SETTINGS.checks),
        accuracy_rule=SETTINGS.run.accuracy_rule,
    script:
        "../scripts/failed_cells.py"


rule repeat:
    input:
        rows_of_cell,  # what is measured anew is repeated anew
        weights=WEIGHTS,
    output:
        "results/{device}/confirm/{build}/{mode}/{model}/{number}.parquet",
    log:
        "logs/{device}/confirm/{build}/{mode}/{model}/{number}.log",
    wildcard_constraints:
        number=r"\d+",
    retries: 2  # of a job that was killed
    conda:
        "../envs/timmgate.yaml"
    threads: SETTINGS.run.threads
    resources:
        **WORKER_RESOURCES,
        runtime=runtime_min(len(SETTINGS.checks) * (SETTINGS.run.attempts + 1)),
    params:
        cell=identity,
        checks=list(SETTINGS.checks),
    script:
        "../scripts/repeat.py"
