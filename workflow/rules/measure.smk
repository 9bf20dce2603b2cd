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
        # Policy, not identity: changing these redoes nothing.
        run_options=SETTINGS.run.to_json(),
        attempts=attempts_left,
        mem_mb=memory_left_mb,
        mem_is_limit=int(MEMORY_IS_KNOWN),
        # One more attempt is for those that do not count, as with smaller batches.
        runtime=runtime_min(len(SETTINGS.checks) * (SETTINGS.run.attempts + 1)),
        # The shared folder, or the one that has a folder for each cell: a constant, as functions cost every parse most.
        compile_cache=SHARED_CACHE if SETTINGS.run.shared_cache else ".cache/inductor",
        facts=FACTS,
        suite=SUITE.name,
        gpu=int(SETTINGS.device == "cuda"),  # for cluster executors; on one machine measurements share GPUs by themselves
    params:
        cell=identity,
        retry=lambda wildcards: RETRIES.rerun_generation(f"{wildcards.build}/{wildcards.mode}/{wildcards.model}"),
    script:
        "../scripts/measure.py"
