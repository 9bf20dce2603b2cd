rule export:
    input:
        unpack(all_results),
        cells=f"results/{SETTINGS.device}/cells.parquet",
    output:
        directory(f"results/{SETTINGS.device}/export"),
    log:
        f"logs/{SETTINGS.device}/export.log",
    localrule: True
    conda:
        "../envs/timmgate.yaml"
    params:
        device=SETTINGS.device,
        checks=list(SETTINGS.checks),
        # The modes as each build runs them.
        builds={
            build: {name: asdict(SETTINGS.catalogue[build][name]) for name in SETTINGS.modes} for build in SETTINGS.builds
        },
    script:
        "../scripts/export.py"
