"""Workers that are killed, stopped, terminated and cut off at chosen tokens: what a stream's client comes to see."""
