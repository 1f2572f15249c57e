"""Runs revisions on the connection that `automl.storage.migrations` has put into Alembic's configuration."""

from alembic import context

from automl.storage.migrations import VERSION_TABLE, is_ours
from automl.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    include_name=is_ours,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
