"""The pinned releases: all that is required is pinned once for each Python, within its range."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from paths import ROOT

PYTHONS = ("3.11", "3.12", "3.13")


def requirements(name):
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def pins(python):
    """The pinned releases of a Python, by the package's name."""
    found = {}
    for pin in requirements("constraints.txt"):
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            (exact,) = pin.specifier
            assert exact.operator == "==" and canonicalize_name(pin.name) not in found, pin
            found[canonicalize_name(pin.name)] = Version(exact.version)
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned_within_its_range(python):
    pinned = pins(python)
    for required in requirements("requirements.txt"):
        version = pinned[canonicalize_name(required.name)]
        assert required.specifier.contains(version), (required, version)
        assert not version.is_prerelease, required


@pytest.mark.parametrize("python, jax", [("3.11", "0.10"), ("3.12", "0.12"), ("3.13", "0.12")])
def test_each_python_has_its_own_jax_with_the_parts_for_gpus(python, jax):
    pinned = pins(python)
    for name in ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt"):
        assert str(pinned[name]).startswith(f"{jax}."), name


def test_setup_installs_the_pins():
    text = (ROOT / "Makefile").read_text()
    assert "-c constraints.txt -r" in text and "$(READY): requirements.txt constraints.txt" in text


def test_the_audit_leaves_out_what_its_page_explains():
    """Each line of the table in docs/audit.md names a fault, a package and a reason."""
    rows = re.findall(r"^\|(.*)\|(.*)\|(.*)\|$", (ROOT / "docs" / "audit.md").read_text(), re.MULTILINE)[2:]
    assert all(all(cell.strip() for cell in row) for row in rows)
