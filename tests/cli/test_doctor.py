"""`python -m bignas_jax doctor`: the report, what it calls wrong, and its exit codes."""

import numpy as np
import pytest

from bignas_jax.cli import checks, doctor
from bignas_jax.kernels import native
from bignas_jax.ops.size import Size
from bignas_jax.programs import kept


@pytest.fixture
def quick(monkeypatch):
    """Without what takes long: the figures that it would measure."""
    monkeypatch.setattr(checks, "masked_against_sliced", lambda: 2e-7)
    monkeypatch.setattr(checks, "copy_bandwidth", lambda: 3e12)
    monkeypatch.setattr(checks, "product_rate", lambda dtype: {"float32": 6e13, "bfloat16": 7e14}[dtype])
    monkeypatch.setattr(checks, "images_a_second", lambda: 321.0)


def test_the_report_names_all_that_a_bug_report_needs(quick, capsys):
    assert doctor.main(["bignas_jax doctor"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines()[:-1] if not line.startswith("  ")] == list(doctor.SECTIONS)
    for part in (f"numpy {np.__version__}", "cpu: 8 x cpu", "XLA_FLAGS=", "3000 GB/s", "700.00 TFLOP/s", "321 a second",
                 "differ by 2.0e-07", "all is well"):  # fmt: skip
        assert part in out, part
    assert "WRONG" not in out


def test_what_is_wrong_is_told_and_the_report_goes_on(quick, capsys, monkeypatch, tmp_path):
    def broken():
        raise RuntimeError("the driver\nis gone")

    monkeypatch.setattr(checks, "masked_against_sliced", lambda: 0.3)
    monkeypatch.setattr(checks, "copy_bandwidth", broken)
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(kept, "folder", lambda: tmp_path)
    monkeypatch.setattr(doctor, "FREE_DISK", 1e30)
    assert doctor.main(["bignas_jax doctor"]) == 1
    out = capsys.readouterr().out
    wrong = [line.strip() for line in out.splitlines() if line.startswith("  WRONG")]
    assert len(wrong) == 4 and out.splitlines()[-1].startswith("4 wrong")
    assert wrong[-1] == "WRONG RuntimeError: the driver (doctor --debug shows where)"
    assert "WRONG gradients differ by 3.0e-01" in out and "WRONG no native kernels" in out
    assert f"{tmp_path}: 0 programs" in out


def test_a_cache_that_no_program_has_made_yet_is_well_and_a_file_in_its_place_is_not(
    quick, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(kept, "folder", lambda: tmp_path / "new" / "bignas_jax")
    assert doctor.main(["bignas_jax doctor"]) == 0
    assert f"{tmp_path}/new/bignas_jax: 0 programs, 0 MB; " in capsys.readouterr().out
    (tmp_path / "new").write_text("")
    assert doctor.main(["bignas_jax doctor"]) == 1
    assert f"WRONG {tmp_path}/new is no folder: move it, or set JAX_COMP" in capsys.readouterr().out


def test_an_error_is_traced_if_that_is_asked_for(quick, capsys, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: 1 / 0)
    for arguments, traced in ((["--debug"], True), ([], False)):
        assert doctor.main(["bignas_jax doctor", *arguments]) == 1
        found = capsys.readouterr()
        assert "WRONG ZeroDivisionError: division by zero" in found.out
        assert ("Traceback" in found.err) == traced


def test_it_takes_no_argument(capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.main(["bignas_jax doctor", "--fast"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "bignas_jax doctor: found '--fast', expected no argument\n"


def test_the_masked_network_is_the_sliced_one_and_a_missing_mask_shows(monkeypatch):
    assert checks.masked_against_sliced() < 1e-5
    # Without masks, and without the native kernels, which stop at the sampled channels by themselves.
    monkeypatch.setattr(Size, "mask", lambda self, x, axis=-1: x)
    with native.off():
        assert checks.masked_against_sliced() > 10 * checks.TOLERANCE


def test_images_are_read_and_rates_measured():
    assert checks.images_a_second(files=40, seconds=0.1) > 0
    assert checks.copy_bandwidth() > 1e6 and checks.product_rate("float32") > 1e6
