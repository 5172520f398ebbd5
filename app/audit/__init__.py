"""The audit log: who changed what, from where, or was refused."""
