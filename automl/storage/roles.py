"""Least privilege on PostgreSQL: roles that own the tables, that drive studies, that submit sweeps, that only look.

automl_owner creates and upgrades tables, automl_rw reads and writes rows. automl_web, for the web application, reads,
and queues and cancels submitted sweeps, nothing else: what it writes never becomes a command line. automl_ro reads, in
read-only transactions of at most 5 s. The administrator of the server makes them; every other command needs no more
than its own role.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import URL

from automl.errors import StorageError
from automl.storage.connect import PostgresConnect, storage_errors
from automl.storage.url import is_sqlite, mask_url, parse_url

OWNER, WRITER, WEB, READER = ROLES = ("automl_owner", "automl_rw", "automl_web", "automl_ro")

SUBMITTING = f"""DO $$ BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{WEB}') AND to_regclass('public.automl_submissions') IS NOT NULL THEN
    GRANT INSERT (id, study_name, space_text, submitted_at, submitted_by, state, attempts, message)
      ON public.automl_submissions TO {WEB};
    GRANT UPDATE (state, owner, owner_process, lease_until, ended_at, message) ON public.automl_submissions TO {WEB};
  END IF; END $$"""
"""Rights of automl_web, given by the owner of the tables once they are there."""

_TAKE_OVER = """DO $$ DECLARE item record; BEGIN
  FOR item IN SELECT c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'public' AND c.relkind IN ('r', 'v') AND pg_get_userbyid(c.relowner) = CURRENT_USER
  LOOP EXECUTE format('ALTER %s public.%I OWNER TO automl_owner',
    CASE item.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, item.relname); END LOOP;
  FOR item IN SELECT t.typname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE n.nspname = 'public' AND t.typtype = 'e' AND pg_get_userbyid(t.typowner) = CURRENT_USER
  LOOP EXECUTE format('ALTER TYPE public.%I OWNER TO automl_owner', item.typname); END LOOP;
END $$"""

_STATEMENTS = (
    *(
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}')"
        f" THEN CREATE ROLE {role} LOGIN; END IF; END $$"
        for role in ROLES
    ),
    f"GRANT {OWNER} TO CURRENT_USER",
    # The database is automl's own: nobody else may create in it, or even connect to it.
    "REVOKE ALL ON DATABASE {database} FROM PUBLIC",
    "REVOKE ALL ON SCHEMA public FROM PUBLIC",
    f"GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {{database}} TO {OWNER}",
    f"GRANT CONNECT ON DATABASE {{database}} TO {WRITER}, {WEB}, {READER}",
    f"GRANT USAGE, CREATE ON SCHEMA public TO {OWNER}",
    f"GRANT USAGE ON SCHEMA public TO {WRITER}, {WEB}, {READER}",
    # What the one who runs this has created before.
    _TAKE_OVER,
    f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {WRITER}",
    f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {WRITER}",
    f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {WEB}, {READER}",
    SUBMITTING,
    # And what the owner will create.
    f"ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA public"
    f" GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {WRITER}",
    f"ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO {WRITER}",
    f"ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA public GRANT SELECT ON TABLES TO {WEB}, {READER}",
    f"ALTER ROLE {READER} SET default_transaction_read_only = on",
    f"ALTER ROLE {READER} SET statement_timeout = '5s'",
)


def role_statements(url: str) -> list[str]:
    """SQL that makes the roles and gives each its rights; harmless to run again. Holds no password.

    Raises StorageError for SQLite, which has no roles.
    """
    return _statements(_postgres(url))


def apply_roles(url: str, passwords: Mapping[str, str]) -> list[str]:
    """Run `role_statements` as the user of the URL, an administrator; returns the roles whose password was set.

    passwords: by role; the server gets a SCRAM verifier, not the password. Raises StorageError.
    """
    parsed = _postgres(url)
    with storage_errors(parsed, "make the roles"):
        connection = PostgresConnect(parsed, read_only=False)()
    psycopg_error = _error_class()
    try:
        with connection:
            for statement in _statements(parsed):
                connection.execute(statement)
            for role, password in passwords.items():
                connection.execute(f"ALTER ROLE {role} PASSWORD '{_verifier(connection, role, password)}'")
    except psycopg_error as error:
        raise StorageError(f"{mask_url(parsed)}: cannot make the roles: {' '.join(str(error).split())}") from error
    return list(passwords)


def _statements(url: URL) -> list[str]:
    database = '"' + str(url.database).replace('"', '""') + '"'
    return [statement.replace("{database}", database) for statement in _STATEMENTS]


def _postgres(url: str) -> URL:
    parsed = parse_url(url)
    if is_sqlite(parsed):
        raise StorageError(f"{mask_url(parsed)}: SQLite has no roles; dashboards open the file read-only")
    return parsed


def _verifier(connection: Any, role: str, password: str) -> str:
    """What the server stores of a password (SCRAM-SHA-256); base64 and punctuation, so it needs no quoting."""
    made: bytes = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    return made.decode("ascii")


def _error_class() -> type[Exception]:
    import psycopg

    return psycopg.Error
