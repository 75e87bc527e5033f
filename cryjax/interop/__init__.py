"""Models as others use them: loaded in Python, exported, imported."""
