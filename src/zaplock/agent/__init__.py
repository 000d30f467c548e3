"""The agent: watches processes for weeks at no cost, and records when somebody waits too long."""
