"""Run cards, quiz and exercise answers."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "run_cards",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("learner", sa.String(64), nullable=False),
        sa.Column("lab", sa.String(40), nullable=False),
        sa.Column("step", sa.String(40), nullable=False),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("prediction", sa.Float),
        sa.Column("result", sa.Text, nullable=False),
        sa.Column("versions", sa.JSON, nullable=False),
        sa.Column("machine", sa.JSON, nullable=False),
        sa.Column("model_sha256", sa.String(64)),
        sa.Column("duration_s", sa.Float, nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_run_cards_learner_lab_step", "run_cards", ["learner", "lab", "step", "finished_at"])
    op.create_table(
        "answers",
        sa.Column("learner", sa.String(64), primary_key=True),
        sa.Column("lab", sa.String(40), primary_key=True),
        sa.Column("question", sa.String(40), primary_key=True),
        sa.Column("given", sa.Text, nullable=False),
        sa.Column("correct", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("answers")
    op.drop_index("ix_run_cards_learner_lab_step", "run_cards")
    op.drop_table("run_cards")
