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
        weights=WEIGHTS,
        toolchain=ancient(".cache/inductor/toolchain/{device}"),
    output:
        # Both checks of a cell in one job: they have imports and compilation in common.
        **{name: f"results/{{device}}/{{mode}}/{{model}}/{name}.parquet" for name in TABLES},
    log:
        "logs/{device}/{mode}/{model}.log",
    conda:
        "../envs/timmgate.yaml"
    threads: SETTINGS.threads
    resources:
        # Policy, not identity: changing these redoes nothing.
        timeout_s=SETTINGS.timeout,
        attempts=SETTINGS.attempts,
        timing_limit_s=SETTINGS.timing_limit,
        # The shared folder, or the one that has a folder for each cell: a constant, as functions cost every parse most.
        compile_cache=SHARED_CACHE if SETTINGS.compile_cache == "shared" else ".cache/inductor",
        compile_cache_is_shared=int(SETTINGS.compile_cache == "shared"),
        suite=SUITE.name,
    params:
        specs=specs,
    script:
        "../scripts/measure.py"
