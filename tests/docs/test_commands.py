"""Every command line of the documentation is one that there is: a job with keys that it takes, a target, a module."""

from __future__ import annotations

import importlib.util
import re
import tomllib

import pytest

from ray_fer.config import JOBS, load_config
from ray_fer.methods.registry import check_arguments
from tests.docs.commands import NOT_RUN, ROOT, Command, commands, commands_of, pages

COMMANDS = commands()
JOB_LINES = [command for command in COMMANDS if command.job]


@pytest.mark.parametrize("command", JOB_LINES, ids=lambda command: command.text)
def test_a_job_takes_what_the_documentation_gives_it(command: Command) -> None:
    assert command.job is not None
    job, arguments = command.job
    assert job in JOBS
    assert (ROOT / "jobs" / f"{job}.py").exists()
    if arguments not in (["help"], ["help", "method=my_method"]):
        config = load_config(job, arguments)
        if job == "train_backbone":
            check_arguments(config)


@pytest.mark.parametrize("command", [each for each in COMMANDS if not each.job], ids=lambda command: command.text)
def test_other_lines_name_what_there_is(command: Command) -> None:
    match command.words:
        case ["make", target]:
            assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["python", "-m", "pytest", "-n", "0", place, *_]:
            assert (ROOT / place).exists()
        case ["python", "-m", module]:
            assert importlib.util.find_spec(module)
        case [".", place]:
            assert place == ".venv/bin/activate"
        case _:
            assert command.words == ["pre-commit", "install"]


def test_every_job_has_a_line() -> None:
    assert {command.job[0] for command in JOB_LINES if command.job} == set(JOBS)


def test_extras_that_the_pages_name() -> None:
    text = "".join((ROOT / page).read_text() for page in pages())
    named = set(re.findall(r"ray-fer\[(\w+)\]", text))
    assert named
    assert named <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def test_lines_of_blocks() -> None:
    text = f'```sh\na b=1#x \\\n  c  # why\n\n# all\n```\n```python\nd\n```\n```sh title="x"\n{NOT_RUN}e\nf\n```\n'
    found = [(command.text, command.runs) for command in commands_of("x.md", text)]
    assert found == [("a 'b=1#x' c", True), ("f", False)]
