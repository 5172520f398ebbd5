"""Agents, instances, enrolment, heartbeats and status."""
