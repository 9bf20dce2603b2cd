"""What is kept of cells to look into them, with the key `trace`; outside of their measurement, which it does not change."""

if SETTINGS.trace:

    rule trace:
        input:
            rows_of_cell,  # what is measured again is traced again
            weights=WEIGHTS,
        output:
            **{kind: directory(f"results/{{device}}/{{build}}/{{mode}}/{{model}}/trace/{kind}") for kind in SETTINGS.trace},
        log:
            "logs/{device}/trace/{build}/{mode}/{model}.log",
        conda:
            "../envs/timmgate.yaml"
        threads: SETTINGS.run.threads
        resources:
            **WORKER_RESOURCES,
            runtime=runtime_min(1),
        params:
            cell=identity,
            check=SETTINGS.checks[-1],
        script:
            "../scripts/trace.py"
