rule accuracy:
    input:
        weights=weights,
    output:
        row="results/{device}/{mode}/{model}/accuracy.parquet",
        evidence="results/{device}/{mode}/{model}/evidence.parquet",
    log:
        "logs/{device}/{mode}/{model}/accuracy.log",
    conda:
        "../envs/timmgate.yaml"
    threads: SETTINGS.threads
    resources:
        # Policy, not identity: changing these redoes nothing.
        timeout_s=SETTINGS.timeout,
        attempts=SETTINGS.attempts,
        compile_cache=compile_cache,
        suite=SUITE.name,
    params:
        spec=accuracy_spec,
    script:
        "../scripts/measure.py"
