"""The `fleet` command, over the client."""
