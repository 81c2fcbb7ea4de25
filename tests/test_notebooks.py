"""The notebooks: how they look as files, and whether running them again gives the outputs that are committed."""

from __future__ import annotations

import io
import json
import re
import sys
from base64 import b64decode, b64encode
from collections.abc import Sequence
from difflib import unified_diff
from html import unescape
from pathlib import Path

import course
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbformat import NotebookNode, v4
from PIL import Image

NOTEBOOKS = course.notebooks()
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# Another processor sums in another order, which moves a score by a test sentence or two (one of the 597 is 0.0017)
# and a bootstrap bound a little more. What the prose says must not rest on differences smaller than these.
RELATIVE, ABSOLUTE = 0.02, 0.02
# Numbers printed with an exponent are rounding errors (the same up to 1e-5, the tolerance of the vectors) or small
# p-values, of which only the size matters.
NOISE, FACTOR = 1e-5, 2.0
# A model that is trained in the notebook itself (cells tagged ``trained``) moves more: another processor, or another
# number of threads, rounds differently, and training magnifies it. Sentences that such a model was chosen to show
# (``examples``) may be others altogether.
TRAINED, TRAINED_COUNT = 0.1, 10  # numbers, whole numbers (also a tenth and a quarter of what stands there)

# A number, but not the digits inside a word such as s0001, MiniLM-L6 or layer_3. A unit may follow directly (12ms).
NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<=\d)\.?|\.(?=\d))\d*(?:[eE][-+]?\d+)?")
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(root|home|Users|work|tmp|workspace)/|[A-Z]:\\+Users")
UNFILLED = re.compile(r"\{[^{}\n]*:[-+,.\d]*[%defg]?\}")  # an f-string that lost its f
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


# ---------------------------------------------------------------- comparing outputs


def shown_text(outputs: list[NotebookNode]) -> str:
    """All that a cell shows as text: streams, results, Markdown, and of HTML what stands between the tags."""
    parts = []
    for output in outputs:
        if output.output_type == "stream":
            parts.append(f"{output.name}: {output.text}")
        elif output.output_type == "error":
            parts.append(f"error: {output.ename}: {output.evalue}")
        elif "text/html" in output.data:
            html = re.sub(r"(?s)<(style|script).*?</\1>", "", output.data["text/html"])
            parts.append(unescape(re.sub(r"<[^>]+>", " ", re.sub(r"</tr>", "\n", html))))
        else:
            parts += [output.data[kind] for kind in ("text/markdown", "text/plain") if kind in output.data]
    return "\n".join(parts)


def split_numbers(text: str) -> tuple[str, list[str]]:
    """The text with every number replaced by ``#`` and its spacing evened out, and the numbers as printed."""
    words = NUMBER.sub(" # ", re.sub(r"-{3,}", "---", text))
    lines = (" ".join(line.split()) for line in words.splitlines())
    return "\n".join(line for line in lines if line), NUMBER.findall(re.sub(r"-{3,}", "---", text))


def same_number(old: str, new: str, trained: bool = False) -> bool:
    """Whether two printed numbers agree within the tolerances above."""
    a, b = (float(text.replace(",", "").replace("−", "-")) for text in (old, new))
    if trained:
        least, share = (TRAINED, 0.1) if "." in old + new else (TRAINED_COUNT, 0.25)
        return abs(a - b) <= max(least, share * max(abs(a), abs(b)))
    if "e" in (old + new).lower():
        small, large = sorted((max(abs(a), NOISE), max(abs(b), NOISE)))
        return large <= FACTOR * small and (a * b >= 0 or large == NOISE)
    return abs(a - b) <= max(ABSOLUTE, RELATIVE * max(abs(a), abs(b)))


def differences(old: list[NotebookNode], new: list[NotebookNode], tags: Sequence[str] = ()) -> list[str]:
    """What differs between a cell's committed and new outputs; in a ``timing`` cell numbers may be any.

    So are those of a processor's arithmetic with eight bits; such a cell asserts what must hold on all.
    """
    (old_words, old_numbers), (new_words, new_numbers) = (split_numbers(shown_text(o)) for o in (old, new))
    found = []
    if "examples" in tags:
        found += [] if bool(old_words) == bool(new_words) else ["text in one of them only"]
    elif old_words != new_words:
        found += unified_diff(old_words.split("\n"), new_words.split("\n"), "committed", "now", lineterm="", n=0)
    elif "timing" not in tags:
        pairs = zip(old_numbers, new_numbers, strict=True)
        found += [f"{a} committed, {b} now" for a, b in pairs if not same_number(a, b, "trained" in tags)]
    pictures = [sum("image/png" in output.get("data", {}) for output in outputs) for outputs in (old, new)]
    if pictures[0] != pictures[1]:
        found.append(f"{pictures[0]} pictures committed, {pictures[1]} now")
    return found


# ---------------------------------------------------------------- the course's notebooks


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_file(path: Path):
    """What a reader of the rendered notebook would trip over."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "not executed top to bottom"
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error", f"cell {cell.execution_count} ends in an error"
            assert output.get("name") != "stderr", f"cell {cell.execution_count}: {output.text[:200]}"
            kinds = output.get("data", {})
            assert "application/vnd.jupyter.widget-view+json" not in kinds
            assert "image/png" in kinds or not any(kind.startswith("image/") for kind in kinds)
        unfilled = UNFILLED.search(FENCE.sub("", shown_text(cell.outputs)))
        assert not unfilled, f"cell {cell.execution_count} shows a place that no number was put into: {unfilled[0]}"
        pathed = MACHINE_PATH.search(shown_text(cell.outputs))
        assert not pathed, f"the output of cell {cell.execution_count} names a machine's path: {pathed[0]}"
    prose = [FENCE.sub("", cell.source) for cell in notebook.cells if cell.cell_type == "markdown"]
    headings = re.findall(r"^(#+) (.+)$", "\n\n".join(prose), re.MULTILINE)
    assert [level for level, _ in headings].count("#") == 1
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert not MACHINE_PATH.search("\n".join(prose))
    if path.parent.name == "notebooks" and not path.name.startswith("00"):
        titles = "\n".join(title.lower() for level, title in headings if level != "#")
        assert "exercise" in titles and "reference" in titles


@each_notebook
def test_running_again_gives_the_committed_outputs(path: Path):
    committed, now = course.tidy(nbformat.read(path, as_version=4)), course.execute(path)
    report = []
    for number, (old, new) in enumerate(zip(committed.cells, now.cells, strict=True), start=1):
        if old.cell_type != "code":
            continue
        found = differences(old.outputs, new.outputs, old.metadata.get("tags", []))
        if found:
            first = old.source.strip().split("\n")[0]
            report.append(f"cell {number} (In [{old.execution_count}]): {first}\n  " + "\n  ".join(found[:20]))
    assert not report, f"{path.name} shows other outputs than committed:\n" + "\n".join(report)


# ---------------------------------------------------------------- the comparison itself


def printed(text: str, name: str = "stdout") -> list[NotebookNode]:
    return [v4.new_output("stream", name=name, text=text)]


def result(**data: str) -> list[NotebookNode]:
    return [v4.new_output("display_data", data={kind.replace("_", "/"): value for kind, value in data.items()})]


TABLE = "pooling  rho    low   high\nmean     0.361  0.250  0.463\ncls      0.298  0.181  0.404\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (TABLE, TABLE.replace("0.361", "0.367")),  # within the absolute tolerance
        (TABLE, TABLE),
        ("22,713,216 parameters", "22,713,300 parameters"),  # within the relative tolerance
        ("largest difference 3e-07", "largest difference 8.3e-07"),  # rounding errors
        ("largest difference 0.0e+00", "largest difference 2.4e-07"),
        ("p = 1.2e-03", "p = 1.9e-03"),
        ("difference +0.004", "difference -0.003"),  # a sign inside the tolerance, another width
        ("| a | 0.1 |\n|:--|-----:|", "| a | 0.11 |\n|:--|------:|"),  # a wider Markdown table
    ],
)
def test_same(old: str, new: str):
    assert differences(printed(old), printed(new)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (TABLE, TABLE.replace("0.361", "0.391")),  # a changed number
        (TABLE, TABLE.replace("mean ", "max  ")),  # a changed word
        (TABLE, TABLE.replace("cls      0.298  0.181  0.404\n", "")),  # a missing row
        ("0.1 0.2\n0.3 0.4\n", "0.1 0.2\n"),  # a missing row of numbers only
        (TABLE, TABLE.replace("0.298", "nan")),
        ("4 heads", "5 heads"),
        ("22,713,216 parameters", "11,920,128 parameters"),
        ("largest difference 3e-07", "largest difference 2e-04"),
        ("learning rate 2e-05", "learning rate 2e-04"),
        ("0.25", "-0.25"),
        ("s0001 business", "s0002 business"),  # an id is a word, not a number
        ("all-MiniLM-L6-v2", "all-MiniLM-L12-v2"),
        ("(2, 384)", "(2, 768)"),
        ("", "Warning: something new\n"),
    ],
)
def test_different(old: str, new: str):
    assert differences(printed(old), printed(new)) != []


def test_timing_cells_compare_words_only():
    old, new = printed("one model 12.5 ms\nfour models 48 ms\n"), printed("one model 9 ms\nfour models 101.75 ms\n")
    assert differences(old, new) != []
    assert differences(old, new, ["timing"]) == []
    assert differences(old, printed("one model 9 ms\n"), ["timing"]) != []
    assert differences(old, printed("one model 9 ms\nfive models 101.75 ms\n"), ["timing"]) != []


def test_trained_cells_allow_more_and_examples_any_words():
    old = printed("topic 0.81 and 120 spans\n")
    near, far = printed("topic 0.86 and 112 spans\n"), printed("topic 0.62 and 120 spans\n")
    assert differences(old, near) != [] and differences(old, near, ["trained"]) == []
    assert differences(old, far, ["trained"]) != []
    assert differences(old, printed("topic 0.81 and 60 spans\n"), ["trained"]) != []
    assert differences(old, printed("topics 0.81 and 120 spans\n"), ["trained"]) != []
    assert differences(old, printed("another sentence\n"), ["examples"]) == []
    assert differences(old, [], ["examples"]) != []


def test_other_kinds_of_output_are_compared():
    html = "<style>#T_a td {width: 1px}</style><table id='T_a'><tr><td>mean</td><td>0.36</td></tr></table>"
    assert differences(result(text_html=html), result(text_html=html.replace("T_a", "T_b"))) == []
    assert differences(result(text_html=html), result(text_html=html.replace("0.36", "0.46"))) != []
    assert differences(result(text_markdown="**0.36**"), result(text_markdown="**0.46**")) != []
    assert differences(result(text_plain="'a'"), result(text_plain="'b'")) != []
    assert differences(printed("x"), printed("x", name="stderr")) != []
    figure = result(image_png="aGk=", text_plain="<Figure size 640x480 with 1 Axes>")
    assert differences(figure, figure) == []
    assert differences(figure, figure + figure) != []
    assert differences(figure, result(text_plain="<Figure size 640x480 with 1 Axes>")) != []


def test_unfilled_pattern():
    assert UNFILLED.search("{total / 1e6:.1f} million") and UNFILLED.search("{share:.0%} of them")
    assert not UNFILLED.search("within $10^{-5}$ and {'topic': 3, 'b': [1]}")


def test_number_pattern():
    words, numbers = split_numbers("s0001 layer_3 L6-v2: 1,024 of 2970 (12ms, -0.5 to .5, 1e-5, −3 %), 2x, 3.")
    assert numbers == ["1,024", "2970", "12", "-0.5", ".5", "1e-5", "−3", "2", "3."]
    assert "s0001 layer_3 L6-v2" in words


# ---------------------------------------------------------------- executing


def write_notebook(path: Path, *cells: NotebookNode) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=list(cells)), path)
    return path


@pytest.fixture(scope="module")
def small_course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small course of one notebook, executed, its site built."""
    root = tmp_path_factory.mktemp("tiny")
    write_notebook(
        root / "notebooks" / "01_tiny.ipynb",
        v4.new_markdown_cell("# What is $x^2$?\n\nA square."),
        v4.new_code_cell("import os, sys\nprint('a')\nprint(os.environ['HF_HUB_OFFLINE'], sys.executable)"),
        v4.new_code_cell(
            "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()", metadata={"alt": "A rising line."}
        ),
        v4.new_code_cell("six = 6", metadata={"tags": ["hide-input"]}),
    )
    assert course.main([], root) == 0
    return root


def test_the_site_shows_what_was_executed_now(small_course: Path):
    html = (small_course / "_site" / "notebooks" / "01_tiny.html").read_text(encoding="utf-8")
    assert sys.executable in html and 'alt="A rising line."' in html and " s to run" in html


def test_executing_leaves_the_file_alone_and_uses_this_interpreter(small_course: Path):
    path = small_course / "notebooks" / "01_tiny.ipynb"
    before = path.read_bytes()
    notebook = course.execute(path)
    assert path.read_bytes() == before
    text = shown_text(notebook.cells[1].outputs)
    assert text.split()[:3] == ["stdout:", "a", "1"]
    assert Path(text.split()[3]).parent.samefile(Path(sys.executable).parent)
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, 3]
    assert notebook.metadata.pop("course")["seconds"] % 10 == 0
    assert notebook.metadata == {"kernelspec": course.KERNEL, "language_info": {"name": "python"}}
    assert notebook.cells[2].outputs[-1].metadata["image/png"] == {"alt": "A rising line."}
    assert notebook.cells[3].metadata == {"tags": ["hide-input"], "jupyter": {"source_hidden": True}}


def test_saving_twice_changes_nothing(tmp_path: Path):
    cells = [v4.new_markdown_cell("# A"), v4.new_code_cell("print(1)\n2 + 2", id="kept-id")]
    path = write_notebook(tmp_path / "notebooks" / "01.ipynb", *cells)
    assert course.main(["--save"], tmp_path) == 0
    saved = path.read_bytes()
    assert course.main(["--save", "01"], tmp_path) == 0
    assert path.read_bytes() == saved
    cell = json.loads(saved)["cells"][1]
    assert cell["id"] == "kept-id" and cell["metadata"] == {} and len(cell["outputs"]) == 2


def test_saved_figures_are_small_and_look_the_same():
    figure, ax = plt.subplots(dpi=110)
    ax.imshow(np.add.outer(np.arange(20.0), np.arange(20.0)), cmap="viridis")
    ax.set_title("twenty by twenty")
    before = io.BytesIO()
    figure.savefig(before, format="png")
    plt.close(figure)
    cell = v4.new_code_cell("plt.show()")
    cell.outputs = [v4.new_output("display_data", {"image/png": b64encode(before.getvalue()).decode()})]
    after = io.BytesIO(b64decode(course.shrink(NotebookNode(cells=[cell])).cells[0].outputs[0].data["image/png"]))
    old, new = (np.asarray(Image.open(file).convert("RGB"), dtype=int) for file in (before, after))
    assert len(after.getvalue()) < 0.6 * len(before.getvalue())
    assert abs(old - new).mean() < 1 and abs(old - new).max() < 40


def test_a_failing_cell_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cells = [v4.new_code_cell("x = 1"), v4.new_markdown_cell("# B"), v4.new_code_cell("# divide\nx / 0")]
    write_notebook(tmp_path / "notebooks" / "01_bad.ipynb", *cells)
    write_notebook(tmp_path / "notebooks" / "02_good.ipynb", v4.new_markdown_cell("# Good\n\nFine."))
    assert course.main([], tmp_path) == 1
    said = capsys.readouterr().out
    assert "01_bad.ipynb failed in cell 3 of 3\n    # divide\n    ZeroDivisionError: division by zero" in said
    assert "1 of 2 notebooks failed" in said
    assert not (tmp_path / "_site").exists()


def test_no_notebook_is_a_failure(tmp_path: Path):
    with pytest.raises(SystemExit) as stopped:
        course.main([], tmp_path)
    assert stopped.value.code
