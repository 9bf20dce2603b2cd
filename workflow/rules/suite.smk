rule refresh:
    input:
        table=suite_table,
    output:
        # Never over the table itself: a person compares, and moves it.
        table=f"refreshed/{SUITE.name}.tsv",
        report=f"refreshed/{SUITE.name}.txt",
    log:
        f"logs/refresh/{SUITE.name}.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        timm=TIMM,
    script:
        "../scripts/refresh.py"
