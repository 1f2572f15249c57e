"""A folder's digest changes with every file in it, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from automl.storage.artifacts import digest_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    (folder / "nested").mkdir(parents=True)
    (folder / "b.bin").write_bytes(b"12345")
    (folder / "nested/a.json").write_text("{}")
    return folder


def test_counts_all_bytes(folder: Path) -> None:
    assert digest_folder(folder).bytes == 7
    assert digest_folder(str(folder)) == digest_folder(folder)


def test_does_not_depend_on_place_times_or_empty_folders(folder: Path, tmp_path: Path) -> None:
    before = digest_folder(folder)
    (folder / "empty").mkdir()
    (folder / "b.bin").touch()
    assert digest_folder(folder.rename(tmp_path / "elsewhere")) == before


@pytest.mark.parametrize("change", ["contents", "name", "added", "removed", "moved bytes"])
def test_changes_with_every_file(folder: Path, change: str) -> None:
    before = digest_folder(folder)
    if change == "contents":
        (folder / "b.bin").write_bytes(b"12346")
    elif change == "name":
        (folder / "b.bin").rename(folder / "c.bin")
    elif change == "added":
        (folder / "empty.txt").touch()
    elif change == "removed":
        (folder / "nested/a.json").unlink()
    else:
        (folder / "b.bin").write_bytes(b"12345{")
        (folder / "nested/a.json").write_text("}")
    assert digest_folder(folder).sha256 != before.sha256


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        digest_folder(tmp_path / "nowhere")
