"""What runs actions: processes, workspaces, logs and the loops that watch them."""
