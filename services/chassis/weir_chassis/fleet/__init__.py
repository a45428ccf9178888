"""What a process says of itself, so that others find it and know what it can do.

identity    what it is: from its service, its settings and its health
servicer    told to whoever asks: `weir.fleet.v1.InstanceService`
announcer   told to everybody, on the broker                        wire
"""
