"""Starts, joins and finds the parts on Ray. Imported by the shells (router, agent, store, gateway, cli)."""
