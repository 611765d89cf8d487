"""The ways to choose an endpoint, one file each; `base.py` says what they have in common."""
