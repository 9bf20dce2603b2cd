"""The tables of a folder as a page, and the page's pictures as files."""

from pathlib import Path
from typing import TYPE_CHECKING

from timmgate.report import page

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

if __name__ == "__main__":
    path = Path(snakemake.output.page)
    page.write(path.parent, path)
    page.write_pictures(path.parent, Path(snakemake.output.pictures))
