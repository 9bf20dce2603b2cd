"""What is kept of a compile cache."""

from timmgate.supervisor import traces


def test_generated_code_is_kept_in_its_folders_and_nothing_that_was_made_of_it(tmp_path):
    for name in ("ab/cabc.py", "cd/ccde.cpp", "cd/ccde.so", "triton/x/kernel.ttir", "fxgraph/1/entry"):
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    traces.keep_code(tmp_path / "cache", tmp_path / "code")
    kept = {str(path.relative_to(tmp_path / "code")) for path in (tmp_path / "code").rglob("*") if path.is_file()}
    assert kept == {"ab/cabc.py", "cd/ccde.cpp", "triton/x/kernel.ttir"}
