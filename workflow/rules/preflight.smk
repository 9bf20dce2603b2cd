rule preflight:
    output:
        # Once for every run that measures anything: what was possible yesterday need not be today.
        temp(".cache/preflight/{device}/{build}.json"),
    log:
        "logs/{device}/{build}/preflight.log",
    retries: 2  # of a job that was killed; without it no cell can start
    conda:
        "../envs/timmgate.yaml"
    threads: 4  # about as many compilers run at once while the toolchain is built
    resources:
        run_options=SETTINGS.run.to_json(),
        runtime=runtime_min(1),
        gpu=int(SETTINGS.device == "cuda"),
    params:
        modes={name: asdict(mode) for name, mode in SETTINGS.modes.items()},
        models=typed_models(),
        software=BUILD.software,
        outcome=OUTCOME,
    script:
        "../scripts/preflight.py"
