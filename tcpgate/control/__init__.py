"""What the supervisor does for an operator: reload, probes, the admin API. Runs on Trio; never imports proxy."""
