"""The scripted model server on loopback, its scripts, and the demo."""
