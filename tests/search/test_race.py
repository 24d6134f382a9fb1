"""Progressive scoring, the journal, and a search that is killed anywhere."""

import dataclasses
import json
import math
import zlib

import numpy as np
import pytest
from landscape import CLASSES, SPACE, FakeHeldOut, accuracy, problem

from bignas_jax.errors import ConfigError
from bignas_jax.search.held_out import Part, Sizes
from bignas_jax.search.journal import Journal, packed, unpacked
from bignas_jax.search.problem import Budget, Problem
from bignas_jax.search.race import LEAST_CHANGES, Race, paired
from bignas_jax.search.strategies.strategy import Proposal

RNG = np.random.default_rng(0)
PREVIEWED = Sizes(calibration=500, calibration_batch=60, held_out=2000, batch=100, first=500, preview=150)
ARCHS = [SPACE.sample(np.random.default_rng(n)) for n in range(40)]
RECORD = {
    "images": 5,
    "top1_images": 3,
    "top5_images": 4,
    "loss_sum": 2.5,
    "correct": packed(np.array([True, False, True, True, False])),
    "seconds": 1.5,
}


def proposals(archs):
    return [Proposal(arch, "test") for arch in archs]


def race(tmp_path, held_out=None, searched=None, confidence=2.0, front=False, name="j.jsonl"):
    journal = Journal(tmp_path / name, {"step": 1})
    return Race(searched or problem(0.6, 1.0), held_out or FakeHeldOut(), journal, confidence, front)


def test_scores_are_those_of_all_images_for_all_that_stay(tmp_path):
    found = race(tmp_path)
    scores = found.score(proposals(ARCHS))
    dropped = [e for e in found.evaluations.values() if not e.complete]
    kept = [e for e in found.evaluations.values() if e.complete]
    assert len(dropped) > 5 and len(kept) > 1
    fake = FakeHeldOut()
    for e in kept:
        assert scores[e.arch] == e.top1 == pytest.approx(fake.truth(e.arch), abs=1e-12) and e.images == 2000
    for e in dropped:
        assert e.images == 500 and e.top1 == pytest.approx(fake.truth(e.arch), abs=0.06)


def test_the_best_of_each_budget_is_the_one_that_full_scores_would_choose(tmp_path):
    """Over many draws of candidates, a rule of two standard errors seldom loses the best, and saves work."""
    searched, same, images, everything = problem(0.4, 0.6, 1.0), 0, 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        archs = list(dict.fromkeys(searched.sample(searched.budgets[n % 3], rng) for n in range(30)))
        fast = race(tmp_path, searched=searched, name=f"fast{seed}")
        full = race(tmp_path, searched=searched, name=f"full{seed}", confidence=math.inf)
        fast.score(proposals(archs))
        full.score(proposals(archs))
        same += sum(fast.best(b).arch == full.best(b).arch for b in searched.budgets)
        images += sum(e.images for e in fast.evaluations.values())
        everything += sum(e.images for e in full.evaluations.values())
    assert same >= 57 and images < 0.6 * everything, (same, images / everything)


def test_a_front_is_kept_too(tmp_path):
    found = race(tmp_path, front=True)
    found.score(proposals(ARCHS))
    front = found.front()
    fake, searched = FakeHeldOut(), problem(1.0)
    assert 2 < len(front) and any(not e.complete for e in found.evaluations.values())
    for e in found.evaluations.values():
        beaten = any(f.top1 >= e.top1 and searched.cost_of(f.arch) <= searched.cost_of(e.arch) for f in front)
        assert beaten or not e.complete or e in front
        if not e.complete:
            cheaper = [f for f in front if searched.cost_of(f.arch) <= searched.cost_of(e.arch)]
            assert max(f.top1 for f in cheaper) >= fake.truth(e.arch) - 0.01


def test_each_is_scored_once(tmp_path):
    held_out = FakeHeldOut()
    found = race(tmp_path, held_out)
    first = found.score(proposals(ARCHS[:10]))
    calls = len(held_out.calls)
    assert found.score(proposals(ARCHS[:10])) == first and len(held_out.calls) == calls
    assert len(set(held_out.calls)) == calls


def test_always_scores_on_all_images(tmp_path):
    found = race(tmp_path)
    found.score(proposals(ARCHS), always=True)
    assert all(e.complete for e in found.evaluations.values())


def test_the_whole_set_as_first_part(tmp_path):
    held_out = FakeHeldOut(Sizes(0, 1, 300, first=300, batch=100))
    found = race(tmp_path, held_out)
    found.score(proposals(ARCHS))
    assert all(e.images == 300 for e in found.evaluations.values())
    assert {part for _, part in held_out.calls} == {Part.FIRST}


@pytest.mark.parametrize("sizes", [FakeHeldOut().sizes, PREVIEWED], ids=["first part", "preview"])
@pytest.mark.parametrize("last", [0, 1, 7, 39])
def test_a_killed_race_ends_as_one_that_was_not(tmp_path, last, sizes):
    whole = race(tmp_path, FakeHeldOut(sizes), name="whole")
    expected = whole.score(proposals(ARCHS))
    with pytest.raises(KeyboardInterrupt):
        race(tmp_path, FakeHeldOut(sizes, last=last), name="killed").score(proposals(ARCHS))
    with open(tmp_path / "killed", "a") as file:
        file.write('{"architecture": {"resol')  # a line that was being written
    again = FakeHeldOut(sizes)
    found = race(tmp_path, again, name="killed")
    assert found.score(proposals(ARCHS)) == expected
    assert found.evaluations == whole.evaluations
    assert without_seconds(tmp_path / "killed") == without_seconds(tmp_path / "whole")
    assert len(again.calls) + last == whole.made


def test_a_preview_saves_work_and_seldom_loses_the_best(tmp_path):
    """As two standard errors say, though a preview's statistics make architectures worse by different amounts."""
    searched, same, images, everything = problem(0.4, 0.6, 1.0), 0, 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        archs = list(dict.fromkeys(searched.sample(searched.budgets[n % 3], rng) for n in range(60)))
        held_out, plain = FakeHeldOut(PREVIEWED), FakeHeldOut()
        fast = race(tmp_path, held_out, searched, name=f"fast{seed}")
        slow = race(tmp_path, plain, searched, name=f"slow{seed}")
        full = race(tmp_path, searched=searched, name=f"full{seed}", confidence=math.inf)
        for each in (fast, slow, full):
            each.score(proposals(archs[:20]))
            each.score(proposals(archs[20:]))
        same += sum(fast.best(b).arch == full.best(b).arch for b in searched.budgets)
        images += read(held_out)
        everything += read(plain)
    assert same >= 56 and images < 0.75 * everything, (same, images / everything)


def read(held_out: FakeHeldOut) -> int:
    """The images that a race read, with those of the calibration."""
    first = {Part.PREVIEW: PREVIEWED.calibration_batch, Part.FIRST: PREVIEWED.calibration}
    return sum(PREVIEWED.images(part) + first.get(part, 0) for _, part in held_out.calls)


def test_previews_end_where_all_candidates_are_about_as_good(tmp_path):
    class Alike(FakeHeldOut):
        """Each architecture answers another 70% of the images."""

        def outcomes(self, arch, statistics, part):
            rows = super().outcomes(arch, statistics, part)
            own = np.random.default_rng(zlib.crc32(arch.to_json().encode()))
            rows[:, 0] = own.random(2000)[PREVIEWED.of(part)] < 0.7
            return rows

    held_out, plain = Alike(PREVIEWED), Alike(dataclasses.replace(PREVIEWED, preview=0))
    archs = list(dict.fromkeys(SPACE.sample(np.random.default_rng(n)) for n in range(200)))
    for each, name in ((held_out, "previewed"), (plain, "plain")):
        found = race(tmp_path, each, problem(1.0), name=name)
        for start in range(0, len(archs), 10):
            found.score(proposals(archs[start : start + 10]))
    previews = [part for _, part in held_out.calls if part is Part.PREVIEW]
    assert 24 <= len(previews) < 45 and read(held_out) < 1.06 * read(plain)


def test_a_preview_drops_none_before_its_error_is_known(tmp_path):
    """The candidates that went on tell by how much few calibration images change an accuracy."""
    held_out = FakeHeldOut(PREVIEWED)
    found = race(tmp_path, held_out, problem(1.0))
    found.score(proposals(ARCHS))
    evaluations = sorted(found.evaluations.values(), key=lambda e: e.seconds)
    went_on = [e.change is not None for e in evaluations]
    assert all(went_on[:LEAST_CHANGES]) and not all(went_on)
    changes = [e.change for e in evaluations if e.change is not None]
    assert np.mean(changes) == pytest.approx(0.02, abs=0.01)
    for e in evaluations:
        assert e.images in ((150, 500) if e.change is None else (2000,) if e.complete else (500,))
        assert len(e.correct) == min(e.images, 500)
        if e.change is None:
            assert not e.complete and e.top1 == pytest.approx(held_out.truth(e.arch), abs=0.12)


def test_a_preview_of_other_images_is_made_again(tmp_path):
    race(tmp_path, FakeHeldOut(PREVIEWED)).score(proposals(ARCHS))
    again = FakeHeldOut(dataclasses.replace(PREVIEWED, preview=100))
    found = race(tmp_path, again)
    found.score(proposals(ARCHS))
    assert [arch for arch, part in again.calls if part is Part.PREVIEW] == list(dict.fromkeys(ARCHS))
    anew = race(tmp_path, FakeHeldOut(again.sizes), name="anew")
    anew.score(proposals(ARCHS))
    assert found.evaluations == anew.evaluations


def without_seconds(path) -> list[dict]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def test_seconds_add_up_over_a_kill(tmp_path):
    first = race(tmp_path)
    first.score(proposals(ARCHS[:5]))
    again = race(tmp_path)
    again.score(proposals(ARCHS[:5]))
    assert again.seconds == pytest.approx(first.seconds) and first.seconds > 0
    times = [e.seconds for e in sorted(again.evaluations.values(), key=lambda e: e.seconds)]
    assert times[-1] == pytest.approx(first.seconds, abs=1e-3)


def test_a_loss_that_is_not_a_number(tmp_path):
    class NoNumbers(FakeHeldOut):
        def outcomes(self, arch, statistics, part):
            rows = super().outcomes(arch, statistics, part)
            rows[:, 2] = np.nan if arch == ARCHS[0] else 1.0
            rows[:, 0] = np.arange(len(rows)) % 2
            return rows

    found = race(tmp_path, NoNumbers())
    found.score(proposals(ARCHS[:2]), always=True)
    again = race(tmp_path, NoNumbers())
    again.score(proposals(ARCHS[:2]), always=True)
    for each in (found, again):
        assert math.isnan(each.evaluations[ARCHS[0]].loss)
        (budget,) = [b for b in problem(1.0).budgets]
        assert each.best(budget).arch == ARCHS[1], "of equal accuracies the one whose loss is a number"
    assert "NaN" not in (tmp_path / "j.jsonl").read_text()


def test_a_front_keeps_the_best_of_budgets_of_another_cost(tmp_path):
    """Rivals that cost as little need not keep a limit on parameters."""
    most = problem(1.0).costs(SPACE.biggest)["params"]
    budgets = [Budget("small", params=0.4 * most), Budget("large", params=0.7 * most)]
    searched = Problem(SPACE, CLASSES, budgets)
    archs = [SPACE.sample(np.random.default_rng(n)) for n in range(60)]
    fast = race(tmp_path, searched=searched, front=True, name="fast")
    full = race(tmp_path, searched=searched, confidence=math.inf, name="full")
    for each in (fast, full):
        each.score(proposals(archs))
    assert [fast.best(b).top1 for b in budgets] == pytest.approx([full.best(b).top1 for b in budgets], abs=0.005)


def test_paired_differences_against_their_definition():
    """The mean, and an interval that holds the difference over all images about as often as it says."""
    inside = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        easy = rng.random(2000)
        ours, theirs = easy + rng.normal(0, 0.05, 2000) < 0.8, easy + rng.normal(0, 0.05, 2000) < 0.78
        difference, error = paired(ours[:400], theirs[:400], 2000)
        assert difference == pytest.approx(ours[:400].mean() - theirs[:400].mean())
        inside += abs(difference - (ours.mean() - theirs.mean())) < 2 * error
    assert 0.93 < inside / 300 < 0.99
    assert paired(ours, theirs, 2000)[1] == 0
    # Independent samples of the same accuracies would leave more doubt.
    p = ours[:400].mean()
    assert error < 0.8 * math.sqrt(2 * p * (1 - p) / 400 * 0.8)
    assert paired(ours[:400], ours[:400], 2000) == (0, pytest.approx(math.sqrt(1 / 401 / 400 * 0.8)))


def test_bits_as_text():
    for count in (0, 1, 8, 13):
        bits = RNG.random(count) < 0.5
        assert (unpacked(packed(bits), count) == bits).all()


def test_a_journal_of_something_else_is_set_aside(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    for step in (1, 2, 3):
        journal = Journal(path, {"step": step, "sizes": (1, 2)})
        assert len(journal) == 0 and (journal.set_aside is None) == (step == 1)
        journal.add(ARCHS[step], "first", **RECORD)
        journal.close()
    for step in (3, 1, 2):  # what was set aside comes back
        again = Journal(path, {"step": step, "sizes": (1, 2)})
        assert again.find(ARCHS[step], "first")["images"] == 5 and len(again) == 1
        assert again.differences == (() if step == 3 else ("step",))
        again.close()
    assert len(list(tmp_path.glob("*.jsonl"))) == 3


def test_images_that_moved_are_the_same_and_other_validation_images_are_not(tmp_path):
    path = tmp_path / "evaluations.jsonl"

    def open_with(data, **val):
        journal = Journal(path, {"step": 1, "data": data, **val})
        count = len(journal)
        if not count:
            journal.add(ARCHS[0], "first", **RECORD)
        journal.close()
        return count, journal.differences

    assert open_with({"root": "here", "holdout": 5}) == (0, ())  # as an earlier version wrote it
    assert open_with({"holdout": 5}, val={"digest": "a"}) == (1, ())
    assert open_with({"holdout": 6}, val={"digest": "a"}) == (0, ("data",))
    assert open_with({"holdout": 6}, val={"digest": "b"}) == (0, ("val",))


def test_a_line_cut_short_is_dropped_wherever_it_was_cut(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    journal = Journal(path, {"step": 1})
    journal.add(ARCHS[0], "first", **RECORD)
    journal.close()
    data = path.read_bytes()
    for end in range(len(data)):
        path.write_bytes(data[:end])
        again = Journal(path, {"step": 1})
        assert len(again) == 0 and again.set_aside is None
        again.close()
        assert path.read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("text", ["hello\n", '{"identity": {}}\n{"part": "first"}\n', "[1]\n", "words"])
def test_a_file_that_no_search_wrote_is_refused(tmp_path, text):
    path = tmp_path / "evaluations.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"evaluations.jsonl line \d: found something that no search wrote"):
        Journal(path, {})
    assert path.read_text() == text


def test_the_landscape_is_no_trivial_case():
    values = [accuracy(arch) for arch in ARCHS]
    assert max(values) - min(values) > 0.05


def test_the_surface_holds_what_no_other_beats_in_all_costs(tmp_path):
    """Against every pair of complete evaluations; and with one cost it is the front."""
    latency = {"latency": lambda arch: float(100 - arch.resolution + sum(arch.depth))}
    searched = problem(1.0, cost="macs,latency_ms", **latency)
    found = race(tmp_path, searched=searched, front=True)
    found.score(proposals(ARCHS))
    complete = [e for e in found.evaluations.values() if e.complete]
    rows = {e.number: (1 - e.top1, *searched.costs_of(e.arch)) for e in complete}
    expected = {n for n, row in rows.items()
                if not any(all(a <= b for a, b in zip(other, row, strict=True)) and other != row
                           for other in rows.values())}  # fmt: skip
    surface = [e.number for e in found.surface()]
    assert set(surface) == expected and len(surface) > len(found.front())
    assert {e.number for e in found.front()} <= {e.number for e in found.evaluations.values()}
    # A candidate is dropped for a rival that costs no more in both.
    for e in found.evaluations.values():
        (rival, *_) = found.rivals(e.arch)
        if rival is not None:
            assert all(a <= b for a, b in zip(searched.costs_of(rival.arch), searched.costs_of(e.arch), strict=True))
    alone = race(tmp_path, front=True, name="alone")
    alone.score(proposals(ARCHS))
    assert [e.number for e in alone.surface()] == [e.number for e in alone.front()]
