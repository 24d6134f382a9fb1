"""Files that may hold anything: each is read, or refused with exit code 1 or 2 in one line that names it."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import warnings

import jax
import numpy as np
import pytest
import report_cases
import safetensors.torch
import torch
from bad_files import HOSTILE, THINGS, listing, spoiled, warped
from data_folders import data_options, make_folder, picture
from run_states import MESH, PARAMS, state
from tiny import tiny_space

from bignas_jax import files
from bignas_jax.cli import evaluate, export, flags, importing, reporting, scripts, searching, train
from bignas_jax.config.files import load_run_options, to_json
from bignas_jax.config.recipes import load_recipe
from bignas_jax.data import open_images
from bignas_jax.data.decode import read_image
from bignas_jax.errors import CorruptImage, UnreadableImage
from bignas_jax.files import parse_json
from bignas_jax.interop.imports.torch_file import read_checkpoint, to_float32
from bignas_jax.runs import assess
from bignas_jax.runs.checkpoint import Checkpoints
from bignas_jax.runs.identity import Use, check_data, check_run, claim
from bignas_jax.runs.session import class_names
from bignas_jax.search.journal import Journal, packed
from bignas_jax.search.latency import LatencyTable
from bignas_jax.search.problem import Problem, budgets_of
from bignas_jax.search.report import page
from bignas_jax.spaces.naming import read_architectures
from bignas_jax.text import shown

SPACE = tiny_space()
ARCH = SPACE.biggest.to_dict()
CONFIG = json.loads(to_json(load_recipe("configs/digits.py")))
DATA = {
    "classes": ["ant", "bee"],
    "train": {"images": 10, "digest": "0" * 32},
    "val": {"images": 4, "digest": "1" * 32},
}
IDENTITY = {"step": 1, "data": {"root": "a"}}
RECORDS = [
    {"identity": IDENTITY},
    {
        "architecture": ARCH, "part": "first", "images": 5, "top1_images": 3, "top5_images": 4, "loss_sum": None,
        "correct": packed(np.ones(5, bool)), "seconds": 0.1,
    },
    {"architecture": ARCH, "part": "rest", "images": 5, "top1_images": 3, "top5_images": 4, "loss_sum": 2.0,
     "seconds": 1},
    {"architecture": ARCH, "part": "val", "images": 5, "top1": 0.5, "top5": 1.0},
]  # fmt: skip
TIMES = [{"device": "cpu", "jax": jax.__version__, "dtype": "float32", "batch_size": 1,
          "of": {"part": "block", "layers": [{"kind": "stem"}]}, "ms": 1.5}]  # fmt: skip
ROWS = {"step": 3, "split": "val", "rows": [
    {"name": "MAX", "architecture": ARCH, "macs": 1, "params": 2, "top1": 0.5, "top5": 1.0, "loss": None, "images": 4,
     "images_per_second": 3.5}]}  # fmt: skip
RESULT = report_cases.make("digits", 6)


def architecture(path):
    (arch,) = read_architectures(SPACE, [str(path)]).values()
    assert parse_json(arch.to_json()) == arch.to_dict()


def config(path):
    options, _ = flags.parse(["eval.py", "--workdir", str(path.parent)], "", of_run=True)
    check_run(options, path.parent, Use.SEARCH)


def config_of_the_supernet(path):
    options = load_run_options(path)
    assert load_run_options(path) == options


def config_of_a_run_that_goes_on(path):
    (path.parent / "checkpoints" / "3").mkdir(parents=True)
    try:
        options, _ = flags.parse(["train.py", "--workdir", str(path.parent)], "")
        claim(path.parent, options, 3)
    finally:
        shutil.rmtree(path.parent / "checkpoints")


def data(path):
    check_data(path.parent, DATA, Use.SEARCH)


def classes(path):
    class_names(path.parent, None, None)


def journal(path):
    Journal(path, IDENTITY).close()


def latency(path):
    LatencyTable(SPACE, 10, "float32", 1, path, progress=False)


def rows(path):
    assess.table(assess.left(path.parent, 3))


def result(path):
    page.page(page.read(path.parent.parent))


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


READERS = {
    architecture: ("arch.json", json.dumps(ARCH).encode(), ARCH),
    config: ("config.json", json.dumps(CONFIG).encode(), CONFIG),
    config_of_the_supernet: ("config.json", json.dumps(CONFIG).encode(), CONFIG),
    config_of_a_run_that_goes_on: ("config.json", json.dumps(CONFIG).encode(), CONFIG),
    data: ("data.json", json.dumps(DATA).encode(), DATA),
    classes: ("classes.json", json.dumps(["ant", "bee"]).encode(), ["ant", "bee"]),
    journal: ("evaluations.jsonl", lines(RECORDS), RECORDS),
    latency: ("latency.jsonl", lines(TIMES), TIMES),
    rows: ("evaluation_val.json", json.dumps(ROWS).encode(), ROWS),
    result: ("search/result.json", json.dumps(RESULT).encode(), RESULT),
}
EACH = int(os.environ.get("BAD_FILES", 60))


def outcome(work) -> tuple[int, str]:
    """The exit code of a script that does this work, and what it says on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = scripts.run("eval.py", work)
        except SystemExit as end:
            code = end.code
    return code, said.getvalue()


def check(work, path, root, where="") -> bool:
    """Whether the file was refused; a wrong way to do so is an error of the test."""
    before = listing(root)
    code, said = outcome(lambda: work(path))
    assert code in (0, 1, 2), where
    assert said.count("\n") <= 2 and all(line.isprintable() for line in said.split("\n")) and len(said) < 2500, said
    if code:
        assert listing(root) == before, where
        assert any(str(place) in said for place in (path.name, path.parent, root)), said
    return bool(code)


@pytest.fixture(autouse=True)
def pipes_are_given_up_soon(monkeypatch):
    monkeypatch.setattr(files, "_PATIENCE", 0.2)


each_reader = pytest.mark.parametrize("work", READERS, ids=lambda work: work.__name__)


@each_reader
def test_a_file_is_read_or_refused_in_a_line_that_names_it(work, tmp_path):
    name, content, value = READERS[work]
    path, rng, refused = tmp_path / "run" / name, np.random.default_rng(len(name)), 0
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert not check(work, path, tmp_path)
    for number in range(EACH):
        for other in path.parent.iterdir():
            other.unlink()
        bad = spoiled(rng, content) if number % 2 else warped(rng, value)
        if number % 2 == 0 and name.endswith("jsonl"):
            bad = bad[1:-1].replace(b"}, {", b"}\n{") + b"\n"
        path.write_bytes(bad)
        refused += check(work, path, tmp_path, f"{number}: {bad[:3000]!r}")
    assert refused > EACH / 5


@each_reader
@pytest.mark.parametrize("thing", THINGS)
def test_what_is_no_file_is_refused_and_not_waited_for(work, thing, tmp_path):
    name, *_ = READERS[work]
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    THINGS[thing](path)
    with as_nobody(tmp_path) if thing == "closed" else contextlib.nullcontext():
        refused = check(work, path, tmp_path)
    if thing != "nowhere":  # as if it were not there
        assert refused


@contextlib.contextmanager
def as_nobody(root: pathlib.Path):
    """As a user with rights of their own, where root runs the tests; root may read everything."""
    if os.geteuid():
        yield
        return
    for folder in (*root.parents, root):
        folder.stat().st_mode & 0o001 or folder.chmod(folder.stat().st_mode | 0o011)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_budgets_are_kept_or_refused_by_name():
    """Any text behind a flag of a budget: a search gets limits that its smallest architecture keeps, or one line."""
    rng, refused, biggest = np.random.default_rng(0), 0, {"macs": 2e6, "params": 1e5, "latency_ms": None}
    for number in range(EACH):
        kind = ("macs", "params", "latency_ms")[number % 3]
        text = BUDGETS[rng.integers(len(BUDGETS))] if number % 2 else spoiled(rng, b"(300e3, 600e3)").decode("latin-1")

        def work(flag=f"--config.search.max_{kind}={text}", kind=kind):
            options, _ = flags.parse(["search.py", flag], "")
            budgets = budgets_of(options.search, biggest, biggest)
            if kind != "latency_ms":
                Problem(SPACE, 7, budgets)

        code, said = outcome(work)
        assert code in (0, 2) and said.count("\n") == (code == 2) and said.rstrip("\n").isprintable(), (text, said)
        assert not code or f"config.search.max_{kind}" in said, said
        refused += bool(code)
    assert refused > EACH / 5


BUDGETS = (
    "", "()", "(", "0", "-1", "1e6", "1,000,000", "1_000", "nan", "inf", "1e999", "(1e6, nan)", "True", "None", "'a'",
    "[1]",
    "(1e6,)", "((1,),)", "1e-300", "{1: 2}", "10**9", "__import__('os')", "9" * 5000, "(" * 500, HOSTILE, "1e6 2e6",
    "0x10", "1e6;2e6", "\u0661", "(1e6, 2e6, 'x')",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with one small checkpoint."""
    workdir = tmp_path_factory.mktemp("trained")
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state(1), 1, 0.5)
    checkpoints.wait()
    checkpoints.close()
    return workdir


def weights_of(workdir):
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        checkpoints.weights(PARAMS, MESH)
    finally:
        checkpoints.close()


METADATA = ("_CHECKPOINT_METADATA", "ema/_METADATA", "ema/manifest.ocdbt", "manifest/metadata", "metrics/metrics")


@pytest.mark.parametrize("name", METADATA)
def test_a_checkpoint_of_any_metadata_is_read_or_refused(name, trained, tmp_path):
    """Its manifest, orbax's own files, and its score, of which the last may be lost."""
    rng, refused = np.random.default_rng(len(name)), 0
    content = (trained / "checkpoints" / "1" / name).read_bytes()
    for number in range(EACH // 5):
        workdir = tmp_path / str(number)
        shutil.copytree(trained, workdir)
        path = workdir / "checkpoints" / "1" / name
        is_json = content.startswith(b"{")
        bad = warped(rng, json.loads(content)) if is_json and number % 2 else spoiled(rng, content)
        path.write_bytes(bad)
        refused += check(lambda _, workdir=workdir: weights_of(workdir), path, workdir, f"{number}: {bad[:900]!r}")
    assert refused or name == "metrics/metrics"


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("name", METADATA)
def test_a_checkpoint_with_something_else_in_a_file_s_place_is_refused(name, thing, trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    path = workdir / "checkpoints" / "1" / name
    path.unlink()
    THINGS[thing](path)
    if thing != "closed":
        check(lambda _: weights_of(workdir), path, workdir, f"{name} {thing}")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "ppm", "tif"])
def test_an_image_is_read_or_named_and_no_library_speaks(suffix, tmp_path, capfd):
    """libtiff, libpng and libjpeg write on the process's own stderr, which Python's does not see."""
    path, rng, corrupt = tmp_path / f"bee\x1b[31m.{suffix}", np.random.default_rng(len(suffix)), 0
    picture(1).save(path, **({"compression": "tiff_lzw"} if suffix == "tif" else {}))
    content = path.read_bytes()
    for number in range(EACH):
        path.write_bytes(spoiled(rng, content))
        with warnings.catch_warnings(action="error"):
            try:
                read_image(str(path), 10**6)
            except (CorruptImage, UnreadableImage) as error:
                corrupt += 1
                assert str(error).isprintable() and shown(str(path)) in str(error), number
    out, said = capfd.readouterr()
    assert (out, said) == ("", "") and corrupt > EACH / 3


def test_folders_of_images_are_opened_or_named(tmp_path):
    """Trees of hostile names and of things that are no images."""
    rng, refused = np.random.default_rng(3), 0
    for number in range(EACH):
        root = tmp_path / str(number)
        make_folder(root, 1, 1)
        for _ in range(1 + number % 3):
            folders = [path for path in sorted(root.rglob("*")) if path.is_dir() and not path.is_symlink()]
            place = folders[rng.integers(len(folders))]
            disturb = DISTURBANCES[rng.integers(len(DISTURBANCES))]
            with contextlib.suppress(FileExistsError, FileNotFoundError, IsADirectoryError):
                disturb(place)
        refused += check(lambda _, root=root: open_images(data_options(root)), root, root, f"{number} {disturb}")
    assert refused > EACH / 5


NAMES = (
    "a\nb.jpg", "\x1b[31m.png", "-rf.jpg", " .jpg", "\udcff.jpg", "\u202egpj.jpg", "a" * 200 + ".jpg", "ant",
)
DISTURBANCES = [
    shutil.rmtree,
    lambda folder: folder.rename(folder.with_name("bee\x1b[31m\n")),
    lambda folder: folder.rename(folder.with_name("Ant")),
    lambda folder: (folder / "\x1b]0;x\x07").mkdir(),
    *(lambda folder, name=name: (folder / name).mkdir() for name in NAMES[:3]),
    *(lambda folder, name=name: (folder / name).write_bytes(b"x") for name in NAMES),
    *(lambda folder, thing=thing: thing(folder / "thing.jpg") for thing in THINGS.values()),
    lambda folder: (folder / "up").symlink_to(".."),
    lambda folder: (folder / "root").symlink_to("/"),
    lambda folder: [path.unlink() for path in folder.iterdir() if path.is_file()],
]


@pytest.mark.parametrize("form", ["pth", "old.pth", "safetensors"])
def test_a_file_of_weights_is_read_or_refused(form, tmp_path):
    path, rng, refused = tmp_path / f"weights.{form}", np.random.default_rng(len(form)), 0
    tensors = {f"first_conv.{n}.weight": torch.arange(12.0).reshape(3, 4) + n for n in range(3)}
    if form == "safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=form == "pth")
    content = path.read_bytes()
    for number in range(EACH):
        bad = spoiled(rng, content)
        path.write_bytes(bad)
        refused += check(lambda path: to_float32(path, read_checkpoint(path).tensors), path, tmp_path, f"{number}")
    assert refused > EACH / 3


@pytest.mark.parametrize("thing", THINGS)
def test_no_weights_are_read_from_what_is_no_file(thing, tmp_path):
    for name in ("weights.pth", "weights.safetensors"):
        THINGS[thing](tmp_path / name)
        with as_nobody(tmp_path) if thing == "closed" else contextlib.nullcontext():
            assert check(read_checkpoint, tmp_path / name, tmp_path)


COMMANDS = {"train": train, "search": searching, "eval": evaluate, "export": export, "import": importing}


@pytest.mark.parametrize("name", COMMANDS)
def test_debug_shows_the_traceback_too(name, monkeypatch, capsys):
    for debug in ([], ["--debug"]):
        arguments = ["none.pth"] if name == "import" else []
        monkeypatch.setattr("sys.argv", [name, "--config=configs/none.py", *debug, *arguments])
        with pytest.raises(SystemExit) as end:
            COMMANDS[name].main()
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.splitlines()[-1].startswith(f"{name}: --config: found no file")
        assert ("Traceback" in said) == bool(debug) and (debug or said.count("\n") == 1)


def test_debug_shows_the_traceback_of_the_work_and_of_a_report(tmp_path, capsys):
    with pytest.raises(SystemExit):
        reporting.main(["report", "--debug", str(tmp_path)])
    assert "Traceback" in capsys.readouterr().err
    flags.take_debug(["eval.py", "--debug"])
    code, said = outcome(lambda: architecture(tmp_path / "none.json"))
    assert code == 2 and "Traceback" in said and "cannot read" in said.splitlines()[-1]
    flags.take_debug(["eval.py"])
    code, said = outcome(lambda: architecture(tmp_path / "none.json"))
    assert code == 2 and said.count("\n") == 1


def test_the_name_of_a_hostile_class_folder_is_shown_escaped(tmp_path, capsys):
    """In the message of other classes, in that of a split that differs, and in the counts of files."""
    found = DATA | {"classes": ["ant", HOSTILE]}
    (tmp_path / "data.json").write_text(json.dumps(DATA))
    code, said = outcome(lambda: check_data(tmp_path, found, Use.SEARCH))
    assert code == 2 and r"\x1b]0;owned\x07\x1b[31m\n\r\u202e\x00 bee" in said and said.rstrip("\n").isprintable()
    make_folder(tmp_path, 1, 1)
    (tmp_path / "train" / "bee").rename(tmp_path / "train" / "\x1b[31m\nbee")
    code, said = outcome(lambda: open_images(data_options(tmp_path)))
    assert code == 2 and r"\x1b[31m\nbee" in said and said.rstrip("\n").isprintable()
