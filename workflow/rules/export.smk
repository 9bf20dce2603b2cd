rule export:
    input:
        unpack(cell_rows),  # one that was deleted is measured again first
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
        builds=list(SETTINGS.builds),
        modes={name: asdict(mode) for name, mode in SETTINGS.modes.items()},
    script:
        "../scripts/export.py"
