"""The helper package is thin: what importing it loads, how its modules build on each other, how long they are."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mtl_helpers
from mtl_helpers import TrainingConfig, evaluate, fit

FOLDER = Path(mtl_helpers.__file__).parent
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.py"))}
ORDER = re.findall(r"\w+", re.search(r"those before it: ([^.]+)\.", mtl_helpers.__doc__)[1].replace("around them", ""))
HEAVY = {"torch", "transformers", "seaborn", "matplotlib", "IPython", "peft", "experiments"}


@pytest.mark.parametrize(
    ("modules", "loaded"),
    [
        (("mtl_helpers",), []),
        (("mtl_helpers.corpus", "mtl_helpers.checks", "mtl_helpers.own_tasks", "mtl_helpers.serving"), []),
        (("mtl_helpers.training", "mtl_helpers.__main__"), ["torch", "transformers"]),  # peft: by who asks for LoRA
    ],
)
def test_importing_loads_no_more_than_is_needed(modules: tuple[str, ...], loaded: list[str]):
    code = f"import sys, {', '.join(modules)}; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == f"{loaded}\n"


def test_every_name_can_be_imported_and_listed():
    assert all(getattr(mtl_helpers, name) is not None for name in mtl_helpers.__all__)
    assert set(mtl_helpers.__all__) < set(dir(mtl_helpers))
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = mtl_helpers.Trainer


def test_a_module_imports_only_those_before_it_in_the_order_of_reading():
    assert len(ORDER) == len(set(ORDER))
    assert set(ORDER) == set(SOURCES) - {"__init__", "__main__"}
    for place, name in enumerate(ORDER):
        for node in ast.walk(ast.parse(SOURCES[name])):
            if isinstance(node, ast.ImportFrom) and node.level:
                used = [node.module] if node.module else [alias.name for alias in node.names]
                assert [module for module in used if module not in ORDER[:place]] == [], name
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert "experiments" not in [module.partition(".")[0] for module in names], name


def test_modules_and_functions_are_short():
    assert {name: source.count("\n") for name, source in SOURCES.items() if source.count("\n") > 300} == {}
    for name, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{name}.{node.name}"


def test_the_package_does_not_grow():
    """What a reader reads, and all of it with reading CSVs, model folders, serving and the command line."""
    around = "warn tables csv_file progress runtime folders backbones modules_json own_tasks console __main__ __init__"
    around += " serving predictor service export"
    lines = {name: source.count("\n") for name, source in SOURCES.items()}
    assert sum(n for name, n in lines.items() if name not in around.split()) <= 2705
    assert sum(lines.values()) <= 4920


def test_warnings_point_at_the_line_of_whoever_uses_the_package(model, short):
    """However deep inside they are raised: in `predict`, `evaluate` and `fit`."""
    rows = short[:4].assign(topic=" sports ")[["text", "topic"]]  # and no label of other tasks
    rows.iloc[0, 0] = "word " * 100
    config = TrainingConfig(epochs=1, max_tokens=100)
    for use in (
        lambda: model.predict(["word " * 100]),
        lambda: evaluate(model, rows),
        lambda: fit(model, rows, rows, config),
        lambda: model.examples(rows),
    ):
        with pytest.warns(UserWarning) as caught:
            use()
        assert {warning.filename for warning in caught} == {__file__}, caught[0].message
