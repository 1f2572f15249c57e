"""A depot keeps folders whole and by content, over every kind of place: a disk, memory, an S3 server."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest

from automl.errors import CheckpointError, MissingExtraError, ResourceError
from automl.storage.artifacts import digest_folder, files_below
from automl.storage.depot import Depot

HAS_S3 = all(find_spec(name) for name in ("s3fs", "moto"))


@pytest.fixture(scope="module")
def s3_bucket() -> Iterator[str]:
    """A bucket on an S3 server of our own, its address and keys in the environment as its user would have them."""
    if not HAS_S3:
        pytest.skip("s3fs and moto are not installed (extras s3, dev)")
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", secrets.token_hex(8))
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place with nothing in it yet."""
    if request.param == "file":
        return f"file://{tmp_path / 'depot'}"
    if request.param == "memory":
        return f"memory://{tmp_path.name}-{secrets.token_hex(4)}"
    bucket: str = request.getfixturevalue("s3_bucket")
    return f"{bucket}/{secrets.token_hex(4)}/deeper"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Something to store."""
    folder = tmp_path / "adapter"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(300_000))
    (folder / "inner" / "empty.txt").touch()
    return folder


def names(url: str) -> set[str]:
    """Everything in a depot, by name."""
    fs, root = fsspec.url_to_fs(url)
    return {path.removeprefix(root).lstrip("/") for path in fs.find(root)}


def test_a_folder_comes_back_as_it_was(url: str, folder: Path, tmp_path: Path) -> None:
    depot = Depot(url)
    depot.check()
    digest = depot.put_folder("study a/adapter-1", files_below(folder))
    assert digest == digest_folder(folder)
    depot.fetch_folder("study a/adapter-1", tmp_path / "back" / "adapter", sha256=digest.sha256)
    assert digest_folder(tmp_path / "back" / "adapter") == digest
    assert depot.has_folder("study a/adapter-1")
    inside = {"study a/adapter-1/inner/empty.txt", "study a/adapter-1/model.safetensors", "study a/adapter-1.json"}
    assert names(url) == inside, "no draft and no probe is left"


def test_a_folder_that_is_there_is_not_sent_again(url: str, folder: Path) -> None:
    depot = Depot(url)
    digest = depot.put_folder("data", files_below(folder))
    fs, root = fsspec.url_to_fs(url)
    fs.pipe_file(f"{root}/data/model.safetensors", b"marked")
    assert depot.put_folder("data", files_below(folder)) == digest
    assert fs.cat_file(f"{root}/data/model.safetensors") == b"marked"
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(b"y" * size)
    assert depot.put_folder("data", files_below(folder)) == digest, "its files are not even read"
    (folder / "model.safetensors").write_bytes(b"y" * (size + 1))
    assert depot.put_folder("data", files_below(folder)) == digest_folder(folder)


def test_damage_is_noticed_and_nothing_is_left_of_it(url: str, folder: Path, tmp_path: Path) -> None:
    depot = Depot(url)
    depot.put_folder("data", files_below(folder))
    with pytest.raises(CheckpointError, match=r"data is damaged: sha256 \w+, should be 0123"):
        depot.fetch_folder("data", tmp_path / "back", sha256="0123")
    fs, root = fsspec.url_to_fs(url)
    fs.pipe_file(f"{root}/data/model.safetensors", b"x" * 300_000)
    with pytest.raises(CheckpointError, match="data is damaged"):
        depot.fetch_folder("data", tmp_path / "back")
    assert {path.name for path in tmp_path.iterdir()} <= {"adapter", "depot"}


def test_a_folder_that_was_never_finished_is_not_there(url: str, folder: Path, tmp_path: Path) -> None:
    depot = Depot(url)
    depot.put_folder("data", files_below(folder))
    fs, root = fsspec.url_to_fs(url)
    fs.rm_file(f"{root}/data.json")
    assert not depot.has_folder("data")
    with pytest.raises(ResourceError, match="there is no finished data"):
        depot.fetch_folder("data", tmp_path / "back")
    depot.put_folder("data", files_below(folder))
    depot.fetch_folder("data", tmp_path / "back")


def test_the_second_to_fetch_takes_what_the_first_has(url: str, folder: Path, tmp_path: Path) -> None:
    depot = Depot(url)
    depot.put_folder("data", files_below(folder))
    for _ in range(2):
        depot.fetch_folder("data", tmp_path / "back")
    assert digest_folder(tmp_path / "back") == digest_folder(folder)


def test_an_index_that_leaves_its_folder_is_refused(url: str, folder: Path, tmp_path: Path) -> None:
    depot = Depot(url)
    depot.put_folder("data", files_below(folder))
    fs, root = fsspec.url_to_fs(url)
    index = json.loads(fs.cat_file(f"{root}/data.json"))
    for name in ("../evil", "/tmp/evil", "a/../../evil"):
        fs.pipe_file(f"{root}/data.json", json.dumps({**index, "files": [name]}).encode())
        with pytest.raises(CheckpointError, match="names a file outside of it"):
            depot.fetch_folder("data", tmp_path / "back")


def test_files_are_replaced(url: str, tmp_path: Path) -> None:
    depot = Depot(url)
    fs, root = fsspec.url_to_fs(url)
    for text in ("first", "second"):
        (tmp_path / "report.html").write_text(text, encoding="utf-8")
        depot.put_file("study/report.html", tmp_path / "report.html")
        assert fs.cat_file(f"{root}/study/report.html") == text.encode()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"^storage.artifacts: file://\S+: cannot write: FileExistsError: .*$"):
        Depot(f"file://{tmp_path / 'file' / 'below'}").check()


def test_a_bucket_that_is_not_there_is_one_line_without_keys(s3_bucket: str) -> None:
    with pytest.raises(ResourceError, match=r"^storage.artifacts: s3://nowhere-a/x: cannot write: ") as caught:
        Depot("s3://nowhere-a/x").check()
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"gs:// needs another package: .*gcsfs"):
        Depot("gs://bucket/x")
