"""Simulated experiments: what a teardown costs its bystanders under each design."""
