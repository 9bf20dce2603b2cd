"""What the gate catches: faults put into what every requested model and mode compiles to."""


rule power:
    input:
        expand("results/{device}/power/{mode}/{model}.parquet", device=SETTINGS.device, mode=SETTINGS.modes, model=MODELS),
    output:
        trials=f"results/{SETTINGS.device}/power.parquet",
        summary=f"results/{SETTINGS.device}/power.tsv",
    log:
        f"logs/{SETTINGS.device}/power.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    script:
        "../scripts/power.py"


rule fault_trials:
    input:
        weights=WEIGHTS,
    output:
        "results/{device}/power/{mode}/{model}.parquet",
    log:
        "logs/{device}/power/{mode}/{model}.log",
    conda:
        "../envs/timmgate.yaml"
    threads: SETTINGS.run.threads
    resources:
        **{**WORKER_RESOURCES, "mem_mb": lambda wildcards, threads: memory_of(wildcards, threads, ["accuracy"], 3)},  # up to three seeds of weights
        runtime=runtime_min(TIMEOUTS),
    params:
        cell=identity,
        places=SETTINGS.fault_places,
    script:
        "../scripts/fault_trials.py"
