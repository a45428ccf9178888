"""Workers that join and die every second under steady load: what the clients of a router come to see of it."""
