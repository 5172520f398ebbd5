"""Steps of deployments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "deployment_steps",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("agent_id", sa.String(length=36), nullable=False),
        sa.Column("step", sa.String(length=32), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("check", sa.String(length=100), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("client_address", sa.String(length=64), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_deployment_steps_agent_id_agents"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployment_steps")),
    )
    with op.batch_alter_table("deployment_steps", schema=None) as batch_op:
        batch_op.create_index("ix_deployment_steps_agent_time", ["agent_id", "time"], unique=False)


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("deployment_steps", schema=None) as batch_op:
        batch_op.drop_index("ix_deployment_steps_agent_time")

    op.drop_table("deployment_steps")
