"""A small deployed agent: it finds and reserves spare parts, with a local checkpoint and hints as a self-repair layer."""
