"""`automl db backup`, `restore` and `roles` as a person meets them, and how long a search waits for its database."""

from __future__ import annotations

from pathlib import Path

import pytest

from automl.cli.main import main
from automl.errors import ConfigError
from automl.space.load import parse_space
from tests.databases import fresh_postgres, fresh_sqlite

SPACE = "version: 1\nstudy: s\nmodel: ./m\ntask: {type: classification, data: ./d.jsonl, metric: accuracy}\n"


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


def test_a_backup_is_taken_and_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address, folder = fresh_sqlite(tmp_path), tmp_path / "backups"
    folder.mkdir()
    code, said, _ = run("db", "backup", str(folder), "--db", address, "--keep", "1", capsys=capsys)
    assert code == 0
    assert said.rstrip().endswith("bytes, verified")
    _, said, _ = run("db", "backup", str(folder), "--db", address, "--keep", "1", capsys=capsys)
    assert "deleted: " in said
    (copy,) = folder.iterdir()
    assert run("db", "restore", str(copy), "--db", f"sqlite:///{tmp_path}/new.db", capsys=capsys)[0] == 0
    code, _, complaint = run("db", "restore", str(copy), "--db", address, capsys=capsys)
    assert code == 3
    assert "add --overwrite to replace it" in complaint
    assert run("db", "restore", str(copy), "--db", address, "--overwrite", capsys=capsys)[0] == 0


def test_roles_are_printed_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run("db", "roles", "--db", "postgresql://nowhere/automl", capsys=capsys)
    assert code == 0
    assert "GRANT SELECT ON ALL TABLES IN SCHEMA public TO automl_web, automl_ro;" in said


@pytest.mark.postgres
def test_roles_get_their_passwords_from_environment_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rw").write_text("from a file\n")
    monkeypatch.setenv("AUTOML_DB_URL", fresh_postgres())
    monkeypatch.setenv("AUTOML_OWNER_PASSWORD", "from the environment")
    monkeypatch.setenv("AUTOML_RW_PASSWORD_FILE", str(tmp_path / "rw"))
    code, said, _ = run("db", "roles", "--apply", capsys=capsys)
    assert code == 0
    assert said.splitlines() == [
        "automl_owner: password set",
        "automl_rw: password set",
        "automl_web: no password given",
        "automl_ro: no password given",
    ]
    monkeypatch.setenv("AUTOML_RO_PASSWORD_FILE", str(tmp_path / "missing"))
    code, _, complaint = run("db", "roles", "--apply", capsys=capsys)
    assert code == 2
    assert "AUTOML_RO_PASSWORD_FILE: cannot read" in complaint


def test_the_grace_of_the_database_is_a_time(tmp_path: Path) -> None:
    assert parse_space(SPACE, "space.yaml", tmp_path).storage_grace_seconds == 300.0
    changed = parse_space(SPACE + "storage: {grace: 1h30m}\n", "space.yaml", tmp_path)
    assert changed.storage_grace_seconds == 5400.0
    assert changed.sha256 == parse_space(SPACE, "space.yaml", tmp_path).sha256
    with pytest.raises(ConfigError, match=r"5:18: storage.grace: 'soon' is not a time"):
        parse_space(SPACE + "storage: {grace: soon}\n", "space.yaml", tmp_path)
