"""pynenc: Python tasks on the runners of a pynenc app."""
