"""Several processes find each other, agree, and end together."""

import re
import signal
import socket
import time

import pytest
from process_lab import READY, ends, free_port, start, start_all, until_ready

REDUCE = READY + "while True: all_reduce()"


def lines(err: str) -> list[str]:
    return err.strip().split("\n")


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_others_name_it_and_end(victim):
    """In the middle of collective operations, and the same commands on the same port work at once."""
    port = free_port()
    found = start_all(REDUCE, 3, port, fast=False)
    until_ready(found)
    found[victim].kill()
    for index, process in enumerate(found):
        code, _, err, seconds = ends(process, within=30)
        if index != victim:
            assert code == 1 and seconds < 30
            (line,) = lines(err)
            assert re.fullmatch(rf"train.py: process {victim} of 3 \(.*, pid \d+\) was lost: .* last checkpoint", line)
    for process in start_all("assert all_reduce() == 3", 3, port):
        assert ends(process)[0] == 0


@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_hangs_is_lost_too(victim):
    found = start_all(READY + "import threading; threading.Event().wait()", 2)
    until_ready(found)
    found[victim].send_signal(signal.SIGSTOP)
    try:
        code, _, err, seconds = ends(found[1 - victim], within=30)
    finally:
        found[victim].kill()
    assert code == 1 and re.search(rf"process {victim} of 2 .* was lost: nothing was heard of it for 8 s", err)
    assert len(lines(err)) == 1 and seconds < 20


def test_all_that_are_suspended_together_go_on():
    """For longer than the 8 s without a heartbeat after which one counts as lost here."""
    found = start_all(READY + "sys.stdin.readline(); assert all_reduce() == 2", 2)
    until_ready(found)
    for process in found:
        process.send_signal(signal.SIGSTOP)
    time.sleep(9)
    for process in found:
        process.send_signal(signal.SIGCONT)
    time.sleep(2)
    for process in found:
        process.stdin.write("on\n")
        process.stdin.flush()
    for process in found:
        assert ends(process)[::2] == (0, "")


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        ("raise DataError('corrupt image a.png')", 2, "corrupt image a.png"),
        ("raise OSError(28, 'No space left on device', '/full/file')", 2, "/full/file: No space left on device"),
        ("raise Stopped(signal.SIGTERM, 'at step 3')", 143, "stopped by SIGTERM at step 3"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("raise RuntimeError('a bug\\nin two lines')", 1, "RuntimeError: a bug in two lines"),
        # Of a thread, while the main thread waits.
        ("import threading; threading.Thread(target=processes.fail, args=(DataError('x.png'),)).start()", 2, "x.png"),
        ("os.abort()", 1, "was lost: its connection ended"),
    ],
)
def test_an_error_of_one_ends_the_others_wherever_they_are(fault, code, told):
    """Here they wait in a collective operation that this process never joins."""
    found = start_all(READY + f"if me == 1: time.sleep(0.5); {fault}\nall_reduce()", 2)
    other_code, _, err, seconds = ends(found[0])
    assert other_code == code and seconds < 60
    (line,) = lines(err)
    assert re.match(r"train.py: process 1 of 2 \(.*, pid \d+\)", line) and line.count(told) == 1
    own_code, _, err, seconds = ends(found[1])
    assert own_code == (-6 if "abort" in fault else code) and seconds < 20
    assert ("Traceback" in err) == ("RuntimeError" in fault)


def test_a_signal_where_one_waits_for_word_of_another_ends_all():
    found = start_all(READY + "if me == 1: processes.gather(0)\nelse: time.sleep(60)", 2)
    until_ready(found)
    time.sleep(0.5)
    found[1].send_signal(signal.SIGTERM)
    for index, process in enumerate(found):
        code, _, err, seconds = ends(process, within=30)
        (line,) = lines(err)
        told = r"process 1 of 2 \(.*\): " if index == 0 else ""
        assert code == 143 and re.match(rf"train.py: {told}stopped by SIGTERM", line) and seconds < 20


def test_an_error_of_all_is_told_by_each():
    for process in start_all("processes.gather(0); raise DataError('no images')", 3):
        code, _, err, _ = ends(process)
        assert code == 2 and lines(err) == ["train.py: no images"]


def test_values_are_gathered_by_process():
    body = "for n in range(300): assert processes.gather([me, n]) == [[i, n] for i in range(3)]\n"
    body += "assert processes.gather('x' * 1_000_000 * me) == ['x' * 1_000_000 * i for i in range(3)]\n"
    body += "assert all_reduce() == 3; print('right')"
    for process in start_all(body, 3):
        code, out, err, _ = ends(process)
        assert code == 0 and "right" in out and err == ""


def test_two_of_one_number():
    port = free_port()
    twice = r"train.py: config.distributed.process_id: found 0 twice \(.*\), expected .*\n"
    for index, process in enumerate([start("", index, 3, port) for index in (0, 0)] + [start("", 1, 3, port)]):
        code, _, err, _ = ends(process)
        # The third one may come when the others have ended already.
        late = r"|train.py: config.distributed.coordinator: .*\n" if index == 2 else ""
        assert code == 2 and re.fullmatch(twice + late, err)
    port = free_port()
    for process in [start("", index, 3, port) for index in (0, 1, 1)]:
        code, _, err, _ = ends(process)
        assert code == 2 and "config.distributed.process_id: found 1 twice" in err and len(lines(err)) == 1


def test_what_does_not_come_together_names_the_field():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        cases = [
            (start("", 0, 2, port), f"config.distributed.coordinator: process 0 cannot listen on port {port} of this"),
            (start("", 1, 2, port), "(what listens there is no process of this run)"),
            (start("", 1, 2, free_port()), "coordinator: process 1 found no process 0 at localhost:"),
            (start("", 1, 2, "no.such.host.invalid:99"), "found no process 0 at no.such.host.invalid:99"),
            (start("", 0, 2, free_port()), "config.distributed.num_processes: 1 of 2 processes did not come to"),
        ]
        for process, message in cases:
            code, _, err, _ = ends(process, within=60)
            assert code == 2 and message in err and len(lines(err)) == 1, err


def test_processes_of_different_numbers():
    port = free_port()
    for process in (start("", 0, 2, port), start("", 1, 3, port)):
        code, _, err, _ = ends(process)
        assert code == 2 and len(lines(err)) == 1
        assert "config.distributed.num_processes: found 3 in process 1" in err and "and 2 in process 0" in err


def test_another_run_on_the_port_is_named():
    port = free_port()
    first = start_all(READY + "time.sleep(60)", 2, port)
    until_ready(first)
    code, _, err, _ = ends(start("", 0, 2, port))
    for process in first:
        process.kill()
    assert code == 2 and "a run of 2 processes is at work there" in err and len(lines(err)) == 1
    for process in first:
        process.communicate()


def test_strangers_on_the_port_do_no_harm():
    port = free_port()
    first = start("assert all_reduce() == 2", 0, 2, port, fast=False)
    sent = [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100_000, b"[1]\n", b'{"bignas_jax": 1, "process_id": [2]}\n', b""]
    for text in sent:
        while True:
            try:
                with socket.create_connection(("localhost", port)) as stranger:
                    stranger.sendall(text)
                break
            except ConnectionRefusedError:
                assert first.poll() is None
    second = start("assert all_reduce() == 2", 1, 2, port)
    assert ends(second)[0] == 0 and ends(first)[0] == 0
