"""Prove or break a locking protocol: scenarios, invariants, verdicts, counterexamples."""
