"""The same command gives the same bits twice, with `config.deterministic` and on CPUs without it."""

from run_lab import CONFIG, assert_same_bits, finish, last_checkpoint, records, start, without_speed

SHORT = ["--config.max_steps=9", "--config.checkpoint.every_steps=9"]


def test_the_same_bits_twice_and_on_cpus_those_of_any_run(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    runs = {"first": ["--config.deterministic"], "again": ["--config.deterministic"], "plain": []}
    for name, more in runs.items():
        # XLA ends a process that is started with a flag which it does not know.
        finish(start(tmp_path, tmp_path / name, *SHORT, *more, devices=2))
    for name in ("again", "plain"):
        assert_same_bits(last_checkpoint(tmp_path / name), last_checkpoint(tmp_path / "first"))
        assert without_speed(records(tmp_path / name)) == without_speed(records(tmp_path / "first"))


def test_flags_to_the_contrary_end_the_run_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "tiny.py").write_text(CONFIG)
    import run_lab

    before = run_lab.environment
    monkeypatch.setattr(
        run_lab, "environment", lambda *a: before(*a) | {"XLA_FLAGS": "--xla_gpu_deterministic_ops=false"}
    )
    _, err = finish(start(tmp_path, tmp_path / "run", "--config.deterministic"), code=2)
    assert err.count("\n") == 1 and "config.deterministic: found --xla_gpu_deterministic_ops=false" in err
    assert not (tmp_path / "run").exists()
