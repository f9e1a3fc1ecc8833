"""The scripts of the rehearsal model: each decides the next step from what came back. Pure."""
