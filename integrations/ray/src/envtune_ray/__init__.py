"""Rollout collection for envtune-agents over a Ray cluster: one model or endpoint for each actor, one file of records.

`collect` has the signature of `envtune_agents.collect` and writes the same run. The driver decides which episode comes
next and writes it when it ends (both are the core's); `actor` plays episodes in a worker, `workers` keeps the actors
alive and hands a dead one's episodes to another.
"""

from envtune_ray.collect import collect

__all__ = ["collect"]
