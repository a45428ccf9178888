"""Two regions of real processes, one of which dies: who is refused, who goes on elsewhere, and what has left."""
