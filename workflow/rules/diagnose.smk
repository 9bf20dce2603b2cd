"""Why cells failed: variants of each of them, until it is known which layer, which switch and which module it is."""


rule diagnose:
    input:
        unpack(all_results),
        diagnoses=lambda wildcards: diagnosed(wildcards, "diagnosis"),
        trials=lambda wildcards: diagnosed(wildcards, "trials"),
        links=scripts_and_traces_of_candidates,
    output:
        table=f"results/{SETTINGS.device}/diagnosis.parquet",
        tsv=f"results/{SETTINGS.device}/diagnosis.tsv",
        trials=f"results/{SETTINGS.device}/trials.parquet",
    log:
        f"logs/{SETTINGS.device}/diagnose.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    script:
        "../scripts/diagnose.py"


checkpoint candidates:
    input:
        cells="results/{device}/cells.parquet",
    output:
        "results/{device}/diagnosis/candidates.json",
    log:
        "logs/{device}/diagnosis/candidates.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        checks=list(SETTINGS.checks),
    script:
        "../scripts/candidates.py"


rule examine:
    input:
        rows_of_cell,  # what is measured again is diagnosed again
        weights=WEIGHTS,
    output:
        diagnosis="results/{device}/diagnosis/{build}/{mode}/{model}/diagnosis.parquet",
        trials="results/{device}/diagnosis/{build}/{mode}/{model}/trials.parquet",
    log:
        "logs/{device}/diagnosis/{build}/{mode}/{model}.log",
    retries: LOSSES
    conda:
        "../envs/timmgate.yaml"
    threads: SETTINGS.run.threads
    resources:
        **WORKER_RESOURCES,
        runtime=runtime_min(20),
    params:
        cell=identity,
        checks=list(SETTINGS.checks),
    script:
        "../scripts/examine.py"
