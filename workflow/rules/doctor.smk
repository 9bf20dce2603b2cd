"""Is this machine fit to time on? Prints what would make timings worse, and what to do about it."""


rule doctor:
    log:
        f"logs/{SETTINGS.device}/doctor.log",
    conda:
        "../envs/timmgate.yaml"
    threads: SETTINGS.run.threads
    resources:
        gpu=int(SETTINGS.device == "cuda"),
    params:
        device=SETTINGS.device,
    script:
        "../scripts/doctor.py"
