"""The agent's actor, its runs and its workspaces: stage 4, between router and claude."""
