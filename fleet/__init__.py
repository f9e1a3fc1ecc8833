"""fleet: many Claude Code agents as one durable worker cluster on Ray."""
