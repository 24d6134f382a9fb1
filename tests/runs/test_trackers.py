"""Trackers: every point of a curve is sent once, over kills and restarts, and a service that fails ends no training.

`services` runs each test with stand-ins for wandb and mlflow. Where the packages are installed, it runs with them, too.
"""

import importlib.util
import json
import struct
import sys
import threading
import types

import pytest
from paths import ROOT

from bignas_jax import load_config
from bignas_jax.config.options import Options
from bignas_jax.errors import ConfigError
from bignas_jax.runs import trackers
from bignas_jax.runs.logs import Logs
from bignas_jax.runs.mlflow_run import MlflowRun
from bignas_jax.runs.trackers import About, Tracker
from bignas_jax.runs.wandb_run import WandbRun

CONFIG = {"data.source": "digits", "batch_size": 8, "long": "x" * 9000}


class StandInWandb(types.ModuleType):
    """What wandb_run uses of wandb: rows by the id of their run, which refuse a step that is not after the last one."""

    def __init__(self):
        super().__init__("wandb")
        self.rows, self.told, self.exit_codes = {}, [], []

    def Settings(self, **settings):
        return settings

    def init(self, **told):
        self.told.append(told)
        rows = self.rows.setdefault(told["id"], [])
        return types.SimpleNamespace(
            log=lambda row, step, commit: rows.append((step, dict(row))),
            finish=lambda exit_code: self.exit_codes.append(exit_code),
        )


class StandInMlflow(types.ModuleType):
    """What mlflow_run uses of mlflow: runs that keep every point, as a server does."""

    def __init__(self):
        super().__init__("mlflow")
        self.runs, self.experiments, runs = {}, {}, {}
        self.runs = runs
        entities = types.SimpleNamespace(Metric=lambda *m: m, Param=lambda *p: p)
        self.entities, self.tracking = entities, types.SimpleNamespace(MlflowClient=lambda uri: self)

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def create_experiment(self, name):
        self.experiments[name] = types.SimpleNamespace(experiment_id=name)
        return name

    def create_run(self, experiment, run_name):
        self.runs[run_name] = {"status": "RUNNING", "points": [], "params": {}}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_name))

    def update_run(self, run, status):
        self.runs[run]["status"] = status

    set_terminated = update_run

    def log_batch(self, run, metrics=(), params=()):
        assert len(params) <= 100 and all(len(value) <= 6000 for _, value in params)
        self.runs[run]["points"] += [(name, step, value) for name, value, _, step in metrics]
        self.runs[run]["params"] |= dict(params)

    def get_run(self, run):
        return types.SimpleNamespace(data=types.SimpleNamespace(metrics={p[0]: p[2] for p in self.runs[run]["points"]}))

    def get_metric_history(self, run, name):
        return [types.SimpleNamespace(step=step) for found, step, _ in self.runs[run]["points"] if found == name]


def rows_of_file(path):
    """The rows in an offline file of wandb: LevelDB's log format, of protobuf records, after 7 bytes of its own."""
    from wandb.proto import wandb_internal_pb2 as messages

    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            message, record = messages.Record.FromString(record), b""
            if message.WhichOneof("record_type") == "history":
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in message.history.item}
                yield row["_step"], {name: value for name, value in row.items() if not name.startswith("_")}


@pytest.fixture(params=["stand-in", "real"])
def wandb_rows(request, monkeypatch):
    """Reads the rows of all starts of a run in W&B."""
    if request.param == "stand-in":
        stand_in = StandInWandb()
        monkeypatch.setitem(sys.modules, "wandb", stand_in)
        return lambda workdir: stand_in.rows[json.loads((workdir / "wandb.json").read_text())["id"]]
    pytest.importorskip("wandb", reason="W&B takes 103 MB: the stand-in is tested wherever it is not installed")
    return lambda workdir: [
        row for file in sorted(workdir.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
        for row in rows_of_file(file)
    ]  # fmt: skip


@pytest.fixture(params=["stand-in", "real"])
def mlflow_points(request, monkeypatch, tmp_path):
    """The tracking URI, and what reads the points (curve, step, value) and the status of a run in MLflow."""
    if request.param == "stand-in":
        stand_in = StandInMlflow()
        for name, module in (("mlflow", stand_in), ("mlflow.entities", stand_in.entities)):
            monkeypatch.setitem(sys.modules, name, module)
        return "http://stand-in", lambda run: (stand_in.runs[run]["points"], stand_in.runs[run]["status"])
    pytest.importorskip("mlflow.store.tracking.dbmodels.models", reason="MLflow takes 851 MB: see W&B")
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def read(run):
        client = MlflowClient(uri)
        found = client.get_run(run)
        histories = (client.get_metric_history(run, name) for name in found.data.metrics)
        return [(p.key, p.step, p.value) for points in histories for p in points], found.info.status

    return uri, read


def about(workdir, target, project="p"):
    workdir.mkdir(exist_ok=True)
    return About(workdir, target, project, CONFIG)


def feed(service, *records):
    for step, values in records:
        if new := service.new(step, values):
            service.send(step, new)


LOSSES = [(step, {"loss/max": 1.0 / step, "epoch": step / 4}) for step in range(1, 9)]
SCORE = (4, {"top1/max": 0.5})


def test_wandb_gets_each_row_once_over_kills_and_stops(wandb_rows, tmp_path):
    where = about(tmp_path / "run", "offline")
    killed = WandbRun(where)
    feed(killed, *LOSSES[:6])  # the sixth waits for a later step, and is lost
    again = WandbRun(where)
    feed(again, *LOSSES[:3])  # what metrics.jsonl had up to the checkpoint
    feed(again, LOSSES[3])
    again.close(finished=False)
    last = WandbRun(where)
    feed(last, *LOSSES[:4], *LOSSES[4:])
    last.close(finished=True)
    assert wandb_rows(where.workdir) == LOSSES


def test_an_evaluation_after_a_stop_reaches_wandb_by_itself(wandb_rows, tmp_path):
    where = about(tmp_path / "run", "offline")
    stopped = WandbRun(where)
    feed(stopped, *LOSSES[:4])
    stopped.close(finished=False)
    again = WandbRun(where)
    feed(again, *LOSSES[:4], SCORE, LOSSES[4])
    again.close(finished=True)
    assert wandb_rows(where.workdir) == [*LOSSES[:4], SCORE, LOSSES[4]]
    whole = WandbRun(other := about(tmp_path / "other", "offline"))
    feed(whole, *LOSSES[:4], SCORE, LOSSES[4])
    whole.close(finished=True)
    assert wandb_rows(other.workdir) == [*LOSSES[:3], (4, LOSSES[3][1] | SCORE[1]), LOSSES[4]]


def test_wandb_is_told_the_config_and_the_same_id_at_each_start(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", stand_in := StandInWandb())
    for finished in (False, True):
        WandbRun(about(tmp_path / "run", "offline")).close(finished)
    first, second = stand_in.told
    assert first["id"] == second["id"] and first["mode"] == "offline" and first["config"] == CONFIG
    assert first["name"] == "run" and first["project"] == "p" and first["dir"] == str(tmp_path / "run")
    assert stand_in.exit_codes == [1, 0]


def test_mlflow_gets_each_point_once_over_kills_and_stops(mlflow_points, tmp_path):
    uri, read = mlflow_points
    where = about(tmp_path / "run", uri)
    killed = MlflowRun(where)
    feed(killed, *LOSSES[:6])
    again = MlflowRun(where)
    feed(again, *LOSSES[:3])
    feed(again, LOSSES[3], SCORE)
    again.close(finished=False)
    run = json.loads((where.workdir / "mlflow.json").read_text())["run"]
    assert read(run)[1] == "KILLED"
    last = MlflowRun(where)
    feed(last, *LOSSES[:4], SCORE, *LOSSES[4:])
    last.close(finished=True)
    points, status = read(run)
    expected = [(name, step, value) for step, values in (*LOSSES, SCORE) for name, value in values.items()]
    assert sorted(points) == sorted(expected) and status == "FINISHED"


def test_a_new_address_of_mlflow_begins_a_new_run(monkeypatch, tmp_path):
    stand_in = StandInMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)
    feed(MlflowRun(about(tmp_path / "run", "http://a")), *LOSSES)
    assert stand_in.runs["run"]["params"]["data.source"] == "digits"
    feed(MlflowRun(about(tmp_path / "run", "http://b")), LOSSES[0])
    assert len(stand_in.runs["run"]["points"]) == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"id": "a"}', "7", '{"uri": 1}'])
def test_a_damaged_note_is_told_and_nothing_is_sent(content, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", StandInWandb())
    monkeypatch.setitem(sys.modules, "mlflow", StandInMlflow())
    for name, kind in (("wandb", WandbRun), ("mlflow", MlflowRun)):
        (tmp_path / f"{name}.json").write_text(content)
        said = []
        Tracker("it", lambda kind=kind: kind(about(tmp_path, "x")), said.append).close(finished=False)
        assert len(said) == 1 and f"{name}.json" in said[0] and "remove it" in said[0]


class Fake:
    """A service that notes what it is sent, and fails or waits where it is told to."""

    def __init__(self, fails_at=None, waits_for=None):
        self.sent, self.closed, self._fails_at, self._waits_for = [], None, fails_at, waits_for

    def new(self, step, values):
        return values

    def send(self, step, values):
        if self._waits_for:
            self._waits_for.wait()
        if step == self._fails_at:
            raise RuntimeError("no\nroute to host")
        self.sent.append((step, values))

    def close(self, finished):
        self.closed = finished


def test_a_service_that_fails_is_told_once_and_the_training_goes_on(tmp_path, capsys):
    service = Fake(fails_at=3)
    logs = Logs(tmp_path, 0, 5, bar=False, track=lambda say: [Tracker("W&B", lambda: service, say)])
    for step, values in LOSSES[:5]:
        logs.advance()
        logs.record(step, values)
    logs.close()
    assert [step for step, _ in service.sent] == [1, 2] and service.closed is None
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
    said = capsys.readouterr().err
    assert said == "W&B: metrics are not sent any more (no route to host); metrics.jsonl has them all\n"


def test_a_service_that_does_not_answer_holds_the_end_up_for_a_while_only():
    release, said = threading.Event(), []
    tracker = Tracker("MLflow", lambda: Fake(waits_for=release), said.append)
    tracker.add(1, {"loss": 1.0})
    tracker.close(finished=True, patience=0.05)
    release.set()
    assert said == ["MLflow: found no answer in 0 s, so the last metrics may be missing there"]


def test_records_from_before_a_start_are_sent_and_the_end_is_known(tmp_path):
    for start, finished in ((0, False), (3, True)):
        service = Fake()
        logs = Logs(tmp_path, start, 5, bar=False, track=lambda say, s=service: [Tracker("it", lambda: s, say)])
        for step, values in LOSSES[start : 4 if start == 0 else 5]:
            logs.advance()
            logs.record(step, values | {"loss/min": float("nan")})
        logs.close()
        assert service.closed is finished
    # Step 4 was dropped, and came again. NaN is null in metrics.jsonl.
    assert [step for step, _ in service.sent] == [1, 2, 3, 4, 5]
    assert ["loss/min" in values for _, values in service.sent] == [False] * 3 + [True] * 2
    assert service.sent[0] == LOSSES[0]


def test_other_processes_start_no_tracker(tmp_path):
    Logs(tmp_path, 0, 5, active=False, track=lambda say: pytest.fail("started")).close()


def test_a_package_that_is_missing_is_told_before_work_starts(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for field, value in (("wandb", "offline"), ("mlflow", "http://host:5000")):
        config = load_config(str(ROOT / "configs" / "digits.py"))
        trackers.missing(Options.of(config))
        config.log[field] = value
        with pytest.raises(ConfigError, match=f"config.log.{field}: found '{value}' but no package {field}"):
            trackers.missing(Options.of(config))
