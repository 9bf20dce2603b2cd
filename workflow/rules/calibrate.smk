"""What the strict rule's limit is chosen from: runs of every requested model and mode that are known to be right."""


rule calibrate:
    input:
        expand(
            "results/{device}/calibration/{mode}/{model}.parquet", device=SETTINGS.device, mode=SETTINGS.modes, model=MODELS
        ),
    output:
        runs=f"results/{SETTINGS.device}/calibration.parquet",
        summary=f"results/{SETTINGS.device}/calibration.tsv",
    log:
        f"logs/{SETTINGS.device}/calibration.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    script:
        "../scripts/calibrate.py"


rule healthy_runs:
    input:
        weights=WEIGHTS,
    output:
        "results/{device}/calibration/{mode}/{model}.parquet",
    log:
        "logs/{device}/calibration/{mode}/{model}.log",
    conda:
        "../envs/timmgate.yaml"
    threads: SETTINGS.run.threads
    resources:
        **{**WORKER_RESOURCES, "mem_mb": lambda wildcards, threads: memory_of(wildcards, threads, ["accuracy"], 1)},
        runtime=runtime_min(TIMEOUTS),
    params:
        cell=identity,
    script:
        "../scripts/healthy_runs.py"
