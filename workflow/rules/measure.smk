rule toolchain:
    output:
        directory(".cache/inductor/toolchain/{device}"),
    log:
        "logs/{device}/toolchain.log",
    conda:
        "../envs/timmgate.yaml"
    script:
        "../scripts/toolchain.py"


rule measure:
    input:
        weights=weights,
        toolchain=ancient(".cache/inductor/toolchain/{device}"),
    output:
        # Both checks of a cell in one job: they have imports and compilation in common.
        **{name: f"results/{{device}}/{{mode}}/{{model}}/{name}.parquet" for name in TABLES},
    log:
        "logs/{device}/{mode}/{model}.log",
    retries: SETTINGS.attempts * len(SETTINGS.checks)  # of supervisors that are killed; the last writes the row at least
    conda:
        "../envs/timmgate.yaml"
    threads: SETTINGS.threads
    resources:
        # Policy, not identity: changing these redoes nothing.
        mem_mb=memory_mb,
        timeout_s=SETTINGS.timeout,
        attempts=SETTINGS.attempts,
        jobs_per_gpu=SETTINGS.jobs_per_gpu,
        timing_limit_s=SETTINGS.timing_limit,
        runtime=runtime_min(),
        compile_cache=compile_cache,
        compile_cache_is_shared=int(SETTINGS.compile_cache == "shared"),
        suite=SUITE.name,
        gpu=int(SETTINGS.device == "cuda"),  # for cluster executors; on one machine measurements share GPUs by themselves
    params:
        specs=specs,
        retry=lambda wildcards: RETRIES.number(f"{wildcards.mode}/{wildcards.model}"),
    script:
        "../scripts/measure.py"
