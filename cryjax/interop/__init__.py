"""Models for use elsewhere: loading in Python, export and import."""
