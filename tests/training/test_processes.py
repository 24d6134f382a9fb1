"""Whole runs of train.py in two processes: started by the environment, and what one of them meets alone."""

import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time

import forks
import numpy as np
import pytest
from PIL import Image
from process_lab import ends
from run_lab import ROOT, environment, finish, records, steps_of

SETTINGS = ["--config.model.sync_batch_norm=True", "--config.max_steps=24"]


def free_job() -> int:
    """The number of a SLURM job whose port, as config.distributed gives it, is free."""
    while True:
        job = random.randrange(4096)
        with socket.socket() as found:
            if found.connect_ex(("localhost", 61440 + job)):
                return job


def ours(job: int, index: int) -> dict[str, str]:
    return {
        "BIGNAS_COORDINATOR": f"localhost:{61440 + job}", "BIGNAS_NUM_PROCESSES": "2", "BIGNAS_PROCESS_ID": str(index)
    }  # fmt: skip


def slurm(job: int, index: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": str(job), "SLURM_NTASKS": "2", "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index),
        "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1",
    }  # fmt: skip


def start(lab, workdir, variables, *settings, each=((), ())) -> list[forks.Popen]:
    job = free_job()
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(lab / "tiny.py"), "--workdir", str(workdir)]
    return [
        forks.Popen(
            [*command, *SETTINGS, *settings, *each[index]],
            env=environment(lab) | variables(job, index),
            cwd=lab,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]


def until_step(processes, workdir, step) -> None:
    end = time.monotonic() + 300
    while len(records(workdir)) < step:
        for process in processes:
            assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.02)


def last(err: str) -> str:
    """The last line that is no progress bar, which may be drawn once more behind it."""
    lines = [line.strip() for line in re.split(r"[\r\n]", err)]
    return [line for line in lines if line and not re.match(r"\w+( \w+)?: +\d+%", line)][-1]


def test_one_is_stopped_then_one_is_killed_and_the_same_commands_go_on(lab):
    """SIGTERM at process 1 stops both at one step; SIGKILL of process 0 ends process 1; both times the run goes on."""
    workdir = lab / "run"
    both = start(lab, workdir, ours)
    until_step(both, workdir, 10)
    both[1].send_signal(signal.SIGTERM)
    at = len(records(workdir))
    found = [ends(process, within=30) for process in both]
    (step,) = {int(re.fullmatch(r"train.py: stopped by SIGTERM at step (\d+); .*", last(f[2]))[1]) for f in found}
    assert [f[0] for f in found] == [143, 143] and at <= step <= at + 2 and steps_of(workdir)[-1] == step

    both = start(lab, workdir, slurm)
    until_step(both, workdir, step + 2)
    both[0].kill()
    code, _, err, _ = ends(both[1], within=30)
    assert code == 1 and re.match(r"train.py: process 0 of 2 \(.*\) was lost: .* go on from the last checkpoint", err)
    assert err.count("\n") == 1
    both[0].communicate()

    out = [finish(process)[0] for process in start(lab, workdir, slurm)]
    assert "going on from step" in out[0]
    assert "MAX" in out[0] and "MAX" not in out[1]
    assert [row["step"] for row in records(workdir) if "loss/biggest" in row] == list(range(1, 25))

    out = [finish(process)[0] for process in start(lab, workdir, ours)]  # a finished run, from other addresses
    assert "MAX" in out[0] and "changed" not in out[0]


def test_a_full_disk_at_one_host_ends_both_with_its_line(lab):
    """A limit on the size of files stands in for the full disk: the checkpoint of step 16 cannot be written."""
    workdir = lab / "full"
    both = start(lab, workdir, ours)
    until_step(both, workdir, 10)
    resource.prlimit(both[1].pid, resource.RLIMIT_FSIZE, (1, 1))
    found = [ends(process, within=60) for process in both]
    assert [f[0] for f in found] == [2, 2] and "Traceback" not in found[0][2]
    line = f"{workdir}/checkpoints: File too large"
    assert last(found[1][2]) == f"train.py: {line}"
    assert re.fullmatch(rf"train.py: process 1 of 2 \(.*\): {line}", last(found[0][2]))
    assert steps_of(workdir) == [8]


@pytest.fixture(scope="module")
def roots(lab):
    """A folder of images for each host, with the same content."""
    found = [lab / "host0", lab / "host1"]
    for root in found:
        rng = np.random.default_rng(0)
        for split, count in (("train", 60), ("val", 12)):
            for name in ("a", "b"):
                (root / split / name).mkdir(parents=True)
                for number in range(count):
                    pixels = rng.integers(0, 256, (10, 10, 3), np.uint8)
                    Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return found


FOLDER = [
    "--config.data.source=folder", "--config.data.holdout=0", "--config.model.num_classes=2", "--config.batch_size=24",
    "--config.evaluation.batch_size=24", "--config.calibration.num_images=24", "--config.calibration.batch_size=24",
    "--config.data.num_workers=1", "--config.checkpoint.every_steps=1000", "--config.evaluation.every_epochs=9",
]  # fmt: skip


def on(roots) -> list[list[str]]:
    return [[f"--config.data.root={root}"] for root in roots]


def test_a_corrupt_image_at_one_host_ends_both_at_one_step(lab, roots):
    bad = sorted((roots[1] / "train" / "b").iterdir())[:30]
    good = [path.read_bytes() for path in bad]
    for path in bad:
        path.write_bytes(path.read_bytes()[:60])
    workdir = lab / "corrupt"
    found = [ends(process, within=300) for process in start(lab, workdir, ours, *FOLDER, each=on(roots))]
    (saved,) = steps_of(workdir)
    assert [f[0] for f in found] == [2, 2] and all("Traceback" not in f[2] for f in found)
    own, other = last(found[1][2]), last(found[0][2])
    image = re.search(r"corrupt image (\S+)", own)[1]
    assert image in map(str, bad) and f"step {saved} is saved" in own
    assert re.match(rf"train.py: process 1 of 2 \(.*\): corrupt image {image} .*step {saved} is saved", other)
    for path, content in zip(bad, good, strict=True):
        path.write_bytes(content)


def test_hosts_with_other_folders_are_refused_before_the_first_step(lab, roots):
    def lines(*roots):
        both = start(lab, lab / "refused", slurm, *FOLDER, each=on(roots))
        found = [ends(process) for process in both]
        assert [f[0] for f in found] == [2, 2] and all(f[2].count("\n") == 1 for f in found), found
        return [f[2] for f in found]

    for line, told in zip(lines(roots[0], lab / "away"), ("process 1 of 2 (", ""), strict=True):
        assert line.startswith(f"train.py: {told}") and f"no folder {lab / 'away' / 'train'}: expected" in line
    moved = roots[1] / "train" / "a" / "7.png"
    moved.rename(moved.with_name("07.png"))
    for line in lines(*roots):
        assert re.match(r"train.py: config.data.root: process 1 of 2 \(.*\) finds 120 images of 'train' as proc", line)
    moved.with_name("07.png").unlink()
    for line in lines(*roots):
        assert "finds 119 images of 'train', process 0 120; expected the same files" in line
    assert not (lab / "refused").exists()


def test_other_options_and_another_folder_at_one_host_are_refused(lab):
    both = start(lab, lab / "options", ours, each=((), ("--config.seed=1",)))
    for process in both:
        code, _, err, _ = ends(process)
        assert code == 2 and re.search(r"process 1 of 2 \(.*\) was started with another .*config.seed: 0 -> 1", err)
        assert err.count("\n") == 1
    both = start(lab, lab / "seen", ours, each=((), ("--workdir", str(lab / "unseen"))))
    for process in both:
        code, _, err, _ = ends(process)
        assert code == 2 and re.search(r"--workdir: process 1 of 2 \(.*\) does not see what process 0 writes", err)
    assert not list((lab / "seen").glob(".seen*"))
