rule measure:
    input:
        weights=WEIGHTS,
    output:
        # All checks of a cell in one job: they have imports and compilation in common.
        **{check: f"results/{{device}}/{{build}}/{{mode}}/{{model}}/{check}.parquet" for check in SETTINGS.checks},
    log:
        "logs/{device}/{build}/{mode}/{model}.log",
    priority: duration  # the longest first, so that at the end no core waits for one of them
    retries: LOSSES
    conda:
        "../envs/timmgate.yaml"
    threads: SETTINGS.run.threads
    resources:
        **{**WORKER_RESOURCES, "mem_mb": memory_left_mb},
        attempts=attempts_left,
        # One more attempt is for those that do not count, as with smaller batches.
        runtime=runtime_min(len(SETTINGS.checks) * (SETTINGS.run.attempts + 1) + SETTINGS.run.timing_processes - 1),
        suite=SUITE.name,
    params:
        cell=identity,
        retry=lambda wildcards: RETRIES.rerun_generation(f"{wildcards.build}/{wildcards.mode}/{wildcards.model}"),
    script:
        "../scripts/measure.py"
