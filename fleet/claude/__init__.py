"""Claude Code: argv, environment, transport, guard, frames. Stage 5; imported by agent only."""
