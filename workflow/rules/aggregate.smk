rule merge:
    input:
        unpack(cell_rows),
    output:
        **{name: f"results/{{device}}/{name}.parquet" for name in map(CHECKS.get, SETTINGS.checks)},
        cells="results/{device}/cells.parquet",
        attempts="results/{device}/attempts.parquet",
    log:
        "logs/{device}/merge.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        checks={check: CHECKS[check] for check in SETTINGS.checks},
        retry=RETRIES.number("merge"),
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
    params:
        checks=list(SETTINGS.checks),
        retry=RETRIES.number("flag"),
    script:
        "../scripts/flag.py"
