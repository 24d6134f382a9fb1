"""The folder in which whole runs of these tests work."""

import pytest
from run_lab import CONFIG


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with the config, and a cache of compiled programs that the runs share."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "tiny.py").write_text(CONFIG)
    return folder
