"""What lies in the way of an artifact is never lost, and a place that cannot be written to is named at once."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
import torch

import tersor
from tersor import InputError, OptimizedModel, Program, optimize_model
from tersor.folders import check_output, check_output_file, whole_folder

UNWRITABLE = ("/proc/tersor-out", "/proc/a/b", "/dev/null", "/dev/null/out", "", "a\0b", "x" * 300)
KEPT = ("notes.txt", "sub/cat.jpg", ".hidden")


@pytest.fixture(scope="module")
def fast(program: Program) -> OptimizedModel:
    return optimize_model(program, target="torch")


@pytest.fixture
def out(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "out"))


@pytest.mark.parametrize("name", KEPT)
def test_files_beside_an_older_artifact_are_named_and_kept(
    fast: OptimizedModel, out: Path, name: str
) -> None:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"not part of it \\({name}\\)"):
        fast.save(out)
    with pytest.raises(InputError, match=name):
        check_output(out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_links_and_empty_folders_count_as_the_users(fast: OptimizedModel, out: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (out / "photos").symlink_to(tmp_path / "photos")
    (out / "new").mkdir()
    with pytest.raises(InputError, match=r"\(new, photos\)"):
        fast.save(out)


def test_an_artifact_that_does_not_say_what_is_its_own_is_not_replaced(
    fast: OptimizedModel, out: Path
) -> None:
    (out / "certificate.json").unlink()
    with pytest.raises(InputError, match="does not say which files are its own"):
        fast.save(out)
    assert (out / "program.json").is_file()


def test_the_current_folder_is_not_taken_away(
    fast: OptimizedModel, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for place in (empty, out):
        monkeypatch.chdir(place)
        with pytest.raises(InputError, match="the folder you are in"):
            fast.save(".")
    fast.save("inside/it")
    assert tersor.load("inside/it").target == "torch"


@pytest.mark.parametrize(
    "place", ["/proc/tersor-out", "/proc/a/b", "/dev/null", "/dev/null/out", "", "a\0b", "x" * 300]
)
def test_a_place_that_cannot_be_written_is_one_clear_error(fast: OptimizedModel, place: str) -> None:
    uses = (lambda: check_output(place), lambda: check_output_file(place + "/m.onnx" if place else ""),
            lambda: fast.save(place))  # fmt: skip
    for use in uses:
        with pytest.raises(InputError) as caught:
            use()
        assert len(str(caught.value).splitlines()) == 1


def test_the_longest_name_that_can_be_written_is(fast: OptimizedModel, tmp_path: Path) -> None:
    for length in range(240, 256):
        try:
            fast.save(tmp_path / ("x" * length))
        except InputError:
            assert not (tmp_path / ("x" * length)).exists()
        else:
            assert tersor.load(tmp_path / ("x" * length)).target == "torch"


def test_a_file_is_not_written_into_an_artifact(fast: OptimizedModel, out: Path) -> None:
    before = sorted(out.iterdir())
    for place in (out / "model.onnx", out / "more" / "gen.onnx"):
        with pytest.raises(InputError, match="whose files are certified"):
            fast.export_onnx(place)
    assert sorted(out.iterdir()) == before


def test_what_a_killed_process_left_goes_with_the_next_save_and_what_one_is_at_stays(
    fast: OptimizedModel, tmp_path: Path
) -> None:
    names = (".out.0123abcd", ".out.89abcdef", ".out.01234567", ".out.notes", ".other.0123abcd")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("much")
        if name != names[2]:  # That one was made just now.
            os.utime(tmp_path / name, (1e9, 1e9))
    handle = os.open(tmp_path / names[1], os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    fast.save(tmp_path / "out")
    os.close(handle)
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], "out"}


def test_two_that_write_one_place_leave_each_other_alone(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as first:
        (first / "a").write_text("1")
        with whole_folder(tmp_path / "other"), whole_folder(tmp_path / "out") as second:
            assert first.is_dir()
        assert second != first
        assert (first / "a").is_file()


def test_links_in_a_circle_are_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match="cannot write"):
        check_output(tmp_path / "a" / "out")


def test_folders_above_are_made_and_go_again_when_writing_fails(fast: OptimizedModel, tmp_path: Path) -> None:
    fast.export_onnx(tmp_path / "models" / "tiny" / "m.onnx")
    fast.save(tmp_path / "artifacts" / "tiny" / "out")
    assert (tmp_path / "models" / "tiny" / "m.onnx").is_file()

    def fail() -> None:
        with whole_folder(tmp_path / "deep" / "er" / "out") as folder:
            (folder / "file").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot write .*out: No space left on device"):
        fail()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "models"]


def test_an_interruption_between_the_two_renames_leaves_the_old_artifact(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, before = Path.rename, sorted(out.iterdir())

    def interrupted(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if self == out:
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(out) as folder:
        torch.save({}, folder / "file")
    assert sorted(out.iterdir()) == before
    assert list(out.parent.iterdir()) == [out]
