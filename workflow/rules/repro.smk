"""A script of each requested cell that repeats it with torch and timm alone."""


rule repro:
    input:
        scripts,
    log:
        f"logs/{SETTINGS.device}/repro.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        facts=FACTS,
    script:
        "../scripts/repro.py"


rule repro_script:
    input:
        rows_of_cell,  # what is measured again has another script
        weights=WEIGHTS,
    output:
        script="results/{device}/{build}/{mode}/{model}/repro/repro.py",
        weights="results/{device}/{build}/{mode}/{model}/repro/weights.safetensors",
        inputs="results/{device}/{build}/{mode}/{model}/repro/inputs.safetensors",
    log:
        "logs/{device}/repro/{build}/{mode}/{model}.log",
    conda:
        "../envs/timmgate.yaml"
    threads: SETTINGS.run.threads
    resources:
        **WORKER_RESOURCES,
        runtime=runtime_min(1),
    params:
        cell=identity,
        checks=list(SETTINGS.checks),
    script:
        "../scripts/repro_script.py"
