"""Jobs, and who asked for them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("queue", sa.String(32), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("lab", sa.String(40), nullable=False),
        sa.Column("step", sa.String(40), nullable=False),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("turn", sa.Integer),
        sa.Column("pid", sa.Integer),
        sa.Column("progress", sa.JSON),
        sa.Column("error", sa.JSON),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
    )
    active = sa.text("state IN ('queued', 'running')")
    op.create_index(
        "uq_jobs_active", "jobs", ["queue", "key"], unique=True, sqlite_where=active, postgresql_where=active
    )
    op.create_index("ix_jobs_queue_state", "jobs", ["queue", "state"])
    op.create_table(
        "job_askers",
        sa.Column("job_id", sa.Integer, sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("learner", sa.String(64), primary_key=True),
        sa.Column("prediction", sa.Float),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("withdrawn", sa.Boolean, nullable=False),
        sa.Column("hidden", sa.Boolean, nullable=False),
        sa.Column("card_id", sa.String(32)),
    )
    op.create_index("ix_job_askers_learner", "job_askers", ["learner", "job_id"])


def downgrade() -> None:
    op.drop_table("job_askers")
    op.drop_table("jobs")
