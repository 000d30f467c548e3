"""Questions about many hosts at once: what their store says, and what would cure most of it."""
