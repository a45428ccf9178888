"""Every service restarted in turn, two of each, under steady streams: what their clients come to see of it."""
