"""What a worker holds: the frozen snapshot of one config generation, and the runtime that outlives it. Pure."""
