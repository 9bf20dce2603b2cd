rule preflight:
    # Only for clusters, where a node has to answer: see refuse_what_is_not_possible.
    input:
        REQUEST,
    output:
        preflight.answer_file(SETTINGS.device, "{build}"),
    log:
        PREFLIGHT_LOG,
    retries: 2  # of a job that was killed; without it no cell can start
    conda:
        "../envs/timmgate.yaml"
    threads: preflight.THREADS
    resources:
        runtime=runtime_min(1),
        mem_mb=PREFLIGHT_MB,
        gpu=int(SETTINGS.device == "cuda"),
    script:
        "../scripts/preflight.py"
