"""The workflow as it is installed: its default profile is found, it parses light, and it follows the rules of its kind."""

import subprocess
import sys

PARSE = """
import sys
from snakemake.cli import main

def imported_by(*arguments):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, end.code
    return sys.modules.keys() & {"torch", "timm", "pandas", "pyarrow"}

by_plugins = imported_by("--version")
print("imported:", *sorted(imported_by(*sys.argv[1:]) - by_plugins))
"""
"""Plugins are imported first: that for Slurm imports pandas."""


def test_the_default_profile_is_found_from_elsewhere(project):
    printed = project.run("--dry-run", models="test_vit", modes="inference")
    assert f"Using workflow specific profile {project.snakefile.parent / 'profiles' / 'default'}" in printed


def test_the_default_profile_is_found_in_the_folder_of_the_workflow_itself(project, checkout):
    command = [project.command()[0], "--dry-run", "--config", "models=test_vit", "modes=inference"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    assert "Using workflow specific profile profiles/default" in done.stdout + done.stderr


def test_parsing_imports_nothing_heavy(project):
    command = [str(part) for part in project.command("--dry-run")[1:]]
    done = subprocess.run([sys.executable, "-c", PARSE, *command], cwd=project.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
