"""The other sides of the bench."""
