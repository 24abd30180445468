"""What the package promises of itself: examples that run, and no numerical algorithm of its own."""

import pathlib
import re

import tensorslim

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_first_example_of_the_readme_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    exec(compile(blocks[0], "README.md", "exec"), {})
    rank, error, kind = capsys.readouterr().out.split()[:3]
    assert int(rank) > 0 and 0 < float(error) < 1 and kind == "exact"


def test_no_numerical_algorithm_is_written_here():
    package = pathlib.Path(tensorslim.__file__).parent
    wrong = re.compile(r"\blinalg\b|\b(svd|eigh?|qr|cholesky|lstsq|pinv|solve)\(")
    for file in package.rglob("*.py"):
        code = re.sub(r'"""(.|\n)*?"""|#.*', "", file.read_text(encoding="utf-8"))
        assert not wrong.search(code), (file.name, wrong.search(code))
