RECORDED = (
    [f"results/{SETTINGS.device}/recorded.json"] if SETTINGS.history_path else []
)  # what was measured is in the history


rule record:
    input:
        cells="results/{device}/cells.parquet",
    output:
        "results/{device}/recorded.json",
    log:
        "logs/{device}/record.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        history=SETTINGS.history_path,
    script:
        "../scripts/record.py"


rule history:
    # It reads what runs have added, and measures nothing.
    log:
        f"logs/{SETTINGS.device}/history.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        history=lambda wildcards: asked_history(),
        device=SETTINGS.device,
        runs=SETTINGS.history_runs,
        accuracy_rule=SETTINGS.run.accuracy_rule,
        table=f"results/{SETTINGS.device}/history.tsv",
    script:
        "../scripts/history.py"
