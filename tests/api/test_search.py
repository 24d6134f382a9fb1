"""Searches from Python: winners, the front, and children within a budget."""

import json

import pytest
from saved_run import save, tiny_config

import bignas_jax
from bignas_jax.errors import ConfigError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = bignas_jax.open_run(save(tmp_path_factory.mktemp("runs") / "tiny", tiny_config()))
    run.won = run.search(max_macs=(60e3, 120e3), num_evaluations=12, strategy="random", first_part=1.0)
    return run


def test_the_winners_keep_their_budgets(run):
    assert [found.name for found in run.won] == ["macs-0.06M", "macs-0.12M"]
    for found, limit in zip(run.won, (60e3, 120e3), strict=True):
        assert found.macs <= limit and found.val_top1 == pytest.approx(run.child(found).evaluate("val").top1)
        saved = json.loads((run.workdir / "children" / found.name / "architecture.json").read_text())
        assert found.arch.to_dict() == saved
        assert run.child(macs=limit).arch == found.arch
    assert run.won[0].top1 <= run.won[1].top1


def test_the_front_is_what_no_other_beats(run):
    rows = json.loads((run.workdir / "search" / "result.json").read_text())["evaluations"]
    front = run.front()
    for cost in ("macs", "params"):
        known = [(row[cost], row["top1"]) for row in rows if row["complete"]]
        found = [(getattr(one, cost), one.top1) for one in run.front(cost)]
        assert found == sorted(found)
        assert set(found) == {
            (c, t) for c, t in known if not any(a <= c and b >= t and (a, b) != (c, t) for a, b in known)
        }
    assert front == run.front("macs")
    points = {(row["macs"], row["params"], 1 - row["top1"]) for row in rows if row["complete"]}
    assert {(one.macs, one.params, 1 - one.top1) for one in run.front("macs,params")} == {
        p for p in points if not any(all(a <= b for a, b in zip(q, p, strict=True)) and q != p for q in points)
    }
    with pytest.raises(ConfigError, match="own: the last search had none, expected one with run.search.own_cost"):
        run.front("macs,own")


def test_limits_together(run):
    least = min(run.front("params"), key=lambda found: found.params)
    child = run.child(params=least.params, macs=1e9)
    assert child.params <= least.params
    with pytest.raises(ConfigError, match=r"macs=28832, params=1e\+12: found none within|expected at least"):
        run.child(macs=28831, params=1e12)
    with pytest.raises(ConfigError, match=r"latency_ms: the last search estimated none"):
        run.child(latency_ms=3)
    with pytest.raises(ConfigError, match="cost: found 'watts', expected one of macs, params, latency_ms"):
        run.front("watts")


def test_a_search_of_another_checkpoint_does_not_count(run):
    path = run.workdir / "search" / "result.json"
    before = path.read_text()
    changed = json.loads(before)
    changed["run"]["step"] = 3
    try:
        path.write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match="found the search of step 3, expected step 7.*checkpoint=3"):
            run.front()
        path.write_text("{}")
        with pytest.raises(ConfigError, match="found something that a search did not write"):
            run.front()
    finally:
        path.write_text(before)


def test_samples_follow_from_the_seed(run):
    assert run.sample(seed=4) == run.sample(seed=4) and len({run.sample(seed=n) for n in range(20)}) > 3
    assert all(run.sample(seed=n) in run.space for n in range(20))
