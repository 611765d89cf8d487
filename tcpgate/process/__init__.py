"""The processes themselves: supervisor, workers, the link between them, signals, systemd."""
