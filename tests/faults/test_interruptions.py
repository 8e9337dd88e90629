"""A slice of `python -m tests.faults.interruptions`: each command that writes, interrupted in every way at points that the seed draws."""

import fcntl
import gc
import shutil
import signal
import tempfile

import pytest

from model.cli import make_parser, run_command
from model.output import refuse_existing, sha256_of, write_manifest
from model.stopping import scratch_folder, stoppable, undisturbed
from model.unfinished import locked, remove_work, unfinished
from tests.faults.interruptions import KINDS, interrupt_all
from tests.forked import in_child

SLICE = ["train.expert", "model.compose", "model.merge", "eval.codebleu"]


def test_what_was_there_stays_and_the_next_run_ends_with_the_same_bits(tmp_path):
    """In a process of its own, which the runs fork from."""
    (bench := tmp_path / "bench").mkdir()
    said = tmp_path / "said"
    assert in_child(lambda: min(interrupt_all(bench, SLICE, KINDS, points=2, seed=0), 100), said) == 0, said.read_text()


@pytest.mark.parametrize(
    ("number", "launched", "status", "sentence"),
    [
        (signal.SIGINT, False, 130, "python -m model.test: interrupted"),
        (signal.SIGTERM, False, 143, "python -m model.test: terminated"),
        (signal.SIGTERM, True, -signal.SIGTERM, ""),  # torchrun ends the others so, and they may wait where no handler runs
    ],
)
def test_a_signal_is_one_sentence_and_its_status(number, launched, status, sentence, tmp_path, monkeypatch):
    said = tmp_path / "said"
    if launched:
        monkeypatch.setenv("RANK", "1")
    assert in_child(lambda: run_command(lambda args: signal.raise_signal(number), make_parser("model.test", ""), []), said) == status
    assert said.read_text().strip() == sentence
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_a_library_makes_of_a_signal_is_that_signal(number, status, tmp_path):
    """safetensors, whose Rust calls Python for each tensor, says that it "could not determine the shape"."""

    def command(args):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    said = tmp_path / "said"
    assert in_child(lambda: run_command(command, make_parser("model.test", ""), []), said) == status
    assert "shape" not in said.read_text()


@pytest.fixture
def usual_handlers():
    """A background process of a shell ignores SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupted_after(*args, act=tempfile.mkdtemp, **options):
    made = act(*args, **options)
    signal.raise_signal(signal.SIGINT)
    return made


def interrupted_before(*args, act=shutil.rmtree, **options):
    signal.raise_signal(signal.SIGINT)
    return act(*args, **options)


@pytest.mark.parametrize(("name", "interrupted"), [("tempfile.mkdtemp", interrupted_after), ("shutil.rmtree", interrupted_before)])
def test_ctrl_c_leaves_no_scratch_folder(name, interrupted, tmp_path, monkeypatch, usual_handlers):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(name, interrupted)
    with pytest.raises(KeyboardInterrupt), scratch_folder("x-") as folder:
        (folder / "a").write_text("a")
    gc.collect()
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_waited_is_not_lost_with_an_error(number, usual_handlers):
    with stoppable(), pytest.raises(KeyboardInterrupt), undisturbed():
        signal.raise_signal(number)
        raise ValueError
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_panic_of_rust_is_a_sentence(capsys):
    """As of a pattern in a tokenizer that its library gives up on."""

    def command(args):
        raise type("PanicException", (BaseException,), {})("retry-limit-in-match over")

    assert run_command(command, make_parser("model.test", ""), []) == 2
    assert capsys.readouterr().err == "python -m model.test: retry-limit-in-match over\n"
    assert run_command(command, make_parser("model.test", ""), ["--seed", "-1"]) == 2
    assert "--seed is -1; it must not be negative" in capsys.readouterr().err


def test_what_cannot_bear_a_signal_is_finished_first(tmp_path):
    def command(args):
        with undisturbed():
            signal.raise_signal(signal.SIGTERM)
            print("finished")
        print("not reached")

    said = tmp_path / "said"
    assert in_child(lambda: run_command(command, make_parser("model.test", ""), []), said) == 143
    assert set(said.read_text().split("\n")) == {"finished", "python -m model.test: terminated", ""}


def test_a_lock_whose_making_is_interrupted_leaves_no_folder(tmp_path, monkeypatch):
    """Between the making of the file and its lock; another process' folder stays."""
    folder = tmp_path / ".out.writing"
    flock = fcntl.flock

    def interrupted(*args):
        monkeypatch.setattr(fcntl, "flock", flock)
        raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt), locked(folder):
        pytest.fail("it was not locked")
    assert not folder.exists()
    with locked(folder):
        monkeypatch.setattr(fcntl, "flock", interrupted)
        with pytest.raises(KeyboardInterrupt), locked(folder):
            pytest.fail("another holds it")
        assert (folder / "lock").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "model.bin"), Exception("No space left on device (os error 28)")])
def test_a_full_disk_is_one_sentence_whatever_library_says_so(error, capsys):
    """The second is how tokenizers 0.22 says it."""

    def fail(args):
        raise error

    assert run_command(fail, make_parser("model.test", ""), []) == 2
    assert capsys.readouterr().err.startswith("python -m model.test: no space left on the disk: ")


def test_another_error_keeps_its_traceback():
    def fail(args):
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        run_command(fail, make_parser("model.test", ""), [])


def test_what_was_left_behind_a_whole_output_goes_with_the_next_call_and_other_work_stays(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_manifest(out)
    work, writing = unfinished(out), tmp_path / ".out.writing"
    for folder in (work, writing):
        (folder / "part").mkdir(parents=True)
    with pytest.raises(FileExistsError):
        refuse_existing(out)
    assert work.exists() and not writing.exists()  # another run's, perhaps of hours
    (work / "done").write_text("of another output")
    with pytest.raises(FileExistsError):
        refuse_existing(out)
    assert (work / "part").exists()
    (work / "done").write_text(sha256_of(out / "manifest.json"))
    with pytest.raises(FileExistsError):
        refuse_existing(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    work.mkdir()
    remove_work(work)
    assert not work.exists()
