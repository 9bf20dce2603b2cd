rule toolchain:
    output:
        directory(".cache/inductor/toolchain/{device}"),
    log:
        "logs/{device}/toolchain.log",
    retries: 2  # of a job that was killed; without it no cell can start
    conda:
        "../envs/timmgate.yaml"
    threads: 4  # about as many compilers run at once
    resources:
        timeout_s=SETTINGS.timeout,
        runtime=runtime_min(1),
        jobs_per_gpu=SETTINGS.jobs_per_gpu,
        gpu=int(SETTINGS.device == "cuda"),
    script:
        "../scripts/toolchain.py"


rule measure:
    input:
        weights=WEIGHTS,
        toolchain=ancient(".cache/inductor/toolchain/{device}"),
    output:
        # Both checks of a cell in one job: they have imports and compilation in common. The details of each are written before
        # its row, beside it: declared, they would cost every parse a sixth more.
        **{check: f"results/{{device}}/{{mode}}/{{model}}/{check}.parquet" for check in SETTINGS.checks},
    log:
        "logs/{device}/{mode}/{model}.log",
    retries: LOSSES
    conda:
        "../envs/timmgate.yaml"
    threads: SETTINGS.threads
    resources:
        # Policy, not identity: changing these redoes nothing.
        mem_mb=memory_mb,
        mem_is_limit=int(MEMORY_IS_KNOWN),
        timeout_s=SETTINGS.timeout,
        attempts=attempts_left,
        jobs_per_gpu=SETTINGS.jobs_per_gpu,
        timing_limit_s=SETTINGS.timing_limit,
        # One more attempt is for those that do not count, as with smaller batches.
        runtime=runtime_min(len(SETTINGS.checks) * (SETTINGS.attempts + 1)),
        # The shared folder, or the one that has a folder for each cell: a constant, as functions cost every parse most.
        compile_cache=SHARED_CACHE if SETTINGS.compile_cache == "shared" else ".cache/inductor",
        compile_cache_is_shared=int(SETTINGS.compile_cache == "shared"),
        suite=SUITE.name,
        gpu=int(SETTINGS.device == "cuda"),  # for cluster executors; on one machine measurements share GPUs by themselves
    params:
        specs=specs,
        retry=lambda wildcards: RETRIES.number(f"{wildcards.mode}/{wildcards.model}"),
    script:
        "../scripts/measure.py"
