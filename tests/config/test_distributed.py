"""Which process of a run this is: from the config, our variables, or SLURM's."""

import pytest

from bignas_jax.cli import flags
from bignas_jax.config.distributed import complete, first_host, local_devices
from bignas_jax.errors import ConfigError

DEFAULT = {"coordinator": "", "num_processes": 1, "process_id": 0}
OURS = {"BIGNAS_COORDINATOR": "a:29400", "BIGNAS_NUM_PROCESSES": "4", "BIGNAS_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "4100", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip
OF_SLURM = {"coordinator": "gpu07:61444", "num_processes": 2, "process_id": 1}


@pytest.mark.parametrize(
    ("values", "given", "environ", "expected"),
    [
        ({}, (), {}, DEFAULT),
        ({}, (), OURS, {"coordinator": "a:29400", "num_processes": 4, "process_id": 3}),
        ({}, (), SLURM, OF_SLURM),
        ({}, (), SLURM | OURS, {"coordinator": "a:29400", "num_processes": 4, "process_id": 3}),
        ({}, (), SLURM | {"BIGNAS_COORDINATOR": "b:1"}, OF_SLURM | {"coordinator": "b:1"}),
        ({"coordinator": "c:2"}, (), SLURM | OURS, {"coordinator": "c:2", "num_processes": 4, "process_id": 3}),
        ({}, ("process_id",), SLURM, OF_SLURM | {"process_id": 0}),
        # One process by the command, whatever the environment says; and a step of one task, or a script outside srun.
        ({}, ("num_processes",), SLURM | OURS, DEFAULT),
        ({}, (), SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, DEFAULT),
        ({}, (), {k: v for k, v in SLURM.items() if "STEP" not in k}, DEFAULT),
        ({}, (), {"BIGNAS_PROCESS_ID": "3", "BIGNAS_COORDINATOR": ""}, DEFAULT),
    ],
)
def test_the_config_wins_then_our_variables_then_slurms(values, given, environ, expected):
    assert complete(DEFAULT | values, given, environ) == expected


@pytest.mark.parametrize(
    ("variable", "text"),
    [("BIGNAS_COORDINATOR", "host"), ("BIGNAS_COORDINATOR", "host:70000"), ("BIGNAS_NUM_PROCESSES", "two"),
     ("BIGNAS_NUM_PROCESSES", "0"), ("BIGNAS_PROCESS_ID", "-1"), ("SLURM_NTASKS", "2(x4)"), ("SLURM_PROCID", "x")],
)  # fmt: skip
def test_a_variable_that_cannot_be_is_named(variable, text):
    with pytest.raises(ConfigError, match=rf"^{variable}: found '.*', expected .*, for config.distributed.\w+$"):
        complete(DEFAULT, (), (SLURM if "SLURM" in variable else OURS) | {variable: text})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu07", "gpu07"), ("gpu07,login1", "gpu07"), ("gpu[07-09,12],login1", "gpu07"), ("gpu[7,9]", "gpu7"),
     ("gpu[07-09]-ib,x", "gpu07-ib"), ("a1,gpu[07-09]", "a1"), ("rack[1-2]n[3-4]", "rack1n3")],
)  # fmt: skip
def test_first_host_of_slurms_list(nodes, first):
    assert first_host(nodes) == first


def test_a_task_takes_one_gpu_only_where_its_machine_has_several_tasks_that_see_all():
    several = SLURM | {"SLURM_NTASKS": "8", "SLURM_LOCALID": "3"}
    assert local_devices(SLURM) is None and local_devices({}) is None
    assert local_devices(several) == [3]
    assert local_devices(several | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}) == [3]
    assert local_devices(several | {"CUDA_VISIBLE_DEVICES": "2"}) is None
    assert local_devices(several | {"JAX_LOCAL_DEVICE_IDS": "2"}) is None


def test_the_command_line_reads_the_environment(monkeypatch):
    for name, value in (SLURM | OURS).items():
        monkeypatch.setenv(name, value)
    options, _ = flags.parse(["train.py"], "")
    assert options.distributed.to_dict() == {"coordinator": "a:29400", "num_processes": 4, "process_id": 3}
    options, _ = flags.parse(["train.py", "--config.distributed.process_id=0"], "")
    assert options.distributed.process_id == 0 and options.distributed.num_processes == 4
    options, _ = flags.parse(["train.py", "--config.distributed.num_processes=1"], "")
    assert options.distributed.to_dict() == DEFAULT


def test_a_variable_that_cannot_be_ends_in_one_line(monkeypatch, capsys):
    monkeypatch.setenv("BIGNAS_NUM_PROCESSES", "many")
    with pytest.raises(SystemExit, match="2"):
        flags.parse(["train.py"], "")
    assert capsys.readouterr().err == (
        "train.py: BIGNAS_NUM_PROCESSES: found 'many', expected an integer >= 1 and < 2**31, "
        "for config.distributed.num_processes\n"
    )


def test_what_a_run_was_trained_with_is_not_what_its_evaluation_runs_with(tmp_path):
    from bignas_jax.config.files import to_json

    argv = [f"--config.distributed.{name}={value}" for name, value in (("coordinator", "a:1"), ("num_processes", 2))]
    options, _ = flags.parse(["train.py", *argv], "")
    (tmp_path / "config.json").write_text(to_json(options))
    options, _ = flags.parse(["eval.py", "--workdir", str(tmp_path)], "", of_run=True)
    assert options.distributed.to_dict() == DEFAULT
