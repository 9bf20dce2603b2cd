rule gate:
    input:
        unpack(cell_rows),  # one that was deleted is measured again first
        tables(),  # all of them speak of the same request then
        RECORDED,
        cells=f"results/{SETTINGS.device}/cells.parquet",
    # The table is not an output: Snakemake removes those of a job that fails, and this one fails when it has most to say.
    log:
        f"logs/{SETTINGS.device}/gate.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        checks=list(SETTINGS.checks),
        expectations=lambda wildcards: expectations(),
        measured=lambda wildcards: measured_baseline(),
        quarantine=lambda wildcards: quarantined(),
        thresholds=asdict(SETTINGS.thresholds),
        models={mode: list(MODELS) for mode in SETTINGS.modes},
        place=SETTINGS.baseline or "config/expected",
        outcome=OUTCOME,
        table=f"results/{SETTINGS.device}/gate.tsv",
    script:
        "../scripts/gate.py"


rule update_expected:
    input:
        unpack(cell_rows),
        cells=f"results/{SETTINGS.device}/cells.parquet",
    output:
        # Never over config/expected itself: a person compares, and moves the files.
        expand("expected/{device}/{mode}.csv", device=SETTINGS.device, mode=SETTINGS.modes),
    log:
        f"logs/{SETTINGS.device}/update_expected.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        checks=list(SETTINGS.checks),
        everything=lambda wildcards: all_expectations(),
        expectations=lambda wildcards: measured_expectations(),
    script:
        "../scripts/update_expected.py"
