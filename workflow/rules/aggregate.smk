rule merge:
    input:
        rows=files("accuracy.parquet"),
        evidence=files("evidence.parquet"),
    output:
        cells="results/{device}/cells.parquet",
        evidence="results/{device}/evidence.parquet",
    log:
        "logs/{device}/merge.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    script:
        "../scripts/merge.py"


rule flag:
    input:
        cells="results/{device}/cells.parquet",
    output:
        failures="results/{device}/failures.parquet",
        failures_tsv="results/{device}/failures.tsv",
        summary="results/{device}/summary.tsv",
    log:
        "logs/{device}/flag.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    script:
        "../scripts/flag.py"
