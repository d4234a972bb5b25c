import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from whisper_mla.conversion import ConversionError
from whisper_mla.hub.checkpoint_folder import check_target, written_aside


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def write(target, version="new", **kwargs):
    with written_aside(target, **kwargs) as folder:
        (folder / "config.json").write_text(f'{{"model_type": "{version}"}}')


def version_of(target):
    return json.loads((target / "config.json").read_text())["model_type"]


def test_appears_whole_with_usual_permissions(tmp_path):
    target = tmp_path / "deep" / "model"
    with written_aside(target) as folder:
        (folder / "config.json").write_text("{}")
        assert not target.exists()
    assert entries(target) == ["config.json"]
    assert entries(target.parent) == ["model"]
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o777 & ~mask


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="boom"), written_aside(tmp_path / "model") as folder:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("boom")
    assert entries(tmp_path) == []


def test_full_disk_is_one_clear_error(tmp_path):
    full = pytest.raises(ConversionError, match=r"model: cannot be written .*No space left")
    with full, written_aside(tmp_path / "model"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert entries(tmp_path) == []


def test_existing_checkpoint_is_replaced_only_on_request(tmp_path):
    target = tmp_path / "model"
    write(target, "old")
    with pytest.raises(ConversionError, match="--overwrite"):
        write(target, "new")
    assert version_of(target) == "old"
    write(target, "new", overwrite=True)
    assert version_of(target) == "new"
    assert entries(tmp_path) == ["model"]


def test_an_error_while_overwriting_keeps_the_old_one(tmp_path):
    target = tmp_path / "model"
    write(target, "old")
    with pytest.raises(KeyboardInterrupt), written_aside(target, overwrite=True):
        raise KeyboardInterrupt
    assert version_of(target) == "old"
    assert entries(tmp_path) == ["model"]


def test_a_folder_that_is_no_checkpoint_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConversionError, match=r"holds thesis\.txt"):
        check_target(tmp_path, overwrite=True)
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(ConversionError, match=r"holds thesis\.txt, which is no part of a checkpoint"):
        check_target(tmp_path, overwrite=True)
    (tmp_path / "thesis.txt").unlink()
    check_target(tmp_path, overwrite=True)
    (tmp_path / "config.json").write_text('{"name": "an app"}')
    with pytest.raises(ConversionError, match="holds no checkpoint"):
        check_target(tmp_path, overwrite=True)


def test_files_and_links_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(ConversionError, match="not a folder"):
            check_target(tmp_path / name)


def test_an_empty_folder_is_a_target(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    write(target)
    assert entries(target) == ["config.json"]


def test_a_failed_replacement_restores_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "model"
    write(target, "old")
    rename = Path.rename

    def fail_for_the_new_one(self, to):
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "broken disk")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(ConversionError, match="broken disk"):
        write(target, "new", overwrite=True)
    assert version_of(target) == "old"
    assert entries(tmp_path) == ["model"]


def test_the_only_copy_of_an_old_checkpoint_is_kept(tmp_path):
    """A run that was killed between moving the old folder away and the new one in."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    old = tmp_path / f".model.replaced-{int(done.stdout)}-"
    old.mkdir()
    write(tmp_path / "model")
    assert entries(tmp_path) == [old.name, "model"]
    write(tmp_path / "model", overwrite=True)
    assert entries(tmp_path) == ["model"]


def test_the_folder_of_a_run_that_lives_is_left_alone(tmp_path):
    other = tmp_path / f".model.partial-{os.getppid()}-abc"
    other.mkdir()
    write(tmp_path / "model")
    assert entries(tmp_path) == [other.name, "model"]


KILLED = """
import os, signal, sys
from whisper_mla.hub.checkpoint_folder import written_aside
with written_aside(sys.argv[1]) as folder:
    (folder / "config.json").write_text("{")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.kills
def test_a_kill_leaves_no_target_and_the_next_run_cleans_up(tmp_path):
    target = tmp_path / "model"
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(entries(tmp_path)) == 1
    write(target)
    assert entries(tmp_path) == ["model"]
