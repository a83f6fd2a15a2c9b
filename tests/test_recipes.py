"""Every YAML of the recipes is an experiment, and every piece of Python in them parses."""

import ast
import re
from pathlib import Path

import pytest

from fedpeft import config

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_has_its_recipes():
    assert len(blocks("yaml")) == 8 and len(blocks("python")) == 2


@pytest.mark.parametrize("text", blocks("yaml"), ids=lambda text: text.split()[1])
def test_a_recipe_loads_and_has_a_plan(text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    experiment = config.load(path)
    plan = experiment.plan()
    assert plan.needed(experiment.cohort or experiment.sites) >= plan.strategy.least


@pytest.mark.parametrize("text", blocks("python"))
def test_python_parses_and_names_what_there_is(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("fedpeft"):
            module = __import__(node.module, fromlist=["*"])
            assert all(hasattr(module, alias.name) for alias in node.names)
