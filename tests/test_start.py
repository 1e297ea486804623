"""What a process loads before it works: that is how long a user waits for the first word."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "scipy", "PIL", "numba", "lightning", "transformers", "yaml", "jinja2"}
PARSING = {"pydantic", "multiprocessing", "importlib.metadata"}  # what only a command with arguments needs


def loaded(code: str) -> set[str]:
    """Modules in a fresh process after this code."""
    code = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before), file=sys.stderr)"
    return set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    )


def test_import_loads_the_package_alone():
    ours = {name for name in loaded("import tag2mask") if name.startswith("tag2mask")}
    assert ours == {"tag2mask"}


@pytest.mark.parametrize("command", [[], ["label"], ["storybook", "pretrain"]])
def test_help_loads_nothing_that_computes(command):
    code = (
        f"sys.argv = ['tag2mask', *{command}, '--help']\nfrom tag2mask.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
    )
    found = loaded(code)
    assert "tag2mask.cli" in found
    assert not found & (HEAVY if command else HEAVY | PARSING)
    assert not {name for name in found if name.startswith(("tag2mask.stages", "tag2mask.methods", "tag2mask.models"))}


def test_masks_of_maps_load_no_architectures():
    found = loaded("import tag2mask.stages.label")
    assert "tag2mask.stages.machinery.predictor" in found
    assert not {name for name in found if name.startswith("tag2mask.segment.architectures")}


def test_the_command_line_ends_without_a_last_search_for_garbage():
    """What is registered first runs last: the count is of what ``main`` has set aside by then."""
    code = (
        "import atexit, gc, sys\natexit.register(lambda: print(gc.get_freeze_count()))\n"
        "sys.argv = ['tag2mask', '--version']\nfrom tag2mask.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) > 1000
